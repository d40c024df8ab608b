"""One draft forward on a device: everything it looks at lies there, so that it can be recorded and done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..cache import Cache
from ..devices.accelerator import Accelerator
from ..kernels.attention import AttentionSpec
from ..tree import Nodes


class DeviceLevel:
    """A Pass over `nodes`, which lie on `device`; their number and the width of their tails are all that is fixed."""

    def __init__(self, linears: Sequence[Callable[[Tensor], Tensor]], cache: Cache, nodes: Nodes, device: Accelerator):
        self.linears, self.cache, self.nodes, self.device = linears, cache, nodes, device

    def linear(self, index: int, x: Tensor) -> Tensor:
        return self.linears[index](x)

    def write_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.cache.layers[layer].write(self.nodes, keys, values)

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        state = self.cache.layers[layer]
        return self.device.attend(query, state.keys, state.values, self.nodes, spec)
