"""What decoder blocks of the draft that run in fewer steps are made of on a GPU: five launches a block, where the codes of a
block's joined products have the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ...layer_states import FullState
from ...tree import Nodes
from ..attention import AttentionSpec
from ..blocks import ChainedBlocks, JoinedProduct
from ..draft_chain import BlockParts
from ..draft_product import Norm
from .draft_layer import LayerAttention, suits
from .draft_product import MOST_JOINED, GroupedProduct, JoinedGrouped


class TritonBlocks:
    """The kernels of one GPU, which torch calls `where`."""

    def __init__(self, where: str) -> None:
        self._attention = LayerAttention(where)

    def join(
        self,
        products: Sequence[Callable[[Tensor], Tensor]],
        norm: Norm | None,
        biases: Sequence[Tensor | None],
        gated: bool,
    ) -> JoinedProduct | None:
        """None where they are of another kind, or too many."""
        found = [product for product in products if isinstance(product, GroupedProduct)]
        if len(found) < len(products) or len(found) > MOST_JOINED or len({product.columns for product in found}) > 1:
            return None
        return JoinedGrouped(found, norm, biases, gated)

    def attend(
        self, made: Tensor, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, spec: AttentionSpec
    ) -> Tensor:
        return self._attention(made, turns, state, nodes, spec)

    def chain(self, parts: Sequence[BlockParts[JoinedProduct]]) -> ChainedBlocks | None:
        # launches are recorded, and cost the host nothing
        return None

    def suits(self, nodes: Nodes) -> bool:
        """Levels of a search are, however many nodes they have: what is decided by values would make the host wait."""
        return suits(nodes)
