"""What decoder blocks of the draft that run in fewer steps are made of on a GPU: five launches a block, where the codes of a
block's joined products have the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ...layer_states import FullState
from ...tree import Nodes
from ..blocks import ChainedBlocks, ChannelParts, DeltaRule, JoinedProduct, MixedExperts
from ..draft_chain import BlockParts
from ..head_form import HeadForm
from ..join_form import GateKind, JoinForm, apart
from ..state_form import StateForm, StateRows
from .delta_layer import mix_delta
from .draft_layer import LayerAttention, suits
from .draft_product import MOST_JOINED, GroupedProduct, JoinedGrouped
from .draft_states import StateAttention


class TritonBlocks:
    """The kernels of one GPU, which torch calls `where`."""

    def __init__(self, where: str) -> None:
        self._attention = LayerAttention(where)
        self._attention_over_states = StateAttention(where)
        self._where = where

    def join(self, products: Sequence[Callable[[Tensor], Tensor]], form: JoinForm) -> JoinedProduct | None:
        """None where they are of another kind, or too many."""
        found = [product for product in products if isinstance(product, GroupedProduct)]
        too_many = form.gate is not None and len(found) > MOST_JOINED
        if len(found) < len(products) or too_many or len({product.columns for product in found}) > 1:
            return None
        own = apart(found, form)
        return JoinedGrouped(own, form) if own else None

    def attend(self, made: Tensor, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: HeadForm) -> Tensor:
        return self._attention(made, turns, state, nodes, form)

    def attend_states(
        self, rows: StateRows, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: StateForm
    ) -> Tensor:
        return self._attention_over_states(rows, turns, state, nodes, form)

    def attends(self, form: HeadForm, key_size: int) -> bool:
        """Norms of all heads of a node together would be known to none of its programs."""
        return not form.gated and all(norm.weight.numel() == key_size for norm in form.norms or ())

    def chain(self, parts: Sequence[BlockParts[JoinedProduct]]) -> ChainedBlocks | None:
        # launches are recorded, and cost the host nothing
        return None

    def mixture(self, up: object, down: object, gate: GateKind) -> MixedExperts | None:
        # the host does not know who goes where, and what it launches for that is recorded
        return None

    def small(self, codes: Tensor, scales: Tensor, rows: int) -> GroupedProduct:
        return GroupedProduct(codes.to(self._where), scales.to(self._where), rows)

    @property
    def delta(self) -> DeltaRule:
        return mix_delta

    @property
    def channels(self) -> ChannelParts | None:
        # no kernel has all of such a layer yet
        return None

    def suits(self, nodes: Nodes) -> bool:
        """Levels of a search are, however many nodes they have: what is decided by values would make the host wait."""
        return suits(nodes)
