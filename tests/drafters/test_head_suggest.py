"""A head in front of the proposer: the tree is the one that the proposer alone would have drawn, in fewer levels; the head is given
the right hidden states, asked where it pays, and learns how far it is to be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.drafters.world import COSTS, SCORES, VOCABULARY, Steady, World, run
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.adjust import Adjustment
from understudy.devices.processor import Processor
from understudy.drafters import spec_of
from understudy.drafters.growing_tree import Candidate, GrowingTree
from understudy.drafters.head_chain import Chain
from understudy.drafters.head_runner import HeadRunner
from understudy.drafters.head_state import HeadState
from understudy.drafters.head_suggest import FEW, HEAD, OTHERS, PROBES, HeadSuggester, TappedProposer
from understudy.drafters.policy import DraftPolicy, Limits
from understudy.drafters.search import SearchDrafter
from understudy.drafters.suggest import NOTHING, TEXT, TextSuggester, Tip
from understudy.drafters.tree_search import TreeSearch
from understudy.engine import Choose
from understudy.errors import CheckpointError, UsageError
from understudy.heads import DraftHead, HeadConfig, Places, TargetFacts
from understudy.heads.files import built
from understudy.heads.files import save as save_head
from understudy.layer_states import LayerShape
from understudy.sampling import choose
from understudy.sequence import TokenSequence
from understudy.tree import Nodes

STEP = 0.002


class Costly(Steady):
    """What the head takes is as given too."""

    def record_step(self, texts: int, seconds: float) -> None: ...


class Thin(Costly):
    """Nothing beside the chain of first choices is worth its time."""

    def width(self, chances: Sequence[float], least: int, most: int, free: bool, node: float = 0.0) -> int:
        return min(super().width(chances, least, most, free, node), 1)

    def first_guess(self, seconds: float, texts: int = 1, each: float = 8) -> None: ...


class Reading(DraftHead):
    """A head whose states are numbers of texts in its world: it knows a text only by the hidden states and tokens it was given, and
    says what the proposer would say, but for every `wrong`-th text. Its cache must hold the very tokens of the text."""

    attends_in_tree = True

    def __init__(self, config: HeadConfig, world: "HeadWorld"):
        super().__init__(config)
        object.__setattr__(self, "world", world)

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        return self._after(hidden[0, :, 0, 0], embedded)

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        return self._after(states[0, :, 0], embedded)

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states

    def _after(self, before: Tensor, embedded: Tensor) -> Tensor:
        world: HeadWorld = self.world  # type: ignore[assignment]
        world.calls += 1
        tokens = [int(token) for token in embedded[0, :, 0]]
        texts = [[*world.texts[int(number)], token] for number, token in zip(before, tokens, strict=True)]
        level: Any = self.current.under_way
        level.write_kv(0, embedded[0, :, None], embedded[0, :, None])
        for i, text in enumerate(texts):
            slots = level.nodes.slots_in_order(i)
            held = level.cache.layers[0].keys[int(level.nodes.rows[i]), 0, slots, 0]
            assert [int(token) for token in held] == text[1:], "the head's cache holds another text"
        return torch.tensor([[float(world.number(text))] for text in texts])[None]

    def scores(self, states: Tensor, depth: int, score: Any) -> Tensor:
        world: HeadWorld = self.world  # type: ignore[assignment]
        logits = torch.zeros(1, states.shape[1], VOCABULARY)
        for i, state in enumerate(states[0, :, 0]):
            text = world.texts[int(state)]
            order = world.best(text)
            if world.wrong and len(text) % world.wrong == 0:
                order = [order[1], order[0], *order[2:]] if world.second else [*order[1:], order[0]]
            logits[0, i, order] = torch.tensor(SCORES)
        return logits if self.token_map is None else logits[..., self.token_map]


class HeadWorld(World):
    """The world of repeating texts, with hidden states: a hidden state is the number of the text up to it."""

    # Where the head is wrong, is the right token the next that it would say?
    second = False

    def __init__(self, rows: int, wrong: int = 0, text: TextSuggester | None = None, pace: Any = None, asks: bool = True):
        super().__init__(rows, 4, 30, None)
        self.wrong, self.calls, self.vocabulary = wrong, 0, VOCABULARY
        self.texts: list[list[int]] = []
        self.device = Processor(threads=1)
        config = HeadConfig("reading", TargetFacts(1, VOCABULARY), taps=(-1,), layers=1)
        runner = HeadRunner(Reading(config, self), [LayerShape(1, 1, 1)], self, torch.float32)  # type: ignore[arg-type]
        proposer = TappedProposer(self, HeadState(runner))  # type: ignore[arg-type]
        self.suggester = HeadSuggester(proposer, text) if asks else text
        pace = pace or Costly(dict(COSTS), {1: STEP}, rate=20.0)
        policy = DraftPolicy(Limits(320, 60), pace=pace)
        self.drafter = SearchDrafter(proposer, TreeSearch(proposer, policy, self.suggester), policy)
        # The trees that were drawn, as sets of paths.
        self.drawn: list[set[tuple[int, ...]]] = []

    def number(self, text: list[int]) -> int:
        self.texts.append(list(text))
        return len(self.texts) - 1

    def _hidden(self, nodes: Nodes) -> Tensor:
        numbers = [self.number(self.read(nodes, node)) for node in range(len(nodes))]
        return torch.tensor(numbers, dtype=torch.float32)[:, None, None]

    def draft_tapped(self, nodes: Nodes) -> tuple[Tensor, Tensor]:
        return self.draft(nodes), self._hidden(nodes)

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        chosen, _ = super().verify(nodes, wanted, choose)
        return chosen, self._hidden(nodes)

    def embed(self, tokens: Tensor) -> Tensor:
        return tokens.float()[:, None]

    def score(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def check(self, row: Any) -> None:
        super().check(row)
        tree = self.drafter.trees[row.row].tree
        start = len(row.tokens)
        self.drawn.append({(row.row, start, *path) for path in tree.paths})


PROMPTS = [[1, 2, 3], [4, 4], [5, 5, 1]]


@pytest.mark.parametrize(("rows", "count"), [(1, 60), (3, 17)])
def test_a_head_draws_the_same_trees_in_fewer_levels(rows: int, count: int) -> None:
    helped, alone = (HeadWorld(rows, 9, pace=Thin({1: 0.01, 8: 0.012}, {1: STEP}, rate=0.0), asks=asks) for asks in (True, False))
    for world in (helped, alone):
        # All trees together have room in one pass.
        run(world, PROMPTS[:rows], count)
    others = [(one, other) for one, other in zip(helped.drawn, alone.drawn, strict=True) if one != other]
    assert not others, f"{len(others)} of {len(alone.drawn)} trees, {sorted(others[0][0] ^ others[0][1])[:3]}"
    assert 0 < helped.levels < 0.5 * alone.levels
    trees = helped.drafter.trees.values()
    assert all(tree.suggested[HEAD] >= tree.agreed[HEAD] for tree in trees)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> tuple[HeadWorld, list[float]]:
    """A world in which reading what was accepted takes 30 seconds, each node that a head begins with one and a half, and a token
    after those a quarter of a second; and what its pace was told of steps."""
    now = [0.0]
    monkeypatch.setattr("understudy.drafters.head_suggest.time.perf_counter", lambda: now[0])
    world = HeadWorld(1, 3)
    read, begin, follow = HeadState.read, HeadRunner.begin, HeadRunner.follow

    def slowly(state: HeadState, sequences: Any) -> Any:
        before = now[0]
        found = read(state, sequences)
        now[0] = before + 30.0
        return found

    def started(runner: HeadRunner, nodes: Nodes, hidden: Tensor) -> Any:
        now[0] += 1.5 * len(nodes)
        return begin(runner, nodes, hidden)

    def step(runner: HeadRunner, *given: Any) -> Any:
        now[0] += 0.25
        return follow(runner, *given)

    taken: list[float] = []
    monkeypatch.setattr(HeadState, "read", slowly)
    monkeypatch.setattr(HeadRunner, "begin", started)
    monkeypatch.setattr(HeadRunner, "follow", step)
    monkeypatch.setattr(world.drafter.policy.pace, "record_step", lambda texts, seconds: taken.append(seconds))
    return world, taken


def test_what_is_read_once_is_no_part_of_a_step(steps: tuple[HeadWorld, list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    world, taken = steps
    # Now and then it is not asked for some levels, and has more to read then.
    asks, asked = HeadSuggester._asks, [0]

    def seldom(suggester: HeadSuggester, *given: Any) -> bool:
        asked[0] += 1
        return asks(suggester, *given) and asked[0] % 12 > 8

    monkeypatch.setattr(HeadSuggester, "_asks", seldom)
    run(world, PROMPTS[:1], 60)
    assert 0.25 in taken and max(taken) <= 1.5 * FEW, "neither the text nor many nodes"
    assert 1.5 in taken, f"{sorted(set(taken))}"


def test_a_step_is_measured_before_the_first_draft(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(tiny / "model", method=f"substitute:suggest=eagle:{tiny / 'head'}", memory="1GiB", context=256) as llm:
        drafter: Any = llm.engine.drafter
        suggester, pace = drafter.search.suggester, drafter.policy.pace
        assert 0 < suggester.first_step < 1 and not pace.steps
        assert suggester.reader.cache.lengths == [0] * len(suggester.reader.cache.lengths)
        suggester.first_step = 1e3
        llm.generate([[1, 2, 3]], SamplingParams(max_new_tokens=6, ignore_eos=True))
        assert suggester.passed_over > 0 and pace.steps == {1: 1e3}, "it looks too slow to be asked"


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 12), st.integers(1, 3), st.booleans(), st.booleans())
def test_any_head_with_or_without_the_text_changes_no_token_and_no_node(wrong: int, rows: int, text: bool, dear: bool) -> None:
    pace = Costly(dict(COSTS), {1: 0.02 if dear else STEP}, rate=20.0)
    run(HeadWorld(rows, wrong, TextSuggester() if text else None, pace), PROMPTS[:rows], 40)


def test_text_and_head_share_the_work() -> None:
    text, both = (HeadWorld(1, 9, TextSuggester(), asks=asks) for asks in (False, True))
    found = []
    for world in (text, both):
        run(world, PROMPTS[:1], 120)
        found.append(world.levels / world.passes)
    assert isinstance(both.suggester, HeadSuggester)
    tried = both.suggester.rates[False].tried
    assert sum(tried[:-1]) > 4 * (len(tried) - 1) and sum(both.suggester.text.rates.tried) > 27, "both were checked"  # type: ignore[union-attr]
    assert found[1] < 0.8 * found[0]


def test_all_rows_are_asked_in_one_call() -> None:
    one, three = HeadWorld(1), HeadWorld(3)
    run(one, [[1, 2, 3]], 60)
    run(three, [[1, 2, 3]] * 3, 60)
    assert three.calls < 1.3 * one.calls


def test_a_head_that_does_not_pay_is_asked_now_and_then() -> None:
    world = HeadWorld(1, 0, pace=Costly(dict(COSTS), {1: 0.5}, rate=20.0))
    run(world, [[1, 2, 3]], 120)
    assert isinstance(world.suggester, HeadSuggester)
    assert world.suggester.passed_over >= PROBES
    said = world.suggester.rates[False].tried[-1]
    assert world.levels > 10 * (world.suggester.passed_over // PROBES) and said < 4 + world.levels / PROBES + 1


def test_a_head_that_is_always_wrong_is_soon_asked_no_more() -> None:
    wrong, right = HeadWorld(1, 1), HeadWorld(1)
    for world in (wrong, right):
        run(world, [[1, 2, 3]], 120)
    assert isinstance(wrong.suggester, HeadSuggester) and isinstance(right.suggester, HeadSuggester)
    assert wrong.suggester.rates[False].chance(-1) < 0.3 < 0.8 < right.suggester.rates[False].chance(-1)
    assert wrong.suggester.passed_over > PROBES


def test_a_head_whose_first_token_is_always_wrong_is_asked_for_its_second() -> None:
    """And those that were right are learned from apart: the head is worth its time by them."""
    second, wrong = HeadWorld(1, 1), HeadWorld(1, 1)
    second.second = True
    for world in (second, wrong):
        run(world, [[1, 2, 3]], 120)
    assert second.levels < 0.75 * wrong.levels and isinstance(second.suggester, HeadSuggester)
    assert second.suggester.rates[False].chance(-1) < 0.3 and second.suggester.spared[False].chance(0) > 0.3
    agreed, tried = (getattr(second.suggester.other_rates[False], name) for name in ("agreed", "tried"))
    assert max(right / asked for right, asked in zip(agreed, tried, strict=True)) > 0.7
    assert second.suggester.passed_over < PROBES


@pytest.mark.parametrize("pruned", [False, True])
def test_the_heads_token_is_chosen_with_the_noise_of_its_place(pruned: bool) -> None:
    world = HeadWorld(1)
    assert isinstance(world.suggester, HeadSuggester)
    kept = torch.tensor([1, 2, 4, 6])
    if pruned:
        world.suggester.runner.head.token_map = kept
    found = set()
    for seed in range(30):
        params = SamplingParams(temperature=0.9, seed=seed, frequency_penalty=0.3 * (seed % 2), max_new_tokens=9)
        sequence = TokenSequence(0, [1, 2, 3], params, limit=9, prompt_length=2)
        tree = GrowingTree(sequence, 2, [3])
        chain = Chain(Tip(tree, Candidate(1.0, -1, 3, 0, True), 5), NOTHING, [4, 6], [0.9, 0.8])
        logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        whole = logits.clone()
        if pruned:
            whole[:, [0, 3, 5]] = -torch.inf
        adjust = Adjustment.of(sequence, lambda: [[4, 6]])
        wanted = choose(whole.nan_to_num(neginf=-1e9), params, torch.tensor([5]), adjust)
        (token, sureness), *others = world.suggester._choose(chain, logits[:, kept] if pruned else logits)
        assert token == int(wanted[0]) and 0 < sureness <= 1
        assert len(others) == OTHERS and all(0 <= less <= sureness and other != token for other, less in others)
        assert not pruned or {other for other, _ in others} <= set(kept.tolist())
        found.add(token)
    assert len(found) > 2


@pytest.mark.parametrize(
    ("suggest", "words"),
    [
        ("suggest=eagel:x", "Did you mean 'eagle'"),
        ("suggest=eagle", "suggest=eagle needs the head that suggests"),
        ("suggest=eagle:nowhere", "nowhere"),
        ("suggest=mtp:x", "give no place"),
        ("suggest=eagle:x,width=2,depth=3", "suggest= makes no sense with a forced width and depth"),
    ],
)
def test_what_cannot_stand_in_front_is_named(suggest: str, words: str) -> None:
    with pytest.raises((UsageError, CheckpointError)) as refusal:
        spec_of(f"substitute:{suggest}").located(offline=True).taps  # noqa: B018
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suggest")
    save(path / "model", "llama", torch.float32)
    layer = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = HeadConfig("eagle", TargetFacts(64, 256, 3), taps=(-1,), layers=1, layer=layer, options={"last_norm": True})
    torch.manual_seed(1)
    head = built(config)
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    save_head(head, path / "head")
    return path


def test_options_beside_a_heads_directory_are_read(tiny: Path) -> None:
    spec: Any = spec_of(f"substitute:suggest=eagle:{tiny / 'head'},guess=off")
    assert spec.taps == (-1,) and spec.guess == "off" and spec.holds_substitute
    with pytest.raises(UsageError, match=r"holds a head of kind eagle, not medusa"):
        spec_of(f"substitute:suggest=medusa:{tiny / 'head'}").taps  # noqa: B018


def test_a_layer_that_the_checkpoint_does_not_bring_is_refused_before_any_work(tiny: Path) -> None:
    assert spec_of("substitute:suggest=mtp").taps
    with pytest.raises(UsageError, match="brings no layer for multi-token prediction"):
        LLM(tiny / "model", method="substitute:suggest=mtp", memory="1GiB", context=64)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_text_is_that_without_a_head_whatever_the_head_says(tiny: Path, temperature: float) -> None:
    params = SamplingParams(max_new_tokens=24, temperature=temperature, seed=5, ignore_eos=True, repetition_penalty=1.1)
    prompts = [[5, 99, 5, 12, 80, 7], [3, 3, 3], list(range(9, 90))]
    options: dict[str, Any] = {"memory": "1GiB", "context": 256, "rows": 2}
    with LLM(tiny / "model", method="none", **options) as llm:
        plain = [done.token_ids for done in llm.generate(prompts, params)]
    method = f"substitute:suggest=eagle:{tiny / 'head'},guess=off"
    with LLM(tiny / "model", method=method, **options) as llm:
        llm.engine.drafter.policy.pace = Costly(dict(COSTS), {1: 1e-4}, rate=20.0)  # type: ignore[attr-defined]
        done = llm.generate(prompts, params)
    assert [one.token_ids for one in done] == plain
    assert sum(one.stats.suggested.get(HEAD, 0) for one in done) > 0 and all(TEXT not in one.stats.suggested for one in done)
