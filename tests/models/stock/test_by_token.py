"""Tables are found that are looked up by token, or by what is computed from the tokens, and no others."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.tiny import stock
from understudy.errors import CheckpointError
from understudy.models.embedding import Lookup
from understudy.models.proving import proof
from understudy.models.proving.shrink import LACKING, shrunk
from understudy.models.proving.specimen import Specimen
from understudy.models.stock import structure
from understudy.models.streamed import attention_name

BOTH = ["model.embed_tokens", "model.embed_tokens_per_layer"]


def skeleton(family: str, **changes: Any) -> Any:
    return structure.skeleton(stock(family, **changes).config, torch.float32, attention_name())


def found(model: Any) -> list[str]:
    return structure.trace(model, structure.streamed_linears(model)).looked_up


@pytest.mark.parametrize("family", ["gemma4-e", "gemma3n_text"])
def test_tables_that_are_looked_up_by_token_are_found(family: str) -> None:
    """The second kind makes other numbers of the tokens first."""
    assert found(skeleton(family)) == BOTH


def test_a_table_of_positions_is_not_looked_up_by_token() -> None:
    learned = structure.skeleton(AutoConfig.for_model("opt", num_hidden_layers=2), torch.float32, attention_name())
    assert found(learned) == ["model.decoder.embed_tokens"]


def test_a_table_that_lacks_tokens_which_are_looked_up_in_it_is_refused() -> None:
    with pytest.raises(CheckpointError, match="embed_tokens_per_layer has fewer rows than the model has tokens"):
        found(skeleton("gemma4-e", vocab_size_per_layer_input=200))


@pytest.mark.parametrize("family", ["gemma4-e", "gemma3n_text"])
def test_a_table_that_could_not_be_looked_up_before_a_pass_is_refused(family: str) -> None:
    late: Any = skeleton(family)
    given: list[torch.Tensor] = []
    late.model.register_forward_pre_hook(lambda _, args, options: given.append(options["input_ids"]), with_kwargs=True)
    late.model.layers[3].register_forward_pre_hook(lambda *_: late.model.embed_tokens_per_layer((given[-1] + 1).abs()))
    with pytest.raises(CheckpointError, match=r"embed_tokens_per_layer is looked up by token after model\.layers\.2"):
        found(late)


def test_another_row_for_a_token_that_a_table_lacks_is_seen_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shrunk(stock("gemma3n_text").config)
    assert config.vocab_size_per_layer_input == config.vocab_size - LACKING
    specimen = Specimen.of(config)
    assert max(proof.differences(specimen).values()) < proof.TOLERANCE

    def last(self: Lookup, tokens: torch.Tensor) -> torch.Tensor:
        own, beside = self.tables
        beside(tokens.clamp(max=beside.rows - 1))
        return own(tokens)

    monkeypatch.setattr(Lookup, "__call__", last)
    assert max(proof.differences(specimen).values()) > 10 * proof.TOLERANCE
