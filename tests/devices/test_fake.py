"""The whole way of a token on a device: the same tokens as on the CPU, and with drafting those without, to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fake_device
from tests.drafters.world import COSTS, Steady
from tests.fake_device import GIB, FakeDevice
from tests.tiny import save
from understudy import LLM, SamplingParams, sampling
from understudy.devices import DEVICES
from understudy.drafters import device_search
from understudy.drafters.search import SearchDrafter
from understudy.errors import UnderstudyError, UsageError
from understudy.plan.demand import RUNTIME
from understudy.sequence import TokenSequence
from understudy.tiers.pinned import PinnedTier

pytest.importorskip("triton")

from understudy.kernels.gpu import search, token_choice
from understudy.kernels.gpu.filters import least_keys

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
GREEDY = SamplingParams(max_new_tokens=5, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=5, ignore_eos=True, temperature=0.9, seed=3)
FILTERED = [
    SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=0.8, seed=5, **keeping)
    for keeping in ({"top_p": 0.6}, {"top_k": 4, "min_p": 0.02}, {"top_p": 0.9, "top_k": 20, "presence_penalty": 0.4})
]
WARM = SearchDrafter.warm
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevice]:
    """What the fake device was opened as, newest last; it is "--device fake". Drafters do not warm up: the interpreter is slow."""
    made: list[FakeDevice] = []

    def open_fake() -> FakeDevice:
        made.append(FakeDevice(seed=len(made)))
        return made[-1]

    monkeypatch.setattr(fake_device, "open_fake", open_fake)
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    monkeypatch.setattr(SearchDrafter, "warm", lambda self: None)
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Path]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        found[dtype] = tmp_path_factory.mktemp("fake") / "model"
        save(found[dtype], "qwen2", dtype, **SMALL)
    return found


def llm(model: Path, **options: Any) -> LLM:
    return LLM(
        model,
        **{
            "codec": "raw",
            "memory": "2GiB",
            "resident": "none",
            "context": 128,
            "rows": 2,
            "device": "fake",
            **options,
        },
    )


def test_in_float32_the_tokens_are_the_cpus(
    models: dict[torch.dtype, Path], opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    with llm(models[torch.float32], method="none", device="cpu") as cpu:
        plain = [cpu.generate([PROMPT], params)[0].token_ids for params in (GREEDY, SAMPLED)]
    # This one measures its levels first.
    monkeypatch.setattr(SearchDrafter, "warm", WARM)
    for method in ("none", "substitute"):
        with llm(models[torch.float32], method=method) as fake:
            assert method == "none" or fake.engine.drafter.policy.pace.levels  # type: ignore[attr-defined]
            done = [fake.generate([PROMPT], params)[0] for params in (GREEDY, SAMPLED)]
        assert [completion.token_ids for completion in done] == plain
        assert done[0].stats.bytes_streamed > 0 and opened[-1].simulated.copied > 0
    assert done[0].stats.accepted > 0


def test_in_bfloat16_drafting_changes_no_token(models: dict[torch.dtype, Path], opened: list[FakeDevice]) -> None:
    """Nor does the codec, nor where the weights come from: host memory, disk behind it, or memory that cannot be pinned."""
    model, prompts = models[torch.bfloat16], [PROMPT, [7, 8, 9]]
    with llm(model, method="none") as fake:
        plain = [completion.token_ids for completion in fake.generate(prompts, GREEDY)]
        sampled = [fake.generate([prompt], SAMPLED)[0].token_ids for prompt in prompts]
        assert fake.plan.streamed_bytes > 50_000
    for options in ({"codec": "raw", "host_memory": RUNTIME + 50_000}, {"codec": "delta"}):
        with llm(model, **options) as fake:
            done = fake.generate(prompts, GREEDY)
            tier = fake.model.ring.tier  # type: ignore[union-attr]
            assert isinstance(tier, PinnedTier)
            assert (tier.host_bytes <= 50_000) == ("host_memory" in options)
            assert {entry.codec for entry in fake.store.linears.values()} == {options["codec"]}
            if "host_memory" not in options:
                # the nodes of both trees get their tokens in one launch
                assert fake.engine.chooser is not None
                assert [completion.token_ids for completion in fake.generate(prompts, SAMPLED)] == sampled != plain
        assert [completion.token_ids for completion in done] == plain
        assert done[0].stats.accepted > 0


def test_filtered_tokens_are_chosen_by_kernels_in_drafts_and_passes_and_drafting_changes_none(
    models: dict[torch.dtype, Path], opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a greedy text too. No operation of torch drops a token."""
    filtered: list[int] = []

    def counted(logits: torch.Tensor, *given: Any) -> torch.Tensor:
        filtered.append(len(logits))
        return least_keys(logits, *given)

    def by_torch(*given: Any) -> Any:
        raise AssertionError("torch filters")

    for module in (search, token_choice):
        monkeypatch.setattr(module, "least_keys", counted)
    for name in ("keep_likely", "perturb", "perturb_batch"):
        monkeypatch.setattr(sampling, name, by_torch)
    monkeypatch.setattr(device_search, "perturb_batch", by_torch)
    model, prompts = models[torch.bfloat16], [PROMPT, [7, 8, 9]]
    asked = [[params, GREEDY] for params in FILTERED]
    with llm(model, method="none") as fake:
        plain = [[done.token_ids for done in fake.generate(prompts, params)] for params in asked]
        assert filtered and plain[0] != plain[1] != plain[2]
    filtered.clear()
    with llm(model) as fake:
        found = [fake.generate(prompts, params) for params in asked]
        search_run = fake.engine.drafter.search  # type: ignore[attr-defined]
        assert any(kind.filtered for kind in search_run.graphs) and search_run.replayed > 0
        assert any("outline" in graph.launches and "sort" not in graph.launches for graph in search_run.graphs.values())
    assert [[done.token_ids for done in each] for each in found] == plain
    assert sum(done.stats.accepted for each in found for done in each) > 0
    # the nodes of a level and of a pass
    assert len(filtered) > 6 and max(filtered) > 1


