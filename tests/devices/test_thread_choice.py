"""Work is shared by as many threads as it is fastest on, and to find out costs little."""

import random
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.devices.processor import Processor
from understudy.devices.thread_choice import COST, LONG_RUN, LONGEST_APART, SizeChoice, ThreadChoice, Threads, choices
from understudy.kernels import team

Machine = Callable[[Threads], float]


def busy(threads: Threads) -> float:
    """Seconds of a run where each thread but the first may have to wait for another process's turn."""
    late = any(random.random() < 0.3 for _ in range(threads.kernels + threads.stock - 2))
    return 0.004 * random.uniform(0.9, 1.1) / threads.kernels + 0.02 * late


def idle(threads: Threads) -> float:
    return 0.1 / threads.kernels * random.uniform(0.97, 1.03)


def run(choice: SizeChoice, machine: Machine, seconds: float) -> list[Threads]:
    """The choices of runs that last so long together."""
    taken, left = [], seconds
    while left > 0:
        taken.append(choice.threads)
        took = machine(choice.threads)
        choice.record(took)
        left -= took
    return taken


def test_torchs_own_operations_are_the_first_to_run_alone() -> None:
    assert choices(1) == [Threads(1, 1)]
    assert choices(2) == [Threads(2, 2), Threads(2, 1), Threads(1, 1)]
    assert choices(6) == [Threads(6, 6), Threads(6, 1), Threads(3, 1), Threads(1, 1)]


@pytest.mark.parametrize("most", [2, 4, 16])
@pytest.mark.parametrize("seed", range(4))
def test_beside_busy_processes_one_thread_works(most: int, seed: int) -> None:
    random.seed(seed)
    choice = SizeChoice(choices(most))
    run(choice, busy, 2.0)
    taken = run(choice, busy, 10.0)
    assert taken.count(Threads(1, 1)) > 0.75 * len(taken)


@pytest.mark.parametrize("most", [2, 4, 16])
@pytest.mark.parametrize("seed", range(4))
def test_on_an_idle_machine_all_threads_work(most: int, seed: int) -> None:
    random.seed(seed)
    choice = SizeChoice(choices(most))
    run(choice, idle, 4.0)
    taken = run(choice, idle, 60.0)
    assert sum(threads.kernels == most for threads in taken) > 0.85 * len(taken)


@pytest.mark.parametrize("seed", range(4))
def test_it_follows_a_machine_that_becomes_busy_and_idle_again(seed: int) -> None:
    random.seed(seed)
    choice = SizeChoice(choices(4))
    for machine, kernels in ((idle, 4), (busy, 1), (idle, 4)):
        run(choice, machine, 70.0)
        taken = run(choice, machine, 20.0)
        assert sum(threads.kernels == kernels for threads in taken) > 0.7 * len(taken), machine.__name__


@given(st.lists(st.floats(0.001, 2.0), min_size=3, max_size=3), st.integers(40, 400))
def test_trials_cost_a_small_share_of_the_time_however_slow_the_others_are(seconds: list[float], runs: int) -> None:
    options = choices(2)
    choice = SizeChoice(options)
    took = dict(zip(options, seconds, strict=True))
    total = 0.0
    for _ in range(runs):
        total += took[choice.threads]
        choice.record(took[choice.threads])
    # what is paid before anything is known, and the first trial of each
    entry = 8 * seconds[0] + 8 * max(seconds) + 4 * min(seconds)
    reached = took[options[choice.place]]
    assert total <= entry + runs * max(reached, seconds[0]) * (1 + 3 / COST)


@pytest.mark.parametrize("long", [LONG_RUN, 0.7, 5.0])
def test_long_work_that_has_its_processors_tries_fewer_threads_only_as_a_small_share_of_the_time(long: float) -> None:
    choice = SizeChoice(choices(2)[1:])
    spent = 0.0
    while choice.trial is None:
        choice.record(long, share=0.9)
        spent += long
    assert spent >= min(3 * COST * long, LONGEST_APART)
    assert choice.threads == Threads(1, 1), "it is tried all the same: not all that disturbs takes processor time"


def test_long_work_whose_processor_time_was_taken_away_tries_fewer_threads_at_once() -> None:
    choice = SizeChoice(choices(2)[1:])
    for _ in range(2):
        choice.record(0.7, share=0.45)
    assert choice.threads == Threads(1, 1)
    choice.record(1.2, share=1.0)
    assert choice.threads == Threads(2, 1), "slower, so two go on"
    for _ in range(30):
        choice.record(0.7, share=0.45)
    assert choice.trials == 1, "a trial that lost is not repeated for as long as nothing changed"
    choice.record(0.5, share=0.95)
    choice.record(0.7, share=0.45)
    assert choice.trials == 2 and choice.threads == Threads(1, 1), "something came that was not there before"


