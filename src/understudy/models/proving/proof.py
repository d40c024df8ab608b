"""Proof before use: a small random copy of a model gives the same logits through our passes as through transformers.

It is made the first time a class of models is met with the switches of its config, before anything is prepared: a prompt, a
branching tree drafted and verified, and what follows an accepted path, two texts side by side, in float32."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ...cache import Cache
from ...devices.processor import Processor
from ...errors import CheckpointError, UnderstudyError, first_line
from ...plan.machine import check_spare
from ...tree import Nodes, TokenTree
from ...weights.checkpoint import TensorInfo
from ...weights.layout import LinearSpec
from ..draft import Draft
from ..embedding import Lookup, TensorRows, sorted_tables
from ..hashed_rows import TableRows
from ..mixtures.routed import Rows, product
from ..stock import structure
from ..stock.known import keep, key_of, recall, transformers_version
from ..streamed import attention_name
from ..target import TILE, Target
from ..unprepared import unprepared
from .shrink import shrunk, values_of
from .specimen import ACCEPTED, LEAVES, LEVELS, PARENTS, Specimen, Text, Unprovable

# In standard deviations of a node's logits. Right passes differ by rounding, 6e-5 at most over forty families; a scale that is a
# fifth too large, a window that is one too wide or a missing cap differ by more than 0.1.
TOLERANCE = 2e-3
# Few layers, narrow ones: where a copy cannot be made so, a larger one that changes less of the config.
SIZES = ((True, True), (False, True), (True, False))
# Bytes that a proof takes at most beside what a process holds, kernels that are compiled for it included; see docs/log.md.
PROVING = 160 << 20
# What another library's model code raises when it is given what it was not written for.
STUMBLES = (
    RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError, ImportError, OSError,
    StrictDataclassError,
)  # fmt: skip


def prove(config: Any, cache: Path) -> None:
    """Raises CheckpointError, naming the model type and what is wrong, unless a small copy of `config` gives the logits that it
    gives in transformers. What was proven once is kept in the directory `cache`, as long as neither library changes.

    Raises UsageError where memory does not hold the copy."""
    name = f"proofs/{config.model_type}-{key_of(config, _switches(config))}.json"
    if recall(cache, name) is not None:
        return
    check_spare(PROVING, "Trying this kind of model in small, which is done once,")
    start = time.perf_counter()
    if (why := fault(config)) is not None:
        raise CheckpointError(f"Model type {config.model_type!r} is not supported with this config: {why}.")
    seconds = round(time.perf_counter() - start, 3)
    keep(cache, name, {"model_type": config.model_type, "transformers": transformers_version(), "seconds": seconds})


def _switches(config: Any) -> dict[str, Any]:
    """The values of a config that a proof holds for."""
    try:
        return values_of(shrunk(config))
    except STUMBLES:
        return values_of(config)


@contextmanager
def _quietly() -> Iterator[None]:
    """transformers' own remarks about a config were made when it was read; those about its small copy would be riddles."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(verbosity)


@_quietly()
def fault(config: Any) -> str | None:
    """What is wrong with a small copy of `config`, in words; None for nothing. A copy that transformers does not run proves
    nothing: where none runs, that is what is wrong."""
    reasons = []
    for few_layers, narrow in SIZES:
        try:
            small = shrunk(config, few_layers, narrow)
            if why := _misbuilt(small):
                return why
            specimen = Specimen.of(small)
        except (*STUMBLES, UnderstudyError, Unprovable) as error:
            reasons.append(first_line(error))
            continue
        return _fault_of(specimen)
    return f"no small copy of it runs in transformers {transformers_version()} to compare with ({reasons[0]})"


def _misbuilt(config: Any) -> str | None:
    """Why the model of a small `config` is not built as one that can be run: seen without its numbers, so in no time. Raises
    CheckpointError where it cannot be built at all, perhaps because it is small."""
    try:
        structure.check_structure(structure.skeleton(config, torch.float32, attention_name()))
    except CheckpointError as error:
        if str(error).startswith(structure.CANNOT_BUILD):
            raise
        return first_line(error)
    return None


def _fault_of(specimen: Specimen) -> str | None:
    try:
        found = differences(specimen)
    except UnderstudyError as error:
        return first_line(error)
    except STUMBLES as error:
        return f"its code in transformers {transformers_version()} does not run with streamed weights ({first_line(error)})"
    for what, size in found.items():
        if not size < TOLERANCE:
            return f"{what} gives other logits than in transformers {transformers_version()}, seen with a small random copy"
    return None


