"""From a checkpoint to its Store: where it goes, how large it is, and that it is made once, by one process."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ..codecs import codec as codec_of
from ..errors import StoreError
from ..quantizers import fitting
from .building import Building
from .checkpoint import Checkpoint
from .files import aligned
from .layout import ModelLayout
from .mixing import Moments, quantizers_of
from .store import INDEX, Progress, Recipe, Store
from .writing import ELSEWHERE, explained, only_process


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where Stores live unless the user says otherwise."""
    if chosen := environment.get("UNDERSTUDY_CACHE"):
        return Path(chosen).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "understudy"


def store_path(
    model: str,
    fingerprint: str,
    quantizer: str = "int4",
    codec: str = "raw",
    head_quantizer: str | None = None,
    *,
    environment: Mapping[str, str],
) -> Path:
    """The directory for the Store of this content, made this way."""
    recipe = [quantizer, codec] if head_quantizer in (None, quantizer) else [quantizer, f"head-{head_quantizer}", codec]
    readable = "-".join([Path(model).name or "model", *recipe, fingerprint[:12]])
    return cache_directory(environment) / "".join(c if c.isalnum() or c in "-._" else "_" for c in readable)


def estimate(
    checkpoint: Checkpoint,
    layout: ModelLayout,
    quantizer: str = "int4",
    codec: str = "raw",
    head_quantizer: str | None = None,
) -> int:
    """Bytes of the Store on disk."""
    recipe = Recipe(quantizer, head_quantizer or quantizer, codec)
    names = {spec.weight for spec in layout.linears}
    total = sum(aligned(info.nbytes) for name, info in checkpoint.tensors.items() if name not in names)
    for spec, wanted in zip(layout.linears, quantizers_of(layout, recipe), strict=True):
        dtype = checkpoint.info(spec.weight).dtype
        maker = fitting(wanted, *spec.shape)
        total += aligned(maker.size(*spec.shape, dtype))
        if maker.name != "exact" and not codec_of(codec).linked:
            total += int(codec_of(codec).bits(dtype, maker.name) / 8 * spec.shape[0] * spec.shape[1])
        total += checkpoint.info(spec.weight).nbytes if spec.weight == layout.embedding else 0
    return total


def prepare(
    checkpoint: Checkpoint,
    layout: ModelLayout,
    directory: Path,
    *,
    quantizer: str = "int4",
    codec: str = "raw",
    head_quantizer: str | None = None,
    progress: Progress | None = None,
    measure: Callable[[], Moments] | None = None,
) -> Store:
    """The Store of `checkpoint` in `directory`: made, finished, or found there. `measure` gives what calibrates a mix."""
    directory = Path(directory).expanduser().absolute()
    recipe = Recipe(quantizer, head_quantizer or quantizer, codec_of(codec).name)
    said = progress or (lambda done, total, name: None)
    with explained(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        waiting = partial(said, 0.0, 1.0, "waiting for another process to prepare it")
        with only_process(directory.with_name(directory.name + ".lock"), waiting):
            if directory.is_dir() and any(directory.iterdir()):
                return _already(directory, checkpoint, recipe)
            needed = estimate(checkpoint, layout, quantizer, codec, head_quantizer)
            return Building(checkpoint, layout, directory, recipe, said, measure).run(needed)


def _already(directory: Path, checkpoint: Checkpoint, recipe: Recipe) -> Store:
    if not (directory / INDEX).is_file():
        raise StoreError(f"{directory} holds other files: {ELSEWHERE}.")
    store = Store.open(directory)
    if store.source.fingerprint != checkpoint.fingerprint or store.recipe != recipe:
        raise StoreError(f"{directory} holds another Store (of {store.source.name}): delete it, or {ELSEWHERE}.")
    return store
