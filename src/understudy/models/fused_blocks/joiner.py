"""Makes the parts of fused blocks (`fused`) of the Linears, norms and functions that stock blocks have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from ...kernels.blocks import BlockKernels, JoinedProduct
from ...kernels.head_form import HeadForm, Turning
from ...kernels.join_form import GateKind, JoinForm, Norm
from ..streamed import StreamedLinear
from .block_samples import Sample
from .block_structure import AttentionModules, BlockModules, FurtherModules, LatentModules, MlpModules
from .fused import TYPES, FusedAttention, FusedFurther, FusedMlp
from .fused_latent import LatentProduct
from .fused_states import FusedStates

GATES: dict[GateKind, Callable[[Tensor], Tensor]] = {
    GateKind.SILU: nn.functional.silu,
    GateKind.GELU: partial(nn.functional.gelu, approximate="tanh"),
}


@dataclass(frozen=True)
class Joiner:
    """Joins the draft's products of several Linears of one input."""

    # the draft's product of each Linear, by its index
    linears: Mapping[int, Callable[[Tensor], Tensor]]
    kernels: BlockKernels

    def __call__(
        self, modules: Sequence[nn.Module], norm: Norm | None = None, gate: GateKind | None = None, times: float = 1.0,
        after: Norm | None = None, scale: float = 1.0,
    ) -> JoinedProduct | None:  # fmt: skip
        """None where they cannot be joined."""
        products: list[Callable[[Tensor], Tensor]] = []
        biases: list[Tensor | None] = []
        for module in modules:
            if not isinstance(module, StreamedLinear):
                return None
            products.append(self.linears[module.index])
            biases.append(None if module.bias is None else module.get_parameter("bias"))
        return self.kernels.join(products, JoinForm(norm, biases, gate, times, after, scale))

    def attention(self, parts: AttentionModules, stock: BlockModules, sample: Sample) -> Iterator[FusedAttention]:
        """Ways in which `parts`, the attention of a stock block that gave `sample`, may compute; none where one is not as usual."""
        query, key, value = parts.norms
        # where there are no keys, nothing is made of their norm
        of_queries, of_keys = norm_of(query), norm_of(key or query)
        both = None if of_queries is None or of_keys is None else (of_queries, of_keys)
        output = self._output(parts.output, stock, sample, query, key)
        if both is not None and both[0].epsilon != both[1].epsilon:
            return
        value_epsilon = None if value is None else epsilon_of(value)
        if value is not None and (value_epsilon is None or getattr(value, "weight", None) is not None):
            return
        made = self(parts.linears, norm_of(stock.norms[0]))
        if made is None or output is None or sample.spec is None:
            return
        for gated, turn in product((False, True), Turning):
            form = HeadForm(sample.spec, turn, both, value_epsilon, gated, parts.made)
            yield FusedAttention(self.kernels, made, form, output, sample.layer)

    def latent(self, parts: LatentModules, stock: BlockModules, sample: Sample) -> Iterator[FusedAttention | FusedStates]:
        """The same for attention by a latent state."""
        first = self(parts.linears, norm_of(stock.norms[0]))
        queries = None if parts.queries is None else self([parts.queries[1]], norm_of(parts.queries[0]))
        output = self._output(parts.output, stock, sample, parts.widened[0], parts.queries and parts.queries[0])
        if first is None or output is None or sample.spec is None or (queries is None) != (parts.queries is None):
            return
        forms = [HeadForm(sample.spec, turn, last=True) for turn in Turning]
        norm = norm_of(parts.widened[0])
        if parts.states is not None and norm is not None:
            made = first, queries, norm, parts.states
            yield from (FusedStates(self.kernels, *made, form, output, sample.layer) for form in forms)
            return
        widened = None if parts.states is not None else self([parts.widened[1]], norm)
        if widened is not None:
            whole = LatentProduct(first, queries, widened, parts.heads, parts.turned, parts.value_size)
            own = forms if whole.fits else []
            yield from (FusedAttention(self.kernels, whole, form, output, sample.layer) for form in own)

    def _output(self, linear: nn.Module, stock: BlockModules, sample: Sample, *norms: nn.Module | None) -> JoinedProduct | None:
        """The product of attention's output, with what follows it in a stock block that gave `sample`; None where that, the block's
        first norm, or one of attention's own `norms` is not as usual."""
        before, after, _, _ = stock.norms
        known = all(norm is None or norm_of(norm) is not None for norm in (before, after, *norms))
        usual = known and sample.given.dtype in TYPES and sample.spec is not None
        return self([linear], None, None, stock.times, norm_of(after)) if usual else None

    def further(self, parts: FurtherModules) -> FusedFurther | None:
        """The third part of a block; None where a part of it is not as usual."""
        gate, after = gate_of(parts.act), norm_of(parts.after)
        first, last = self([parts.first]), self([parts.last], None, None, 1.0, after, parts.scale)
        if gate is None or after is None or first is None or last is None or first.outputs != last.columns:
            return None
        return FusedFurther(first, GATES[gate], last)

    def mlp(
        self, parts: MlpModules | None, norm: nn.Module | None = None, times: float = 1.0, after: nn.Module | None = None,
        scale: float = 1.0,
    ) -> FusedMlp | None:  # fmt: skip
        """The gated MLP of `parts`, with `norm` before and `after` it; None where a part of it is not as usual."""
        norms = [(norm, norm_of(norm)), (after, norm_of(after))]
        gate = None if parts is None else gate_of(parts.act)
        if parts is None or gate is None or any(stock is not None and ours is None for stock, ours in norms):
            return None
        gated, down = self(parts.gated, norms[0][1], gate), self([parts.down], None, None, times, norms[1][1], scale)
        if gated is None or down is None or gated.outputs != down.columns:
            return None
        return FusedMlp(gated, down)


def norm_of(module: nn.Module | None) -> Norm | None:
    """What a norm does, if it is a root mean square norm; its weight, of whatever convention, is found by what it makes of ones."""
    epsilon, weight = epsilon_of(module), getattr(module, "weight", None)
    if module is None or epsilon is None or not isinstance(weight, Tensor):
        return None
    ones = module(torch.ones_like(weight)[None])[0]
    return Norm(ones.float().contiguous() * (1 + epsilon) ** 0.5, epsilon)


def epsilon_of(norm: nn.Module | None) -> float | None:
    """What a norm adds to mean squares, if it says so."""
    found = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return found if isinstance(found, float) else None


def gate_of(act: Callable[[Tensor], Tensor] | None) -> GateKind | None:
    """The gate that `act` opens, None: one of another kind. An MLP that names none is taken to use silu."""
    x = torch.linspace(-8, 8, 65)
    known = (gate for gate, own in GATES.items() if act is None or torch.allclose(act(x), own(x), atol=1e-3))
    return next(known, None)
