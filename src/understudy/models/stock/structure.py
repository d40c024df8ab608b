"""The structure of a model: its decoder blocks, their Linears in the order a pass uses them, its head.

Nothing here depends on an architecture's names; what cannot be run exactly is refused by name before any work is done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ...errors import CheckpointError
from ...kernels.pack import BLOCK
from ...weights.checkpoint import TensorInfo
from ...weights.encoding import check_weight
from ...weights.layout import LinearSpec, ModelLayout, TableSpec
from ..hashed_rows import HashedTable
from ..kept import float32_names, is_linear, may_be_kept, routers, streams, whole_numbers
from ..mixtures.experts import experts_name, stacks, watching
from ..mixtures.grouped_linears import install_grouped_linears
from ..mixtures.lone_stacks import install_lone_stacks
from ..mixtures.plain_experts import install_plain_experts
from ..mixtures.scaled_experts import install_scaled_experts
from ..mixtures.shared_stacks import install_shared_stacks
from ..mixtures.tall_experts import install_tall_experts
from ..mixtures.token_routers import install_token_routers
from ..recurrent_layers.mixers import install_mixers
from .alternating import as_stored, install_alternating
from .aside import left_aside, no_weights
from .attended import TOKENS, watched
from .bare import CONSTRUCTION, stacks_on_meta, weights_on_meta
from .by_token import noted_lookups
from .changed_tensors import changed_shapes
from .compressors import install_compressors
from .heads import head_and_embedding, ties_head
from .hf import leave_pads_alone, refused
from .indexers import install_indexers
from .names import finder
from .near_bias import install_near_bias
from .ngrams import install_ngrams
from .own_attention import install_own_attention
from .own_positions import tell_positions
from .pooled_index import install_pooled_indices
from .refusals import refuse_packed
from .ropes import fix_ropes
from .shared_blocks import install_shared_blocks
from .stack_tensors import of_experts, packed_by_outputs
from .stored_tensors import buffers_found, hashed_tables, pieces_of, stored_buffers, tables_shapes
from .turned import is_turned, on_meta, turn
from .wrapper import built, cut_to_text, for_text, is_wrapper, straight_to_text, text_parts

# How the refusal of a config begins of which transformers makes no model.
CANNOT_BUILD = "transformers cannot build"


def skeleton(config: Any, dtype: torch.dtype, attention: str) -> nn.Module:
    """The stock causal model of a transformers `config`, without weights; of a wrapper's, its language model and head.

    Raises CheckpointError where it cannot be built."""
    what = f"{CANNOT_BUILD} a {config.model_type!r} model from its config"
    told = {"attn_implementation": for_text(config, attention), "experts_implementation": experts_name()}
    with refused(what, config.to_dict()), weights_on_meta(), on_meta(), stacks_on_meta():
        try:
            model = built(config, dtype=dtype, **told)
        except KeyError as error:
            if error.args != (attention,):
                raise
            # its class looks implementations up in a table of its own
            model = built(config, dtype=dtype, **{**told, "attn_implementation": "eager"})
    own = attention != "eager" and install_own_attention(model, attention)
    made: Any = model.config
    if not own and made._attn_implementation not in (attention, for_text(config, attention)):
        raise CheckpointError(f"transformers has no way to replace the attention of a {config.model_type!r} model.")
    if is_wrapper(config):
        cut_to_text(model)
        straight_to_text(model)
    turn(model)
    leave_pads_alone(model)
    fix_ropes(model)
    install_mixers(model)
    install_scaled_experts(model)
    install_compressors(model)
    install_indexers(model)
    install_pooled_indices(model)
    install_ngrams(model)
    install_token_routers(model)
    install_grouped_linears(model)
    install_plain_experts(model)
    install_tall_experts(model)
    install_lone_stacks(model)
    install_shared_stacks(model)
    install_alternating(model)
    install_shared_blocks(model)
    install_near_bias(model)
    tell_positions(model)
    return model.eval()


def stock(config: Any) -> nn.Module:
    """The stock causal model of a transformers `config` in float32, with the weights it starts from.

    That of a wrapper's is whole, and runs its own code for texts; but only its language model and head hold memory for matrices,
    which are zeros, and what else that code calls, from its first call on."""
    # The way that takes experts of any width.
    told = {"experts_implementation": "eager"}
    if not is_wrapper(config):
        with CONSTRUCTION:
            return built(config, dtype=torch.float32, **told).eval()
    with weights_on_meta(), stacks_on_meta():
        model = built(config, dtype=torch.float32, **told)
    _give_memory(module for part in text_parts(model) for module in part.modules())
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: _give_memory((module,)))
    return model.eval()


def _give_memory(modules: Iterable[nn.Module]) -> None:
    """Zeros in the place of the `modules`' own parameters that hold no memory; tied ones stay tied."""
    real: dict[int, nn.Parameter] = {}
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in real:
                    real[id(parameter)] = nn.Parameter(torch.zeros_like(parameter, device="cpu"))
                module._parameters[name] = real[id(parameter)]


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The ModuleList of decoder blocks and its name: the longest list of modules that hold Linears."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    best = [(name, m) for name, m in lists if any(isinstance(part, nn.Linear) for part in m.modules())]
    if not best:
        others = (part for _, m in lists for part in m.modules() if any(p.dim() == 2 for p in part.parameters(recurse=False)))
        other = next((type(part).__name__ for part in others if not isinstance(part, nn.Embedding)), "")
        why = f"keeps its weights in modules of class {other}, not in nn.Linear" if other else "has no list of decoder blocks"
        raise CheckpointError(f"{type(model).__name__} {why}; it cannot be streamed.")
    return max(best, key=lambda item: len(item[1]))


