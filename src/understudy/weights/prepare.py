"""From a checkpoint to its Store: how large it will be, and that it is made once, by one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..codecs import codec
from ..errors import StoreError
from ..kernels.pack import BLOCK
from ..quantizers import fitting
from ..tiers.memory import aligned
from .building import Building
from .checkpoint import Checkpoint
from .encoding import check_linear, codec_for
from .entries import INDEX, Progress, part_blocks
from .layout import ModelLayout
from .measuring import Measure
from .mixing import quantizers_of
from .recipe import Recipe
from .store import Store
from .writing import ELSEWHERE, explained, lock_of, only_process


def estimate(checkpoint: Checkpoint, layout: ModelLayout, recipe: Recipe) -> int:
    """Bytes of the Store on disk."""
    chosen = codec(recipe.codec)
    weights = {name for spec in layout.linears for name in spec.tensors}
    copied = [checkpoint.info(name) for name in layout.shared if name not in weights]
    if not chosen.linked:
        tables = (checkpoint.info(name) for name in layout.looked_up if name not in weights)
        copied += [*tables, *checkpoint.further(layout)]
    total = sum(aligned(info.nbytes) for info in copied)
    for spec, wanted in zip(layout.linears, quantizers_of(layout, recipe), strict=True):
        dtype = checkpoint.weight_dtype(spec)
        quantizer = fitting(wanted, *spec.shape)
        total += aligned(quantizer.size(*spec.shape, dtype))
        coding = codec_for(spec, recipe.codec, map(checkpoint.info, spec.tensors))
        if quantizer.name != "exact" and not coding.linked:
            bits = coding.bits(dtype, quantizer.name) * spec.shape[1]
            total += sum(aligned(int(bits / 8 * blocks * BLOCK)) for _, blocks in part_blocks(spec.shape, dtype, spec.unit))
        if spec.weight == layout.embedding and not chosen.linked:
            total += checkpoint.info(spec.weight).nbytes
    return total


def prepare(
    checkpoint: Checkpoint,
    layout: ModelLayout,
    directory: Path,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
    measure: Measure | None = None,
    begun: Callable[[], None] = lambda: None,
) -> Store:
    """The Store of `checkpoint` in `directory`: made, finished, or found there.

    `measure` finds out what weighs the errors of a copy; `begun` is called once no other process can make this Store.

    Raises CheckpointError for weights that cannot be prepared, StoreError for a directory that cannot be written or holds something
    else."""
    directory = Path(directory).expanduser().absolute()
    report = progress or (lambda done, total, name: None)
    with explained(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        waiting = partial(report, 0.0, 1.0, "waiting for another process to prepare it")
        with only_process(lock_of(directory), waiting):
            begun()
            if directory.is_dir() and any(directory.iterdir()):
                return found(directory, checkpoint, recipe)
            for spec in layout.linears:
                check_linear(spec, [checkpoint.info(name) for name in spec.tensors])
            needed = estimate(checkpoint, layout, recipe)
            return Building(checkpoint, layout, directory, recipe, report, measure).run(needed)


def found(directory: Path, checkpoint: Checkpoint, recipe: Recipe) -> Store:
    """The Store that is there. Raises StoreError for other files, and for another Store."""
    if not (directory / INDEX).is_file():
        raise StoreError(f"{directory} holds other files: {ELSEWHERE}.")
    store = Store.open(directory)
    if store.source.fingerprint != checkpoint.fingerprint or store.recipe != recipe:
        raise StoreError(f"{directory} holds another Store (of {store.source.name}): delete it, or {ELSEWHERE}.")
    return store
