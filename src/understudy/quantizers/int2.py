"""Two bits a weight and one for scales: the smallest copy that still guesses. Groups of 64 save half a bit, but guess
less well."""

from .grouped import Grouped


class Int2(Grouped):
    bits = 2
    usual = 32

    def __init__(self, *, group: int = 32) -> None:
        super().__init__(group)
