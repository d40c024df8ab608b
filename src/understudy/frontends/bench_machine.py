"""`understudy doctor --bench`: what this machine reads and computes in a second, measured anew, and kept for all that plans."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .findings import Finding
from .live import Live
from .show import rate

if TYPE_CHECKING:
    from ..plan.machine import Machine
    from ..plan.rounds import Arithmetic

# Bytes of an exact weight and of its copy, for speeds in weights.
EXACT_BYTES = 2.0
COPY_BYTES = 4.5 / 8


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    machine: "Machine"
    arithmetic: "Arithmetic"
    # Bytes per second between host memory and an accelerator; None: there is none.
    accelerator_link: float | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON: bytes per second and seconds."""
        disk = self.machine.disk
        return {
            "memory": self.machine.memory_bandwidth,
            "disk": None if disk is None else asdict(disk),
            "accelerator_link": self.accelerator_link,
            **asdict(self.arithmetic),
        }

    def findings(self) -> Iterator[Finding]:
        """The figures for people."""
        machine, arithmetic = self.machine, self.arithmetic
        yield Finding("memory speed", rate(machine.memory_bandwidth or 0.0))
        if machine.disk is not None:
            how = "direct" if machine.disk.direct else "through the page cache"
            yield Finding("disk speed", f"{rate(machine.disk.bytes_per_second)} {how}", machine.disk.note)
        if self.accelerator_link is not None:
            yield Finding("GPU link", rate(self.accelerator_link))
        yield Finding("draft products", _weights(arithmetic.copy_rate, COPY_BYTES, "4-bit copy, one node"))
        yield Finding("exact products", _weights(arithmetic.plain_rate, EXACT_BYTES, "weights as they lie, one node"))
        yield Finding("decoding", _weights(arithmetic.rebuilt_rate, EXACT_BYTES, "rebuilt and multiplied, one node"))
        more = 100 * arithmetic.node_seconds * arithmetic.rebuilt_rate
        wider = 100 * arithmetic.copy_node_seconds * arithmetic.copy_rate
        yield Finding("more nodes", f"{more:.1f}% of a pass for each, {wider:.1f}% of a draft level")
        level, tile = (f"{1e6 * seconds:.0f} us in a {what}" for seconds, what in (
            (arithmetic.level_layer, "draft level"), (arithmetic.pass_layer, "tile of a pass")))  # fmt: skip
        nodes = f"{1e6 * arithmetic.level_node:.1f} and {1e6 * arithmetic.pass_node:.1f} us for each node"
        yield Finding("each layer", f"{level}, {tile}, {nodes}, beside its products")
        yield Finding("each round", f"{1e3 * arithmetic.round_rest:.1f} ms beside draft and pass")


def _weights(bytes_per_second: float, weight: float, what: str) -> str:
    """A speed in weights and in bytes."""
    return f"{bytes_per_second / weight / 1e9:.2f} G weights/s, {rate(bytes_per_second)} ({what})"


def measure(cache: Path, live: Live) -> Figures:
    """All figures of this machine, measured now and remembered in `cache`. Raises StoreError where the built-in model, whose rounds
    are measured, cannot be prepared there."""
    from ..devices import open_device
    from ..plan.machine import Machine
    from ..yardstick import measured

    live.draw("measuring this machine's arithmetic (about twenty seconds) ...")
    arithmetic = measured(cache, again=True)
    live.draw("measuring memory and disk ...")
    machine = Machine.inspect()
    # The built-in model was prepared there at least.
    if (file := largest(cache)) is not None:
        machine = machine.measured(file, cache, again=True)
    link = open_device("cuda").link_bytes_per_second(0.0) if machine.gpu is not None else None
    return Figures(machine, arithmetic, link)


# A shorter file is read before a disk shows how fast it is.
ENOUGH_TO_MEASURE = 4 << 20


def largest(cache: Path) -> Path | None:
    """The largest file of a Store, if it is large enough to measure a disk with."""
    files = [path for path in cache.glob("*/*.bin") if path.stat().st_size >= ENOUGH_TO_MEASURE]
    return max(files, key=lambda path: path.stat().st_size, default=None)
