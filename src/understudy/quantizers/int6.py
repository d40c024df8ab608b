"""Six bits a weight and a half for scales: a copy that errs a quarter as much as one of 4 bits, where there is room for it."""

from .grouped import Grouped


class Int6(Grouped):
    bits = 6

    def __init__(self, *, group: int = 64) -> None:
        super().__init__(group)
