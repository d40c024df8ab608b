"""What decoder blocks of the draft that run in fewer steps are made of (`models.fused`), and the processor's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ..layer_states import FullState
from ..recurrent import RecurrentState
from ..tree import Nodes
from . import draft_channels
from .delta_form import DeltaForm
from .draft_chain import BlockParts, LevelChain
from .draft_channels import ChannelForm
from .draft_delta import mix_delta
from .draft_experts import ExpertProduct
from .draft_layer import attend
from .draft_mixture import DraftMixture
from .draft_product import Joined, Product
from .draft_states import attend_states
from .head_form import HeadForm
from .join_form import GateKind, JoinForm, Norm, apart
from .state_form import StateForm, StateRows

# nodes times tokens they see, of a level, beyond which the stock block's attention may be the faster one on a processor
MANY = 1 << 16


class JoinedProduct(Protocol):
    """Several products of the same rows in one run; see `draft_product.Joined`."""

    @property
    def columns(self) -> int:
        """Numbers of a row that is given."""

    @property
    def outputs(self) -> int:
        """Numbers of a row that is made."""

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """x [m, K] -> [m, outputs], with `added` of that shape added."""


class ChainedBlocks(Protocol):
    """Several blocks in one call; see `draft_chain.LevelChain`."""

    def __call__(self, hidden: Tensor, turns: tuple[Tensor, Tensor], states: Sequence[FullState], nodes: Nodes) -> Tensor:
        """hidden [1, n, hidden size] -> the same shape."""


class MixedExperts(Protocol):
    """The gated MLPs of a layer's experts in one call; see `draft_mixture.DraftMixture`."""

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """hidden [n, K], the experts chosen [n, k] of each row and their weights [n, k] -> [n, K]."""


class ChannelParts(Protocol):
    """What a layer of the delta rule that forgets by channel does beside its products and the rule; see `draft_channels`."""

    def ask(
        self, made: Tensor, state: RecurrentState, nodes: Nodes, form: ChannelForm
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values [n, heads, size] and shares [n, heads] of what the products made [n, columns]."""

    def gate(self, given: Tensor, gates: Tensor, norm: Norm) -> Tensor:
        """given [n, heads, size], normed by heads, and gated by gates [n, heads * size] -> the same shape as those."""


# See `draft_delta.mix_delta`.
DeltaRule = Callable[[Tensor, RecurrentState, Nodes, DeltaForm], Tensor]


class BlockKernels(Protocol):
    """What one device joins products and attends with."""

    def join(self, products: Sequence[Callable[[Tensor], Tensor]], form: JoinForm) -> JoinedProduct | None:
        """The products of one input, as `draft_product.Joined`; None where they cannot be joined. One that is gated may be of a
        weight that holds both, the first above the second."""

    def attend(self, made: Tensor, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: HeadForm) -> Tensor:
        """Attention of `nodes`, as `draft_layer.attend`."""

    def attend_states(
        self, rows: StateRows, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: StateForm
    ) -> Tensor:
        """Attention of `nodes` over latent states, as `draft_states.attend_states`."""

    def attends(self, form: HeadForm, key_size: int) -> bool:
        """Can it attend so, with keys of `key_size` numbers?"""

    def chain(self, parts: Sequence[BlockParts[JoinedProduct]]) -> ChainedBlocks | None:
        """Blocks of which each is given what the one before it gave, in one call; None where each takes one of its own."""

    def mixture(self, up: object, down: object, gate: GateKind) -> MixedExperts | None:
        """The experts of a layer in one call, by their products, as `draft_mixture.DraftMixture`; None where there is none."""

    def small(self, codes: Tensor, scales: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
        """The product by a small weight of so many rows whose `codes` and `scales` may lie anywhere."""

    @property
    def delta(self) -> DeltaRule | None:
        """What a layer of the gated delta rule does between its products; None where there is no kernel for it."""

    @property
    def channels(self) -> ChannelParts | None:
        """What a layer that forgets by channel does around its rule; None where there are no kernels for it."""

    def suits(self, nodes: Nodes) -> bool:
        """Is a level of `nodes` faster so than in stock blocks? It is told by shapes alone where nodes lie on a device."""


class ProcessorBlocks:
    """The processor's own."""

    def join(self, products: Sequence[Callable[[Tensor], Tensor]], form: JoinForm) -> JoinedProduct | None:
        """None where they are of another kind, or round their input in other steps."""
        found = [product for product in products if isinstance(product, Product)]
        if len(found) < len(products) or len({(product.columns, product.step) for product in found}) > 1:
            return None
        own = apart(found, form)
        return Joined(own, form) if own else None

    def attend(self, made: Tensor, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: HeadForm) -> Tensor:
        return attend(made, turns, state, nodes, form)

    def attend_states(
        self, rows: StateRows, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: StateForm
    ) -> Tensor:
        return attend_states(rows, turns, state, nodes, form)

    def attends(self, form: HeadForm, key_size: int) -> bool:
        return True

    def chain(self, parts: Sequence[BlockParts[JoinedProduct]]) -> ChainedBlocks | None:
        own = [found for part in parts if (found := _own(part)) is not None]
        return LevelChain(own) if len(own) == len(parts) else None

    def mixture(self, up: object, down: object, gate: GateKind) -> MixedExperts | None:
        """None where they are of another kind, or the halves of what is gated share a block."""
        if not isinstance(up, ExpertProduct) or not isinstance(down, ExpertProduct) or up.rows % 128 or up.rows != 2 * down.columns:
            return None
        return DraftMixture(up, down, gate)

    def small(self, codes: Tensor, scales: Tensor, rows: int) -> Product:
        return Product(codes, scales, rows)

    @property
    def delta(self) -> DeltaRule:
        return mix_delta

    @property
    def channels(self) -> ChannelParts:
        return draft_channels

    def suits(self, nodes: Nodes) -> bool:
        return len(nodes) * (nodes.last + 1) <= MANY


def _own(parts: BlockParts[JoinedProduct]) -> BlockParts[Joined] | None:
    """`parts` if each of them is one run of the processor's."""
    made, heads, output, gated, down = parts
    products = [product for product in (made, output, gated, down) if isinstance(product, Joined)]
    return BlockParts(products[0], heads, *products[1:]) if len(products) == 4 else None