def differences(specimen: Specimen) -> dict[str, float]:
    """By the name of each kind of pass: the largest difference between our logits and the expected ones, in units of the standard
    deviation of the logits of a node."""
    found = {}
    for what, logits in _passes(specimen).items():
        pairs = zip(specimen.texts, specimen.expected, strict=True)
        wanted = torch.cat([_wanted(what, text, along) for text, along in pairs])[-len(logits) :]
        found[what] = float(((logits - wanted).abs().amax(-1) / wanted.std(-1)).max())
    return found


def _wanted(what: str, text: Text, along: Tensor) -> Tensor:
    """[n, vocab]: of the logits `along` the paths of `text`, those that the pass called `what` gives."""
    count = len(text.prompt)
    if what == PROMPT:
        return along[0, :count]
    if what == AFTER:
        return along[LEAVES.index(ACCEPTED[-1]), -1:]
    rows = []
    for node in range(len(PARENTS)):
        leaf = next(i for i, leaf in enumerate(LEAVES) if text.tree.ancestors[leaf, node])
        rows.append(along[leaf, count + int(text.tree.depths[node])])
    return torch.stack(rows)


PROMPT, DRAFT, VERIFY, AFTER = "a prompt", "a drafted tree", "a verified tree", "a token after an accepted path"


def _passes(specimen: Specimen) -> dict[str, Tensor]:
    """[n, vocab] by the name of each kind of pass: its logits for the last n nodes of all texts, text by text."""
    config, tensors, texts = specimen.config, specimen.tensors, specimen.texts
    held = {name: TensorInfo(name, t.dtype, tuple(t.shape), Path(), 0, t.nbytes) for name, t in tensors.items()}
    longest = max(len(text.prompt) for text in texts)
    layout = structure.layout(structure.skeleton(config, torch.float32, attention_name()), held)
    model = unprepared(config, torch.float32, layout, tensors.__getitem__, (len(texts), longest + len(PARENTS) + 1))
    by_token, by_hash = sorted_tables(model.module, layout, (tensors[name] for name in layout.looked_up))
    hashed = {module: TableRows(torch.cat(pieces)) for module, pieces in by_hash.items()}
    embed = Lookup((TensorRows(*each) for each in by_token), hashed)
    device = Processor(threads=1)
    weights = [_whole(spec, tensors) for spec in layout.linears]

    def multiply(index: int, tiles: Sequence[Rows], _: int) -> list[Tensor]:
        return [product(x, weights[index]) for x in tiles]

    target = Target(model.module, model.base, model.current, model.cache, embed, multiply, device)
    linears = {index: partial(product, weight=weight) for index, weight in enumerate(weights)}
    draft = Draft(model.module, model.current, model.cache, embed, linears, device)
    with torch.inference_mode():
        # The first tile runs without its head, as most of a prompt does.
        found = {PROMPT: _run(target, model.cache, [TokenTree.chain(text.prompt) for text in texts], TILE)}
        for row, text in enumerate(texts):
            model.cache.keep(row, torch.arange(len(text.prompt)))
        found[DRAFT] = _levels(draft, model.cache, texts)
        found[VERIFY] = _run(target, model.cache, [text.tree for text in texts])
        for row in range(len(texts)):
            model.cache.keep(row, torch.tensor(ACCEPTED))
        found[AFTER] = _run(target, model.cache, [TokenTree.chain([text.last]) for text in texts])
    return found


def _whole(spec: LinearSpec, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight of a Linear [out, in], or of all experts of a layer [experts, out, in]."""
    if spec.turned:
        return tensors[spec.weight].view(spec.stored_shape).transpose(-2, -1)
    if spec.in_turn:
        return torch.cat([tensors[name].view(spec.stored_shape) for name in spec.pieces], dim=1)
    rows = torch.cat([tensors[name] for name in spec.tensors]) if spec.pieces else tensors[spec.weight]
    return rows.view(spec.experts, -1, spec.shape[1]) if spec.experts else rows


def _run(target: Target, cache: Cache, trees: list[TokenTree], first: int = 0) -> Tensor:
    """The logits of the nodes of all trees, from node `first` on."""
    nodes = Nodes.join([Nodes.of(tree, row, cache.lengths[row]) for row, tree in enumerate(trees)])
    return target(nodes, torch.arange(first, len(nodes)))


def _levels(draft: Draft, cache: Cache, texts: Sequence[Text]) -> Tensor:
    """A tree of each text, drafted level by level."""
    found: list[list[Tensor]] = [[] for _ in texts]
    for first, last in LEVELS:
        nodes = Nodes.join([Nodes.of(t.tree, row, cache.lengths[row])[first:last] for row, t in enumerate(texts)])
        for row, logits in enumerate(torch.split(draft(nodes), last - first)):
            found[row].append(logits)
    return torch.cat([torch.cat(levels) for levels in found])
