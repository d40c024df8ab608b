"""One draft forward on a device: everything it looks at lies there, so that it can be recorded and done again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..devices.accelerator import Accelerator
from ..tree import Nodes

if TYPE_CHECKING:
    from .draft import Draft


class DeviceLevel:
    """A Pass over `nodes`, which lie on `device`; their number and the width of their tails are all that is fixed."""

    def __init__(self, view: Draft, nodes: Nodes, device: Accelerator):
        self.view, self.nodes, self.device = view, nodes, device

    def linear(self, index: int, x: Tensor) -> Tensor:
        return self.view.linears[index](x)

    def remember(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.view.cache.write(layer, self.nodes, keys, values)

    def attend(self, layer: int, query: Tensor, scaling: float, window: int, softcap: float) -> Tensor:
        cache = self.view.cache
        return self.device.attend(
            query, cache.keys[layer], cache.values[layer], self.nodes, scaling=scaling, window=window, softcap=softcap
        )
