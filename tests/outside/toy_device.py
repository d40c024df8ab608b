"""A device from outside the package: the processor's arithmetic, with memory that it pretends to have for itself."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from understudy.devices import DraftAttention
from understudy.devices.processor import Processor
from understudy.plan.placement import Plan
from understudy.tree import Nodes


class Distant(Processor):
    name = "distant"
    note = "distant memory is far away"
    own_memory = True
    attended = multiplied = 0

    def peak_bytes(self) -> int:
        return 123

    def incoming(self, place: Tensor) -> Tensor:
        return self.arena(place.numel())

    def behind(self, plan: Plan, *given: Any) -> Plan:
        return replace(plan, device=self.name).noted(self.note)

    def draft_attention(self, nodes: Nodes) -> DraftAttention:
        Distant.attended += 1
        return super().draft_attention(nodes)

    def draft_product(self, *given: Any) -> Any:
        multiply = super().draft_product(*given)

        def counted(x: Tensor) -> Tensor:
            Distant.multiplied += 1
            return multiply(x)

        return counted