def test_long_work_that_has_its_processors_follows_shorter_work_only_once_they_are_taken_away() -> None:
    choice = SizeChoice(choices(2)[1:])
    for seconds, share in ((0.7, 0.45), (0.7, 0.45), (0.71, 1.0), (0.7, 0.9)):
        choice.record(seconds, share)
    choice.suggest(1)
    assert choice.trials == 1 and choice.trial is None
    for _ in range(8):
        choice.record(0.7, share=0.9)
    assert choice.trials == 1, "as if nothing had been suggested"
    choice.record(0.7, share=0.45)
    assert choice.threads == Threads(1, 1) and choice.suggested is None, "at once, not after sixteen runs"
    choice.record(1.2, share=1.0)
    for _ in range(8):
        choice.record(0.7, share=0.45)
    assert choice.trials == 2, "a suggestion is tried once"


def test_long_work_on_one_thread_follows_shorter_work_that_found_two_faster_at_once() -> None:
    choice = SizeChoice(choices(2)[1:], place=1)
    for _ in range(2):
        choice.record(0.7, share=1.0)
    choice.suggest(0)
    assert choice.threads == Threads(2, 1)


def test_long_work_on_one_thread_that_has_its_processor_tries_two_again_soon() -> None:
    choice = SizeChoice(choices(2)[1:])
    for seconds, share in ((0.7, 0.45), (0.7, 0.45), (0.6, 1.0)):
        choice.record(seconds, share)
    assert choice.place == 1, "one thread was faster"
    choice.record(0.7, share=0.45)
    spent = 0.0
    while choice.threads == Threads(1, 1):
        choice.record(0.6, share=1.0)
        spent += 0.6
    assert choice.trial is not None and spent < 16, "as long as the last trial lost little"


def test_short_work_is_tried_whatever_its_share() -> None:
    choice = SizeChoice(choices(2)[1:])
    for _ in range(2):
        choice.record(LONG_RUN / 2, share=0.9)
    assert choice.threads == Threads(1, 1)


def test_the_share_of_processor_time_is_that_of_the_threads_that_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = [0.0], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: used[0])
    choice = ThreadChoice({"pass": choices(2)[1:]})

    def run(processors: float) -> int:
        with choice.timed("pass", 8):
            now[0] += 1.0
            used[0] += processors
            return team.threads()

    assert [run(1.9) for _ in range(30)] == [2] * 30
    assert [run(0.9) for _ in range(2)] == [2, 1], "two threads that had one processor between them are tried as one"


def test_work_of_each_kind_and_size_is_judged_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    choice = ThreadChoice({"level": choices(2)})
    # small work is faster alone, large work together
    for _ in range(300):
        for nodes in (1, 64):
            with choice.timed("level", nodes):
                now[0] += 0.001 if (nodes == 1) == (team.threads() == 1) else 0.003
    kernels = {key: size.options[size.place].kernels for key, size in choice.sizes.items()}
    assert kernels == {("level", 1): 1, ("level", 7): 2}
    assert torch.get_num_threads() == team.threads(), "what comes after has its threads again"


def test_what_one_kind_of_work_finds_others_try_next(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    choice = ThreadChoice({"level": choices(4), "pass": choices(4)[1:]})

    def run(kind: str, nodes: int) -> int:
        with choice.timed(kind, nodes):
            # large work is faster together, whatever else runs
            now[0] += 1 / team.threads() if nodes == 64 else team.threads()
            return team.threads()

    first = [run("pass", 8) for _ in range(2)]
    large = [run("level", 64) for _ in range(6)]
    assert first == [4, 4] and large[-1] == 4
    assert [run("level", 1) for _ in range(12)][-1] == 1
    assert run("pass", 8) == 1, "tried at once"
    assert [run("level", 64) for _ in range(3)] == [1, 4, 4], "tried once, and found to be slower"
    assert [run("pass", 8) for _ in range(40)].count(1) > 25
    assert run("level", 2) == 1, "new work begins with it"


def test_a_run_that_fails_teaches_nothing_and_gives_threads_back() -> None:
    choice = ThreadChoice({"pass": [Threads(3, 1)]})
    with pytest.raises(ZeroDivisionError), choice.timed("pass", 1):
        assert team.threads() == 3
        raise ZeroDivisionError
    assert not choice.sizes["pass", 1].usual and team.threads() == torch.get_num_threads()


def test_a_processor_keeps_torchs_threads_where_torch_multiplies() -> None:
    several = Processor(threads=6)._shared.options
    assert {option.stock for option in several["prompt"]} == {1, 2}, "shares of a wide tile are whole vectors"
    assert {option.stock for option in several["pass"]} == {1}
    device = Processor(threads=2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with device.sharing("stock pass", 8):
            assert torch.get_num_threads() == team.threads() == 2
        for _ in range(40):
            with device.sharing("pass", 8):
                assert torch.get_num_threads() == 1, "the bits of torch's operations never depend on what is chosen"
    finally:
        torch.set_num_threads(before)
