"""What CONTRIBUTING promises: an extension is one new file and one line in a table. Each toy here lies outside the package."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.codecs import CODECS
from understudy.devices import DEVICES
from understudy.errors import UsageError
from understudy.frontends import COMMANDS, main
from understudy.policies import POLICIES
from understudy.quantizers import QUANTIZERS
from understudy.tiers import TIERS

PROMPT = "def draft(tree):\n    for node in tree:"
PARAMS = SamplingParams(max_new_tokens=24, ignore_eos=True)
OPTIONS: dict[str, Any] = {"resident": "none", "memory": "1GiB", "context": 256, "rows": 1}


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "outside"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extensions") / "model"
    save(path, "llama", torch.bfloat16)
    return path


@pytest.fixture(scope="module")
def plain(model: Path) -> list[int]:
    with LLM(model, method="none", **OPTIONS) as llm:
        return llm.generate(PROMPT, PARAMS)[0].token_ids


def test_a_codec(model: Path, plain: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "inverted", "toy_codec:Inverted")
    from toy_codec import Inverted  # type: ignore[import-not-found]

    with LLM(model, codec="inverted", **OPTIONS) as llm:
        done = llm.generate(PROMPT, PARAMS)[0]
        llm.store.verify()
    assert done.token_ids == plain and done.stats.bytes_streamed > 0 and done.stats.accepted > 0
    assert Inverted.encoded > 0 and Inverted.decoded > 0


def test_a_quantiser(model: Path, plain: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTIZERS, "signs", "toy_quantizer:Signs")
    from toy_quantizer import Signs  # type: ignore[import-not-found]

    with LLM(model, quantizer="signs", **OPTIONS) as llm:
        done = llm.generate(PROMPT, PARAMS)[0]
        assert {entry.quantizer for entry in llm.store.linears.values()} == {"signs"}
    assert done.token_ids == plain and done.stats.drafted > 0 and Signs.used > 0


def test_a_device(
    model: Path, plain: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named on the command line too, and asked for all that a processor is: memory, transfers, products, attention."""
    monkeypatch.setitem(DEVICES, "distant", "toy_device:Distant")
    from toy_device import Distant  # type: ignore[import-not-found]

    with LLM(model, device="distant", host_memory="4GiB", codec="raw", **OPTIONS) as llm:
        done = llm.generate(PROMPT, PARAMS)[0]
        assert isinstance(llm.model.device, Distant) and llm.plan.device == "distant"
    assert done.token_ids == plain and done.stats.bytes_streamed > 0 and done.stats.accepted > 0
    assert Distant.attended > 0 and Distant.multiplied > 0 and done.stats.peak_memory_bytes == 123
    assert main(["plan", str(model), "--device", "distant", "--memory", "1GiB"]) == 0
    assert "(distant)" in capsys.readouterr().out
    assert main(["plan", str(model), "--device", "distent"]) == 2
    assert "Did you mean distant?" in capsys.readouterr().err


def test_a_tier(model: Path, plain: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TIERS, "prompt", "toy_tier:Prompt")
    from toy_tier import Prompt  # type: ignore[import-not-found]

    with LLM(model, tier="prompt", **OPTIONS) as llm:
        done = llm.generate(PROMPT, PARAMS)[0]
        assert llm.model.ring is not None and isinstance(llm.model.ring.tier, Prompt)
    assert done.token_ids == plain and done.stats.accepted > 0
    assert Prompt.opened == 1 and Prompt.read >= done.stats.bytes_streamed > 0
    with pytest.raises(UsageError, match="Did you mean 'prompt'"):
        LLM(model, tier="promt", **OPTIONS)
    with pytest.raises(UsageError, match="the processor takes --tier disk"):
        LLM(model, tier="pinned", **OPTIONS)


def test_a_policy(model: Path, plain: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "newest", "toy_policy:Newest")
    from toy_policy import Newest  # type: ignore[import-not-found]

    with LLM(model, policy="newest:most=2", **{**OPTIONS, "rows": 3}) as llm:
        done = llm.generate([PROMPT] * 4, PARAMS)
    assert [completion.token_ids for completion in done] == [plain] * 4 and Newest.selected > 0
    first, *_, last = (completion.stats.ttft_seconds for completion in done)
    assert last < first, "the newest request goes first"


def test_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(COMMANDS, "count", "toy_command:command")
    assert main(["count", "a", "b", "c"]) == 0 and capsys.readouterr().out == "3\n"
    assert main(["--help"]) == 0 and "count words" in capsys.readouterr().out
    assert main(["cuont"]) == 2 and "Did you mean 'count'" in capsys.readouterr().err