def test_what_the_text_suggests_is_accepted_from_one_level_and_changes_no_token(
    models: dict[torch.dtype, Path], opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(SAMPLED, max_new_tokens=10)
    with llm(models[torch.bfloat16], method="none") as fake:
        plain = fake.generate([PROMPT], params)[0].token_ids

    def lookup(sequence: TokenSequence, reach: int) -> list[int]:
        """The text, after what it will say."""
        return [*PROMPT, *plain, *sequence.tokens]

    def priced(drafter: SearchDrafter, *_: Any) -> None:
        """What an interpreter takes says nothing."""
        drafter.policy.pace = Steady(dict(COSTS), rate=60.0)

    monkeypatch.setattr(TokenSequence, "lookup", lookup)
    monkeypatch.setattr(SearchDrafter, "warm", priced)
    levels, rounds = [], []
    for guess in ("off", "on"):
        with llm(models[torch.bfloat16], method=f"substitute:guess={guess}") as fake:
            done = fake.generate([PROMPT], params)[0]
            recorded = fake.engine.drafter.search.graphs  # type: ignore[attr-defined]
        assert done.token_ids == plain
        levels.append(done.stats.levels_per_round * done.stats.rounds)
        rounds.append(done.stats.rounds)
        assert any(kind.guessed for kind in recorded) == (done.stats.suggested != {}) == (guess != "off")
        assert (done.stats.agreed.get("text", 0) >= 2) == (guess != "off")
        assert done.stats.accepted >= done.stats.agreed.get("text", 0)
    assert levels[1] < levels[0] and rounds[1] <= rounds[0]


def test_without_triton_it_is_slower_and_says_so(
    models: dict[torch.dtype, Path], opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_device, "open_fake", lambda: FakeDevice(triton=False, refuse_after=0))
    model = models[torch.bfloat16]
    with llm(model, method="none") as fake:
        plain = fake.generate([PROMPT], GREEDY)[0]
    with llm(model) as fake:
        done = fake.generate([PROMPT], GREEDY)[0]
        assert any("Triton is not installed" in note for note in fake.plan.notes)
        assert fake.model.ring is not None and fake.model.ring.tier.note == "refused to pin"
    assert done.token_ids == plain.token_ids and done.stats.accepted > 0
    with pytest.raises(UsageError, match=r"need Triton on fake, and Triton is not installed: .* --codec raw"):
        llm(model, codec="delta")
    with pytest.raises(UsageError, match="too small: the smallest that works here is 7"):
        llm(model, memory="100MiB")


def test_too_little_memory_of_either_kind_is_said_before_any_work(
    models: dict[torch.dtype, Path], opened: list[FakeDevice]
) -> None:
    for options, message in (
        ({"memory": "700MiB"}, r"--memory 700 MiB is too small: the smallest that works here is \d+ MiB"),
        ({"memory": "5GiB"}, r"--memory 5 GiB is more than the 4 GiB that are free on fake"),
        ({"host_memory": "100MiB"}, "--host-memory 100 MiB is too small: the process itself takes"),
    ):
        with pytest.raises(UsageError, match=message):
            llm(models[torch.float32], **options)
    with pytest.raises(UsageError, match="--host-memory is for an accelerator"):
        llm(models[torch.float32], device="cpu", host_memory="4GiB")


def test_memory_that_somebody_took_after_planning_is_planned_for_once(
    models: dict[torch.dtype, Path], opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shared(FakeDevice):
        """Somebody else takes `theirs` when the first memory is asked for; it cannot be told before."""

        def __init__(self, theirs: int):
            super().__init__(capacity=3 * GIB)
            self.theirs = theirs

        def arena(self, nbytes: int) -> torch.Tensor:
            if self.theirs:
                self.taken, self.theirs = self.taken + self.theirs, 0
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has more. And so on.")
            return super().arena(nbytes)

    said: list[str] = []
    with llm(models[torch.float32], method="none", device="cpu") as cpu:
        plain = cpu.generate([PROMPT], GREEDY)[0].token_ids
    monkeypatch.setattr(fake_device, "open_fake", lambda: Shared(GIB))
    with llm(models[torch.float32], memory="2.5GiB", progress=lambda what, *_: said.append(what)) as fake:
        assert fake.generate([PROMPT], GREEDY)[0].token_ids == plain
        assert fake.plan.budget_bytes == int(2 * GIB * 0.95) and "planned anew for 1.9 GiB" in fake.plan.notes[-1]
        assert fake.plan.notes[-1] in said and "Tried to allocate 20.00 MiB" in said[-1] + fake.plan.notes[-1]
    monkeypatch.setattr(fake_device, "open_fake", lambda: Shared(int(2.9 * GIB)))
    with pytest.raises(UsageError, match=r"too small: the smallest that works here is \d+ MiB"):
        llm(models[torch.float32])


def test_a_device_lost_in_a_request_gives_no_text_then_or_later(
    models: dict[torch.dtype, Path], opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_device, "open_fake", lambda: FakeDevice(triton=False))
    with llm(models[torch.float32], method="none") as fake:
        fake.generate([PROMPT], GREEDY)
        attend = fake.model.device.attend  # type: ignore[union-attr]

        def lost(*_: Any, **__: Any) -> Any:
            raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later.")

        monkeypatch.setattr(fake.model.device, "attend", lost)
        line = r"^fake stopped working in the middle of a request \(CUDA error: unspecified launch failure\): load the model"
        with pytest.raises(UnderstudyError, match=line):
            fake.generate([[9, 9, 4]], GREEDY)
        monkeypatch.setattr(fake.model.device, "attend", attend)
        with pytest.raises(UnderstudyError, match=line):
            fake.generate([PROMPT], GREEDY)


def test_out_of_memory_in_a_request_fails_it_and_the_next_works(
    models: dict[torch.dtype, Path], opened: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_device, "open_fake", lambda: FakeDevice(triton=False))
    with llm(models[torch.float32], method="none") as fake:
        plain = fake.generate([PROMPT], GREEDY)[0].token_ids
        attend, calls = fake.model.device.attend, []  # type: ignore[union-attr]

        def full(*given: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines.")
            return attend(*given, **options)

        monkeypatch.setattr(fake.model.device, "attend", full)
        with pytest.raises(
            UnderstudyError, match=r"^The device ran out of memory in this request \(.*20.00 GiB\): .*--memory"
        ):
            fake.generate([[9, 9, 4]], GREEDY)
        assert fake.generate([PROMPT], GREEDY)[0].token_ids == plain
