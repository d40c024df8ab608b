"""What is kept on disk is found again by the same model, and by no other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.errors import UsageError
from understudy.models import identity
from understudy.models.identity import identity_of

OPTIONS: dict[str, Any] = {"resident": "none", "memory": "1GiB", "context": 1024, "rows": 2}
PROMPT = [(i * i + i // 3) % 200 + 1 for i in range(500)]
PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("identity") / "model"
    save(path, "llama", torch.bfloat16, max_position_embeddings=2048)
    return path


def test_a_restart_reads_no_prompt_again(model: Path, tmp_path: Path) -> None:
    read, texts, stats = [], [], []
    for _ in range(2):
        with LLM(model, prefix_cache=tmp_path / "prefixes", prefix_cache_size="50MB", **OPTIONS) as llm:
            (done,) = llm.generate([PROMPT], PARAMS)
            assert llm.plan.items["prefixes"] > 64 << 20
            read.append(llm.engine.clock.nodes - done.stats.drafted)
            texts.append(done.token_ids)
            stats.append(done.stats)
    assert texts[0] == texts[1] and read[0] >= 500 and read[1] <= read[0] - 400
    assert stats[0].cached_tokens == 0 and stats[1].cached_tokens == 448
    assert stats[1].bytes_streamed > 0, "weights streamed all the same"
    with LLM(model, method="none", **OPTIONS) as llm:
        assert "prefixes" not in llm.plan.items
        assert llm.generate([PROMPT], PARAMS)[0].token_ids == texts[0]


def test_what_computes_other_bits_has_another_identity(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(model, **OPTIONS) as llm:
        own = identity_of(llm.model)
        assert own == identity_of(llm.model) and len(own) == 64
        with monkeypatch.context() as patch:
            patch.setattr(llm.model.config, "rms_norm_eps", 5.0)
            assert identity_of(llm.model) != own
        with monkeypatch.context() as patch:
            patch.setattr(llm.model, "dtype", torch.float32)
            assert identity_of(llm.model) != own
    with LLM(model, **{**OPTIONS, "bits": 8, "method": "none", "context": 512}) as llm:
        assert identity_of(llm.model) == own, "the copy that drafts does not matter, nor does the room"
    torch.manual_seed(3)
    save(tmp_path / "other", "llama", torch.bfloat16, max_position_embeddings=2048, rms_norm_eps=1e-3)
    with LLM(tmp_path / "other", **OPTIONS) as llm:
        assert identity_of(llm.model) != own


def test_a_place_that_is_no_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be a directory"):
        LLM(model, prefix_cache=tmp_path / "file", **OPTIONS)


def test_a_change_in_any_code_that_computes_is_another_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is left out would let keys that older code computed be read again by newer code."""
    package = Path(identity.__file__).parents[1]
    named = {package / name for name in ("", "kernels/gpu", "devices", "models", "models/recurrent_layers", "models/mixtures")}
    assert named <= set(identity._sources(package))
    with LLM(model, **OPTIONS) as llm:
        usual = identity_of(llm.model)
        for folder in named:
            other = lambda asked, folder=folder: "another" if asked == folder else "same"  # noqa: E731
            monkeypatch.setattr(identity, "stamp", lambda asked: "same")
            same = identity_of(llm.model)
            monkeypatch.setattr(identity, "stamp", other)
            assert identity_of(llm.model) != same
        assert usual != same
