"""Three bits a weight and a half for scales: where the 4-bit copy does not fit."""

from .grouped import Grouped


class Int3(Grouped):
    bits = 3

    def __init__(self, *, group: int = 64) -> None:
        super().__init__(group)
