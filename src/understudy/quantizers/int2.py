"""Two bits a weight and a half for scales: the smallest copy that still guesses."""

from .grouped import Grouped


class Int2(Grouped):
    bits = 2

    def __init__(self, *, group: int = 64) -> None:
        super().__init__(group)
