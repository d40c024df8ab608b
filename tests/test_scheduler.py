"""Requests from many threads: each gets what it gets alone, and nobody who leaves or fails disturbs the others."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_engine import Guessing, Slab, following
from understudy.batch import Batch
from understudy.engine import Choose, Engine
from understudy.errors import NumbersError, TransferError
from understudy.params import SamplingParams
from understudy.policies import POLICIES, Policy, Selection
from understudy.registry import build
from understudy.request import Request
from understudy.scheduler import Scheduler
from understudy.sequence import TokenSequence
from understudy.stats import Counters, RequestMeter
from understudy.tree import Nodes

PLAN = SimpleNamespace(plain_tokens_per_second=None, to_dict=dict)
MODEL: Any = SimpleNamespace(plan=PLAN, device=SimpleNamespace(peak_bytes=lambda: 0))


class Text:
    """A reply whose text is its token ids."""

    def __init__(self) -> None:
        self.text = self.ready = ""

    def feed(self, token: int) -> bool:
        self.ready += str(token)
        return False

    def take(self, final: bool = False) -> str:
        ready, self.ready = self.ready, ""
        self.text += ready
        return ready


class World:
    """An engine on a model that is a function of the text, and the scheduler over it. `fault`: raised in the next pass."""

    def __init__(self, rows: int = 3, max_nodes: int = 64, policy: Policy | None = None, pause: float = 0.0):
        self.slab = Slab(rows)
        self.pause, self.passes = pause, 0
        self.fault: BaseException | None = None
        engine = Engine(self.verify, self.slab, Guessing(3), max_nodes)
        chosen: Policy = policy or build("policy", POLICIES, "ragged")
        self.scheduler = Scheduler(engine, rows, chosen, self.counters, self.guard)
        self.guarded = 0

    def counters(self) -> Counters:
        return Counters(used=100 * self.passes, read=0, wait=0.0, busy=0.0, draft=0.0, verify=float(self.passes))

    @contextmanager
    def guard(self) -> Iterator[None]:
        self.guarded += 1
        yield

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        time.sleep(self.pause)
        self.passes += 1
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return self.slab.verify(nodes, wanted, choose)

    def request(self, prompt: Sequence[int], count: int, streams: bool = False) -> Request:
        text: Any = Text()
        sequence = TokenSequence(-1, list(prompt), SamplingParams(max_new_tokens=count), stops=text.feed)
        return Request(sequence, text, RequestMeter(MODEL, "test", len(prompt)), streams)


def alone(prompt: Sequence[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(following(text))
    return text[len(prompt) :]


WORK = st.lists(st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 20)), min_size=1, max_size=7)


@given(WORK, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_every_request_gets_what_it_gets_alone(work: list[tuple[list[int], int]], rows: int) -> None:
    world = World(rows)
    requests = [world.request(prompt, count) for prompt, count in work]
    world.scheduler.complete(requests)
    assert [r.completion().token_ids for r in requests] == [alone(*one) for one in work]
    assert all(r.completion().finish_reason == "length" for r in requests)
    assert world.scheduler.idle and world.guarded == world.passes > 0
    used = sum(r.meter.whole.used for r in requests)
    assert used == pytest.approx(100 * world.passes), "the shares of a pass add up to the pass"
    assert sum(r.meter.whole.compute for r in requests) == pytest.approx(world.passes)


def test_callers_in_many_threads_share_passes() -> None:
    world = World(rows=3, pause=0.002)
    work = [([i % 7, 3, i % 5], 12 + i) for i in range(8)]
    got: dict[int, list[int]] = {}

    def call(i: int) -> None:
        request = world.request(*work[i], streams=bool(i % 2))
        if request.streams:
            world.scheduler.submit(request)
            got[i] = [token for step in world.scheduler.follow(request) for token in step.token_ids]
        else:
            world.scheduler.complete([request])
            got[i] = request.completion().token_ids

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {i: alone(*one) for i, one in enumerate(work)}
    separate = World()
    for prompt, count in work:
        separate.scheduler.complete([separate.request(prompt, count)])
    assert world.passes < separate.passes and world.scheduler.idle


def test_a_caller_that_leaves_takes_only_its_own_request() -> None:
    world = World(rows=2)
    staying, leaving, queued = (world.request([1, i], 30, streams=True) for i in range(3))
    for request in (staying, leaving, queued):
        world.scheduler.submit(request)
    steps = world.scheduler.follow(leaving)
    next(steps)
    steps.close()
    assert leaving.sequence.finish_reason == "cancelled" and leaving not in world.scheduler.running
    assert not staying.finished and staying in world.scheduler.running
    waiting = world.request([5], 9)
    world.scheduler.submit(waiting)
    world.scheduler.cancel(waiting)
    assert waiting.sequence.finish_reason == "cancelled" and waiting.sequence.row == -1
    assert waiting.completion().token_ids == [] and waiting.completion().text == ""
    assert [t for step in world.scheduler.follow(queued) for t in step.token_ids] == alone([1, 2], 30)
    assert [t for step in world.scheduler.follow(staying) for t in step.token_ids] == alone([1, 0], 30)


def test_leaving_during_the_pass_of_another_thread_does_not_wait_for_it() -> None:
    world = World(rows=2)
    passing, go_on, told = threading.Event(), threading.Event(), []
    verify = world.scheduler.engine.verify

    def held_up(*given: Any) -> Any:
        passing.set()
        told.append(go_on.wait(20))
        return verify(*given)

    world.scheduler.engine.verify = held_up
    first, second = world.request([1], 4), world.request([2], 4)
    thread = threading.Thread(target=world.scheduler.complete, args=([first],))
    thread.start()
    assert passing.wait(60)
    world.scheduler.submit(second)
    world.scheduler.cancel(second)
    go_on.set()
    thread.join(60)
    assert told and all(told), "it had left before the pass went on"
    assert first.completion().token_ids == alone([1], 4) and world.scheduler.idle


def test_after_it_is_shut_no_pass_runs_and_everybody_hears_why() -> None:
    """What passes use may be given back then: a read in the middle of one would be of something else."""
    world = World(rows=1)
    passing, go_on = threading.Event(), threading.Event()
    verify = world.scheduler.engine.verify

    def held_up(*given: Any) -> Any:
        passing.set()
        assert go_on.wait(60)
        return verify(*given)

    world.scheduler.engine.verify = held_up
    errors: list[BaseException] = []

    def call(streams: bool) -> None:
        request = world.request([1], 400, streams)
        try:
            if streams:
                world.scheduler.submit(request)
                list(world.scheduler.follow(request))
            else:
                world.scheduler.complete([request])
        except TransferError as error:
            errors.append(error)

    callers = [threading.Thread(target=call, args=(streams,)) for streams in (False, True, False)]
    for caller in callers:
        caller.start()
    assert passing.wait(60)
    shutting = threading.Thread(target=world.scheduler.shut, args=(TransferError("it is gone"),))
    shutting.start()
    shutting.join(0.1)
    assert shutting.is_alive(), "it waits for the pass under way"
    go_on.set()
    shutting.join(60)
    passes = world.passes
    for caller in callers:
        caller.join(60)
    assert [str(error) for error in errors] == ["it is gone"] * 3
    late = world.request([1], 4)
    with pytest.raises(TransferError, match="it is gone"):
        world.scheduler.complete([late])
    world.scheduler.step()
    world.scheduler.shut(TransferError("again"))
    assert world.passes == passes and world.scheduler.idle


def test_a_handler_of_a_signal_that_shuts_it_in_the_middle_of_a_pass_does_not_wait_for_itself() -> None:
    world = World(rows=1)
    verify = world.scheduler.engine.verify

    def handled(*given: Any) -> Any:
        world.scheduler.shut(TransferError("it is gone"))
        return verify(*given)

    world.scheduler.engine.verify = handled
    for request in (world.request([1], 40), world.request([2], 40)):
        with pytest.raises(TransferError, match="it is gone"):
            world.scheduler.complete([request])
    assert world.passes == 1 and world.scheduler.idle


def test_the_last_step_reaches_a_caller_that_looks_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(rows=2)
    mine, other = world.request([1], 9, streams=True), world.request([2], 9)
    record = Request.record

    def slow(request: Request, advance: Any, share: Any) -> None:
        time.sleep(0.01)
        record(request, advance, share)

    monkeypatch.setattr(Request, "record", slow)
    world.scheduler.submit(mine)
    thread = threading.Thread(target=world.scheduler.complete, args=([other],))
    thread.start()
    steps = list(world.scheduler.follow(mine))
    thread.join(30)
    assert [token for step in steps for token in step.token_ids] == alone([1], 9)
    assert steps[-1].finish_reason == "length"


def test_an_error_ends_the_requests_of_its_pass_and_no_others() -> None:
    world = World(rows=2)
    one, two, later = (world.request([i, 2], 12) for i in range(3))
    for request in (one, two, later):
        world.scheduler.submit(request)
    world.fault = TransferError("the link broke")
    with pytest.raises(TransferError, match="link broke"):
        world.scheduler.step()
    assert one.finished and two.finished and not later.finished
    with pytest.raises(TransferError, match="link broke"):
        next(world.scheduler.follow(two))
    assert list(world.scheduler.follow(later)) == [] and later.completion().token_ids == alone([2, 2], 12)


def test_a_bug_that_does_not_come_again_ends_nobody_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    world = World(rows=2)
    both = [world.request([i, 2], 12) for i in range(2)]
    world.fault = RuntimeError("once")
    world.scheduler.complete(both)
    assert [request.completion().token_ids for request in both] == [alone([i, 2], 12) for i in range(2)]
    (told,) = caplog.records
    assert "a pass failed by a bug" in told.message and told.exc_info is not None and told.exc_info[1] is not None


def breaking(function: Callable[..., Any], is_mine: Callable[..., bool], after: int) -> Callable[..., Any]:
    """`function`, which raises from its call number `after` on for those arguments that `is_mine`."""
    calls = itertools.count()

    def broken(*arguments: Any, **options: Any) -> Any:
        if is_mine(*arguments) and next(calls) >= after:
            raise RuntimeError("a bug")
        return function(*arguments, **options)

    return broken


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("stage", ["admission", "draft", "verify", "sampling", "learning", "detokenising", "writing", "counting"])
def test_a_bug_at_any_stage_ends_its_own_request_alone(stage: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(rows=3)
    requests = [world.request([i, 2, 3], 25, streams=True) for i in range(4)]
    mine = requests[1]
    engine = world.scheduler.engine

    def serves_mine(*_: Any) -> bool:
        return mine.sequence.row >= 0 and not mine.finished

    def in_nodes(nodes: Nodes, *_: Any) -> bool:
        return serves_mine() and bool((nodes.rows == mine.sequence.row).any())

    def holds_mine(sequences: Sequence[TokenSequence]) -> bool:
        return mine.sequence in sequences

    places: dict[str, tuple[Any, str, Callable[..., bool]]] = {
        "admission": (engine, "admit", lambda sequence: sequence is mine.sequence),
        "draft": (engine.drafter, "draft", holds_mine),
        "verify": (engine, "verify", in_nodes),
        "sampling": (Batch, "choose", lambda batch, *_: any(m.sequence is mine.sequence and m.wanted for m in batch.members)),
        "learning": (engine.drafter, "observe", lambda verified: verified.sequence is mine.sequence),
        "detokenising": (mine.sequence, "stops", lambda _: True),
        "writing": (mine.reply, "take", lambda *_: True),
        "counting": (mine.meter, "count", lambda *_: True),
    }
    owner, name, is_mine = places[stage]
    monkeypatch.setattr(owner, name, breaking(getattr(owner, name), is_mine, 0 if stage == "admission" else after))
    later = world.request([1, 2, 3], 9)
    for request in (*requests, later):
        world.scheduler.submit(request)
    for _ in range(200):
        if world.scheduler.idle:
            break
        with suppress(RuntimeError):
            world.scheduler.step()
    assert world.scheduler.idle, "a request is stuck"
    assert isinstance(mine.error, RuntimeError) and mine.finished
    for i, request in enumerate(requests):
        if request is not mine:
            assert request.error is None
            assert [token for step in request.steps for token in step.token_ids] == alone([i, 2, 3], 25)
    # the row that it gave back serves the next one
    assert later.completion().token_ids == alone([1, 2, 3], 9)
    assert not engine.sequences


def test_an_interrupt_ends_the_request_of_its_thread_alone() -> None:
    world = World(rows=2)
    mine, other = world.request([1, 2], 12), world.request([3, 4], 12)
    world.scheduler.submit(other)
    world.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        world.scheduler.complete([mine])
    assert mine.sequence.finish_reason == "cancelled" and not other.finished
    assert list(world.scheduler.follow(other)) == [] and other.completion().token_ids == alone([3, 4], 12)


def test_a_window_keeps_the_rows_busy_and_makes_requests_when_their_turn_comes() -> None:
    world = World(rows=3)
    work = [([i % 7, i % 5], 1 + i % 4) for i in range(60)]
    made: list[Request] = []
    ended: list[Request] = []

    def coming() -> Iterator[Request]:
        for prompt, count in work:
            made.append(world.request(prompt, count))
            yield made[-1]
            assert len(made) - len(ended) <= 6

    world.scheduler.complete(coming(), 6, ended.append)
    assert [request.completion().token_ids for request in made] == [alone(*one) for one in work]
    assert set(made) == set(ended) and len(ended) == 60 and ended != made
    assert world.passes < sum(count for _, count in work) / 2


def test_what_ends_a_batch_early_cancels_what_was_let_in_and_makes_no_more() -> None:
    world = World(rows=2)
    made: list[Request] = []

    def coming() -> Iterator[Request]:
        for i in range(60):
            made.append(world.request([i % 7], 3))
            yield made[-1]

    def refuse(request: Request) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.scheduler.complete(coming(), 5, refuse)
    assert len(made) == 5 and world.scheduler.idle and all(request.finished for request in made)


class OneAtATime:
    """A policy of another kind: each request has the passes to itself."""

    def select(self, running: Sequence[Request], waiting: Sequence[Request], free: int) -> Selection:
        admitted = waiting[: 0 if running else 1]
        return Selection(admitted, [*running, *admitted])


def test_a_policy_decides_who_runs_and_changes_no_token() -> None:
    world = World(rows=3, policy=OneAtATime())
    work = [([i, 1], 6) for i in range(3)]
    requests = [world.request(*one) for one in work]
    for request in requests:
        world.scheduler.submit(request)
    while not world.scheduler.idle:
        world.scheduler.step()
        assert len(world.scheduler.running) <= 1
    assert [r.completion().token_ids for r in requests] == [alone(*one) for one in work]


class Overflowing(World):
    """The logits of cache row 0 are no numbers from position 5 on."""

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        beyond = (nodes.rows[wanted] == 0) & (nodes.positions[wanted] >= 5)

        def broken(logits: Tensor, start: int) -> Tensor:
            return choose(logits.masked_fill(beyond[start : start + len(logits), None], float("nan")), start)

        return super().verify(nodes, wanted, broken)


def test_logits_that_are_no_numbers_fail_a_batch_when_its_others_are_finished() -> None:
    world = Overflowing(rows=2)
    broken, good = requests = [world.request([1, 2], 30), world.request([2, 2], 30)]
    with pytest.raises(NumbersError):
        world.scheduler.complete(requests)
    assert broken.error is not None and broken.sequence.finish_reason == "error"
    assert good.completion().finish_reason == "length" and good.completion().token_ids == alone([2, 2], 30)
    assert world.scheduler.idle


class LastFirst:
    """Who came last is admitted first."""

    def select(self, running: Sequence[Request], waiting: Sequence[Request], free: int) -> Selection:
        admitted = waiting[::-1][:free]
        return Selection(admitted, [*running, *admitted])


def test_requests_are_admitted_in_the_order_of_the_policy() -> None:
    world = World(rows=2, policy=LastFirst())
    requests = [world.request([i, 1], 40) for i in range(3)]
    for request in requests:
        world.scheduler.submit(request)
    world.scheduler.step()
    assert world.scheduler.running == [requests[2], requests[1]] and world.scheduler.waiting == requests[:1]
    assert [request.sequence.row for request in requests] == [-1, 1, 0]


class OldestAlone:
    """Everybody is admitted, and only who came first takes part."""

    def select(self, running: Sequence[Request], waiting: Sequence[Request], free: int) -> Selection:
        admitted = waiting[:free]
        return Selection(admitted, [*running, *admitted][:1])


def test_only_whom_the_policy_selects_takes_part() -> None:
    world = World(rows=2, policy=OldestAlone())
    first, second = requests = [world.request([i, 1], 12) for i in range(2)]
    for request in requests:
        world.scheduler.submit(request)
    while not first.finished:
        assert second.sequence.tokens == [1, 1] and second.meter.whole.used == 0
        world.scheduler.step()
    while not world.scheduler.idle:
        world.scheduler.step()
    assert [r.completion().token_ids for r in requests] == [alone([i, 1], 12) for i in range(2)]


def test_a_request_takes_the_row_that_holds_its_beginning() -> None:
    world = World(rows=2)
    first, second = world.request([1, 2, 3, 4], 2), world.request([5, 5, 5, 5], 2)
    world.scheduler.complete([first, second])
    again = world.request([5, 5, 5, 5, 6], 1)
    world.scheduler.complete([again])
    assert again.sequence.row == second.sequence.row
    assert again.completion().token_ids == alone([5, 5, 5, 5, 6], 1)
    assert torch.equal(world.slab.layers[0].keys[again.sequence.row, 0, :4, 0], torch.full((4,), 5.0))
