"""What a trained head knows of a text goes to disk with the prefix that the target keeps, and comes back as it was."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import trained
from tests.mtp import MTP, publish_mtp, several_tensors
from tests.tiny import opened, save, stock
from understudy import LLM, SamplingParams
from understudy.drafters.head_suggest import HeadSuggester
from understudy.errors import UsageError
from understudy.heads.files import built
from understudy.heads.files import save as save_head

STEM = [(7 * place) % 199 + 1 for place in range(330)]
# The second parts from the first within a block, the third at the end of one, where the head has a block less than the target.
PROMPTS = [[*STEM, 5, 6], [*STEM[:300], 9, 8, 7], [*STEM[:256], 250, 3, 4]]
PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)


def answer(model: Path, method: str, prompt: list[int], prefixes: Path | None) -> tuple[list[int], list[Tensor], int]:
    """As a process of its own: the tokens, what the head's cache holds of the prompt, and how many tokens came from disk."""
    with opened(model, method=method, context=512, prefix_cache=prefixes) as llm:
        request = llm.request(prompt, PARAMS)
        llm.scheduler.complete([request])
        sequence, proposer = request.sequence, llm.engine.drafter.proposer  # type: ignore[attr-defined]
        own = proposer.own_cache
        held = own.cache.taken(0, 0, len(prompt) - own.skipped)
        return sequence.tokens, [held[name] for name in sorted(held)], sequence.loaded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("own") / "model"
    save(directory, "qwen2", torch.bfloat16, max_position_embeddings=512)
    return directory


def head(directory: Path, kind: str, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    made = built(trained.config(kind))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    save_head(made.requires_grad_(False), directory)
    return directory


@pytest.mark.parametrize("method", ["eagle:{},width=1,depth=2", "substitute:suggest=eagle:{}", "medusa:{},width=1,depth=2"])
def test_a_head_goes_on_after_a_prefix_from_disk_as_if_it_had_read_it(
    model: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One in front of so small a copy hardly pays, and reads a text when it is asked first.
    monkeypatch.setattr(HeadSuggester, "_asks", lambda *given: True)
    kind = "medusa" if "medusa" in method else "eagle"
    method = method.format(head(tmp_path / "head", kind))
    loaded = []
    for number, prompt in enumerate(PROMPTS):
        found, kept, count = answer(model, method, prompt, tmp_path / "prefixes")
        loaded.append(count)
        if number == 0:
            continue
        text, held, _ = answer(model, method, prompt, None)
        assert found == text
        assert len(held) == len(kept) and all(map(torch.equal, held, kept)), "the head's cache is that of one that read the text"
        assert bool(held) == (kind == "eagle")
    # The target reads the last token again, for its hidden state.
    assert loaded == [0, 255, 192]


@pytest.mark.parametrize("method", ["mtp:width=1,depth=3", "substitute:suggest=mtp"])
def test_several_layers_go_on_after_a_prefix_from_disk(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadSuggester, "_asks", lambda *given: True)
    family, sizes = "glm4", {"max_position_embeddings": 512}
    tensors = several_tensors(family, torch.bfloat16, stock(family, torch.bfloat16, **MTP[family].changes))
    publish_mtp(tmp_path / "model", family, torch.bfloat16, tensors, num_nextn_predict_layers=3, **sizes)
    loaded = []
    for prompt in PROMPTS:
        found, kept, count = answer(tmp_path / "model", method, prompt, tmp_path / "prefixes")
        loaded.append(count)
        text, held, _ = answer(tmp_path / "model", method, prompt, None)
        assert found == text and len(held) == len(kept) == 6
        # A further layer may be given one token alone where another route gave it several: products round otherwise there.
        near = (torch.allclose(one.float(), other.float(), atol=0.1) for one, other in zip(held, kept, strict=True))
        assert all(near), "the layers' caches are those of some that read the text"
    # The target reads a token for each layer again, and what lies in whole blocks of all layers.
    assert loaded == [0, 253, 192]


def test_what_another_head_kept_is_not_taken(model: Path, tmp_path: Path) -> None:
    answer(model, f"eagle:{head(tmp_path / 'one', 'eagle')},width=1,depth=2", PROMPTS[0], tmp_path / "prefixes")
    method = f"eagle:{head(tmp_path / 'two', 'eagle', 1)},width=1,depth=2"
    _, held, _ = answer(model, method, PROMPTS[0], None)
    _, kept, loaded = answer(model, method, PROMPTS[0], tmp_path / "prefixes")
    # The target's blocks are there, and a head that knows nothing has it read all of them again.
    assert loaded == 0 and all(map(torch.equal, held, kept))


def test_hidden_states_of_all_tokens_and_prefixes_exclude_each_other(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keeps no hidden states"):
        LLM(model, method="none", taps=(-1,), prefix_cache=tmp_path / "prefixes", memory="1GiB", context=64)
