"""Layers of the gated delta rule in fewer steps, for levels of the draft: all their products of one input are one run, and so is
what comes between these and the product of the output. Taken over, as blocks are (`fused`), where that gives the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...kernels.blocks import BlockKernels, DeltaRule, JoinedProduct
from ...kernels.delta_form import DeltaForm, DeltaLine
from ...kernels.join_form import JoinForm, Norm
from ...quantizers import quantizer
from ..recurrent_layers.gated_delta import GatedDelta, Qwen3NextGatedDelta, Qwen35GatedDelta
from ..streamed import StreamedLinear
from .block_samples import Sample
from .block_structure import BlockModules
from .fused import TYPES, LevelPass, alike
from .joiner import Joiner, norm_of

# The Linears of a layer's inputs: queries, keys and values, gates, shares and decays; or what belongs to one head of keys together.
APART = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
BY_HEADS = ("in_proj_qkvz", "in_proj_ba")
# of those that are not streamed
SMALL = "int8"


@dataclass(frozen=True)
class FusedDelta:
    """The first half of a block of the gated delta rule: hidden states x [n, hidden size] -> x and what the rule adds to it."""

    kernels: BlockKernels
    rule: DeltaRule
    made: JoinedProduct
    form: DeltaForm
    output: JoinedProduct
    layer: int

    def __call__(self, x: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass) -> Tensor:
        state = level.cache.advanced(self.layer, level.tops)
        return self.output(self.rule(self.made(x), state, level.nodes_in(self.layer), self.form), x)

    def alike(self, sample: Sample, level: LevelPass) -> bool:
        """Whether it gives what the stock layer gave."""
        state = level.cache.recurrent[self.layer]
        if not self.form.suits(state, self.made.outputs) or state.inputs.dtype != sample.given.dtype:
            return False
        added = self(sample.given[0], sample.turns, level) - sample.given[0]
        return alike(sample.middle[0] - sample.given[0], added)


def fused_delta(stock: BlockModules, sample: Sample, joiner: Joiner) -> FusedDelta | None:
    """The mixer of a stock block, which gave `sample`, in fewer steps; None where it is of another kind, or a part not as usual."""
    mixer, (before, after, _, _) = stock.attention, stock.norms
    norm, gated = norm_of(before), _gated_norm_of(getattr(mixer, "norm", None))
    if not isinstance(mixer, (Qwen35GatedDelta, Qwen3NextGatedDelta)) or norm is None or gated is None or after is not None:
        return None
    apart = isinstance(mixer, Qwen35GatedDelta)
    linears = [getattr(mixer, name) for name in (APART if apart else BY_HEADS)]
    rule = joiner.kernels.delta
    usual = mixer.conv1d.bias is None and sample.given.dtype in TYPES and stock.times == 1
    made = joiner.kernels.join(products_of(linears, joiner), JoinForm(norm)) if usual else None
    output = joiner([mixer.out_proj])
    if rule is None or made is None or output is None:
        return None
    rates, shifts = mixer.A_log.detach().float().exp().contiguous(), mixer.dt_bias.detach().float().contiguous()
    line, weight = (_apart if apart else _by_heads)(mixer), mixer.conv1d.weight.detach()[:, 0].contiguous()
    line = DeltaLine(*(part.to(rates.device) for part in line.parts))
    form = DeltaForm(line, weight, rates, shifts, gated)
    return FusedDelta(joiner.kernels, rule, made, form, output, sample.layer)


def _gated_norm_of(module: nn.Module | None) -> Norm | None:
    """What a norm of values by heads does, if it is a root mean square norm whose result is multiplied by silu of a gate."""
    epsilon, weight = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
    if module is None or not isinstance(epsilon, float) or not isinstance(weight, Tensor):
        return None
    ones = torch.ones_like(weight)[None]
    found = module(ones, ones)[0].float() / nn.functional.silu(torch.ones(()))
    return Norm(found.contiguous() * (1 + epsilon) ** 0.5, epsilon)


def products_of(linears: Sequence[nn.Module], joiner: Joiner) -> list[Callable[[Tensor], Tensor]]:
    """The draft's products of `linears`; those that are not streamed, which are small, get a copy for it."""
    found: list[Callable[[Tensor], Tensor]] = []
    for linear in linears:
        if isinstance(linear, StreamedLinear):
            found.append(joiner.linears[linear.index])
        else:
            weight = linear.get_parameter("weight").detach().cpu()
            tensors = quantizer(SMALL).quantize(weight)
            found.append(joiner.kernels.small(tensors["codes"], tensors["scales"], len(weight)))
    return found


def _apart(mixer: GatedDelta) -> DeltaLine:
    """The line that the products by the Linears of APART make."""
    channels, values = len(mixer.conv1d.weight), mixer.value_heads * mixer.value_size
    sizes = [channels, values, mixer.value_heads, mixer.value_heads]
    inputs, gates, betas, decays = torch.split(torch.arange(sum(sizes)), sizes)
    return DeltaLine(inputs, gates[:: mixer.value_size].contiguous(), betas, decays)


def _by_heads(mixer: GatedDelta) -> DeltaLine:
    """The same for BY_HEADS."""
    each, key_size, heads = mixer.value_heads // mixer.key_heads, mixer.key_size, mixer.key_heads
    wide = each * mixer.value_size
    first, second = 2 * key_size + 2 * wide, 2 * each
    joined, small = torch.split(torch.arange(heads * (first + second)), [heads * first, heads * second])
    query, key, value, gates = torch.split(joined.view(heads, first), [key_size, key_size, wide, wide], dim=1)
    betas, decays = torch.split(small.view(heads, second), [each, each], dim=1)
    channels = torch.cat([part.flatten() for part in (query, key, value)])
    return DeltaLine(channels, gates[:, :: mixer.value_size].flatten(), betas.flatten(), decays.flatten())
