"""The head a checkpoint has is the one transformers takes, or the checkpoint is refused by name: no text from another matrix."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import generated, save, stock
from understudy import LLM, SamplingParams
from understudy.errors import CheckpointError, StoreError
from understudy.models.stock import structure
from understudy.models.stock.heads import head_and_embedding, refuse_other_tasks, refuse_wrong_head, ties_head
from understudy.weights.store import Store

PROMPT = [17, 45, 200, 3, 17, 45, 99]
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def rewrite(directory: Path, added: dict[str, Tensor], dropped: tuple[str, ...] = (), prefix: str = "") -> None:
    """The checkpoint with other tensors; without `prefix` before their names."""
    tensors = load_file(directory / "model.safetensors") | added
    kept = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name not in dropped}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})


def told(directory: Path, method: str = "substitute") -> list[int]:
    with LLM(directory, method=method, memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=24, ignore_eos=True))[0]
    assert method == "none" or done.stats.accepted > 0
    return done.token_ids


def transformers_says(directory: Path) -> list[int]:
    from transformers import AutoModelForCausalLM

    return generated(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval(), PROMPT, 24)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_class_ties_its_head_if_its_config_says_so(family: str, tied: bool) -> None:
    config = stock(family, tie_word_embeddings=tied).config
    assert ties_head(structure.skeleton(config, torch.float32, "eager")) is tied


@pytest.mark.parametrize(
    ("tied", "stored", "found"),
    [
        (False, {HEAD, TABLE}, (HEAD, TABLE)),
        (True, {HEAD, TABLE}, (HEAD, TABLE)),
        (True, {TABLE}, (TABLE, TABLE)),
        (True, {HEAD}, (HEAD, HEAD)),
    ],
)
def test_which_tensors_are_head_and_embedding(tied: bool, stored: set[str], found: tuple[str, str]) -> None:
    model = stock("llama", tie_word_embeddings=tied)
    assert head_and_embedding(model, HEAD, TABLE, lambda name: name if name in stored else None) == found


@pytest.mark.parametrize(
    ("tied", "stored", "missing"), [(False, {TABLE}, HEAD), (False, {HEAD}, TABLE), (True, set(), HEAD)]
)
def test_what_is_missing_is_named(tied: bool, stored: set[str], missing: str) -> None:
    model = stock("llama", tie_word_embeddings=tied)
    with pytest.raises(CheckpointError, match=missing) as refusal:
        head_and_embedding(model, HEAD, TABLE, lambda name: name if name in stored else None)
    assert "LlamaForCausalLM" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_untied_checkpoint_without_a_head_is_refused_before_any_work(prefix: str, tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", tie_word_embeddings=False)
    rewrite(tmp_path / "model", {}, (HEAD,), prefix)
    for call in (LLM, LLM.prepare, LLM.plan_only):
        with pytest.raises(CheckpointError, match=r"no tensor 'lm_head.weight'.*LlamaForCausalLM"):
            call(tmp_path / "model", **({"output": tmp_path / "store"} if call is LLM.prepare else {}))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_classifier_is_refused_by_name(tied: bool, tmp_path: Path) -> None:
    save(tmp_path, "llama", tie_word_embeddings=tied)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    for call in (lambda: LLM(tmp_path), lambda: LLM.plan_only(None, config=tmp_path)):
        with pytest.raises(CheckpointError, match="LlamaForSequenceClassification, which writes no text"):
            call()


@pytest.mark.parametrize(
    "architectures", [None, [], ["LlamaForCausalLM"], ["Qwen3Model"], ["LlamaForCausalLM", "LlamaForTokenClassification"], "x"]
)
def test_architectures_that_may_write_text(architectures: object) -> None:
    refuse_other_tasks(architectures)


@pytest.mark.parametrize(("added", "dropped"), [(True, ()), (True, (TABLE,)), (False, ())])
def test_a_tied_checkpoint_gives_the_tokens_of_transformers(added: bool, dropped: tuple[str, ...], tmp_path: Path) -> None:
    """Its own head stored and other than the embedding; the head alone stored; the embedding alone stored."""
    save(tmp_path, "llama", tie_word_embeddings=True)
    own = torch.randn(256, 64, generator=torch.Generator().manual_seed(5)) * 0.15
    rewrite(tmp_path, {HEAD: own} if added else {}, dropped)
    wanted = transformers_says(tmp_path)
    assert told(tmp_path) == wanted and told(tmp_path, "none") == wanted
    assert len(set(wanted)) > 3


def test_a_bare_base_model_that_is_tied_runs_as_in_transformers(tmp_path: Path) -> None:
    save(tmp_path, "qwen3", tie_word_embeddings=True)
    rewrite(tmp_path, {}, (), "model.")
    assert told(tmp_path) == transformers_says(tmp_path)


def test_a_store_that_took_the_embedding_for_another_head_is_refused(tmp_path: Path) -> None:
    """As versions before this one made it of a checkpoint that is said to be tied and holds a head of its own."""
    model = save(tmp_path / "model", "llama", tie_word_embeddings=True)
    tied = LLM.prepare(tmp_path / "model", output=tmp_path / "tied")
    refuse_wrong_head(model, tied)
    with pytest.raises(StoreError, match="delete it and prepare it again"):
        refuse_wrong_head(stock("llama", tie_word_embeddings=False), tied)
    with_head = dict(vars(tied)) | {"extra": {HEAD: tied.embedding}}
    refuse_wrong_head(model, Store(**with_head))
    other = next(iter(tied.shared.values()))
    with pytest.raises(StoreError, match="the embedding in the place of the model's own head"):
        refuse_wrong_head(model, Store(**(with_head | {"extra": {HEAD: other}})))