def streamed_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Module name -> Linear, for the decoder blocks and the head, in definition order: those whose weights stream. Refuses blocks
    with other weights that are too large to be kept."""
    name, blocks = decoder_blocks(model)
    in_float32 = float32_names(model, torch.bfloat16)
    deciding = routers(blocks)
    paths = ((f"{name}.{path}", m) for path, m in blocks.named_modules() if m not in deciding)
    found: dict[str, nn.Linear] = {path: m for path, m in paths if streams(m, in_float32(f"{path}.weight"))}
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not is_linear(head):
        raise CheckpointError(f"{type(model).__name__} has no linear output head; it cannot be streamed.")
    inside = {id(p) for m in found.values() for p in m.parameters()}
    inside |= {id(stack.parameter) for stack in stacks(model).values()}
    inside |= {id(m.weight) for m in blocks.modules() if isinstance(m, HashedTable)}
    for path, parameter in blocks.named_parameters():
        if id(parameter) not in inside and not may_be_kept(parameter):
            what = f"is a weight {list(parameter.shape)} outside any plain Linear"
            owner = type(blocks.get_submodule(path.rpartition(".")[0])).__name__
            raise CheckpointError(f"{name}.{path} {what} (in a module of class {owner}); this is not supported yet.")
    found[next(path for path, m in model.named_modules() if m is head)] = head
    return found


def check_structure(model: nn.Module) -> None:
    """Raise CheckpointError for a stock `model` whose weights or whose pass are not built as those that can be run."""
    trace(model, streamed_linears(model))


@dataclass(frozen=True)
class Trace:
    """What a forward pass does, seen by hooks on one without numbers (meta tensors)."""

    # The streamed Linears, and the stacks of experts, in the order in which it uses them.
    order: list[str]
    # The embedding modules that it looks up by token.
    looked_up: list[str]
    # By stack: to how many experts each token goes.
    chosen: dict[str, int]


def trace(model: nn.Module, linears: Mapping[str, nn.Linear]) -> Trace:
    """What a forward pass of the stock `model` does. Raises CheckpointError for one that could not be run in tiles."""
    order: list[str] = []
    chosen: dict[str, int] = {}
    mixed = stacks(model)
    hooks = [m.register_forward_pre_hook(lambda *_, path=path: order.append(path)) for path, m in linears.items()]
    mixing: list[str] = []
    convolutions = ((path, m) for path, m in model.named_modules() if isinstance(m, _ConvNd))
    hooks += [m.register_forward_pre_hook(lambda *_, path=path: mixing.append(path)) for path, m in convolutions]
    meta = {name: torch.empty_like(p, device="meta") for name, p in (*model.named_parameters(), *model.named_buffers())}
    tokens, positions = (torch.zeros(1, TOKENS, dtype=torch.int64, device="meta") for _ in range(2))
    config: Any = model.config
    # Old kinds are encoders by default, and transformers' code for those may not get as far as its attention.
    encodes = getattr(config, "is_decoder", None) is False
    why = " (is_decoder is false in it: an encoder, which writes no text)" if encodes else ""
    what = f"A pass of {type(model).__name__} does not run with its config{why}"
    try:
        with torch.no_grad(), refused(what, config.to_dict(), "It is not supported."), watched(model), (
            watching(mixed, order, chosen)
        ), noted_lookups(model, tokens, order) as found:
            torch.func.functional_call(
                model, meta, args=(), kwargs={"input_ids": tokens, "position_ids": positions, "use_cache": False}
            )
    finally:
        for hook in hooks:
            hook.remove()
    if mixing:
        raise CheckpointError(f"{mixing[0]} is a convolution over neighbouring tokens; this is not supported yet.")
    odd = next((path for path in [*linears, *mixed] if order.count(path) != 1), None)
    if odd is not None:
        how = "more than once" if odd in order else "not at all, or not as a Linear or the experts of a layer"
        raise CheckpointError(f"A pass of {type(model).__name__} uses {odd} {how}; this is not supported yet.")
    return Trace(order, found, chosen)


def layout(model: nn.Module, tensors: Mapping[str, Any], seen: Trace | None = None) -> ModelLayout:
    """Match the model's parameters, and the buffers that are stored, with the checkpoint's tensor names. seen: what a pass does,
    where that is known."""
    linears = streamed_linears(model)
    seen = seen or trace(model, linears)
    order, head = seen.order, seen.order[-1]
    embedding = next(path for path, m in model.named_modules() if m is model.get_input_embeddings())  # type: ignore[operator]
    find = finder(model, tensors)

    def stored(parameter: str) -> str:
        name = next(iter(find.sources(parameter)), None)
        if name is None:
            refuse_packed(parameter, tensors)
            how = find.conversion(parameter)
            why = "it does not fit" if how is None else f"it would be made of {how}, which is not supported yet, for"
            raise CheckpointError(f"The checkpoint has no tensor {parameter!r}; {why} {type(model).__name__}.")
        return name

    mixed = stacks(model)
    weight_of = {path: stored(f"{path}.weight") for path in order[:-1] if path not in mixed}
    weight_of[head], table = head_and_embedding(model, f"{head}.weight", f"{embedding}.weight", find)
    tables = [TableSpec(path, stored(f"{path}.weight")) for path in dict.fromkeys(seen.looked_up) if path != embedding]
    tables += hashed_tables(model, find)

    def spec_of(path: str) -> LinearSpec:
        if path not in mixed:
            outputs, inputs = linears[path].weight.shape
            joined = find.sources(f"{path}.weight")
            pieces = joined if len(joined) > 1 else ()
            return LinearSpec(path, weight_of[path], (outputs, inputs), is_turned(model, path), pieces=pieces)
        stack, names = mixed[path], find.sources(path) or (stored(path),)
        names = of_experts(path, stack, names, tensors)
        return LinearSpec(
            path, names[0], stack.shape, stack.turned and not packed_by_outputs(tensors[names[0]]), experts=stack.experts,
            chosen=seen.chosen[path], pieces=names if len(names) > 1 else (),
        )  # fmt: skip

    specs = tuple(map(spec_of, order))
    aside = [embedding, *(spec.module for spec in tables)]
    skip = {f"{path}.weight" for path in (*order, *aside)} | mixed.keys()
    shared: dict[str, tuple[int, ...]] = {}
    for name, p in model.named_parameters():
        if name not in skip:
            changed = changed_shapes(find, name, model, tensors)
            shared |= changed or pieces_of(find.sources(name) or (stored(name),), tensors, tuple(p.shape))
    buffers, whole = buffers_found(model, find, stored)
    shared |= buffers
    needed: dict[str, tuple[int, ...]] = {name: spec.stored_shape for spec in specs for name in spec.tensors} | shared
    looked_up = (table, *(spec.tensor for spec in tables))
    needed |= tables_shapes(model, looked_up, aside, tensors)
    for name, shape in needed.items():
        check_weight(tensors[name], shape, whole=name in whole)
    if packed := next((name for name in looked_up if getattr(tensors[name], "packed", None)), None):
        raise CheckpointError(f"The checkpoint's table {packed!r} is quantised, which is not supported yet.")
    return ModelLayout(specs, table, tuple(shared), tuple(tables), left_aside(model, find, needed, no_weights(tensors)))


def in_blocks(found: ModelLayout) -> ModelLayout:
    """The layout `found` of a model that is to stream. Raises CheckpointError for experts, or tensors that are one weight together,
    that share blocks of 64 outputs."""
    for spec in found.linears:
        if spec.unit % BLOCK and spec.unit < spec.shape[0]:
            why = f"{spec.module} has matrices of {spec.unit} rows, which is no multiple of {BLOCK}"
            what = "experts" if spec.experts else "weights"
            raise CheckpointError(f"The {what} of this model cannot be streamed yet: {why}.")
    return found


def foretold(model: nn.Module, dtype: torch.dtype, directory: Path) -> dict[str, TensorInfo]:
    """The tensors that a checkpoint of this model has, by name, as its config tells: none can be read."""
    tied = model.get_output_embeddings() if ties_head(model) else None  # type: ignore[operator]
    skip = set() if tied is None else {f"{path}.weight" for path, m in model.named_modules() if m is tied}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False) if name not in skip}
    turned = (name for name in shapes if name.endswith(".weight") and is_turned(model, name.removesuffix(".weight")))
    shapes |= {name: shapes[name][::-1] for name in turned}
    buffers = {name: model.get_buffer(name) for name in stored_buffers(model)}
    shapes |= {name: tuple(buffer.shape) for name, buffer in buffers.items()}
    types = {name: buffer.dtype for name, buffer in buffers.items() if whole_numbers(buffer.dtype)}
    named = ((as_stored(model, name), types.get(name, dtype), shape) for name, shape in shapes.items())
    place = directory / "config.json"
    return {name: TensorInfo(name, own, shape, place, 0, math.prod(shape) * own.itemsize) for name, own, shape in named}
