"""What `gpu_product` times beside the 4-bit product that is used: forms of `gpu_candidates`, how each is launched, and how many
programs of it run at once by what it was compiled to (registers for sm_90)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

TILES = (8, 16, 32, 64)
# `finish` does so many of a word's codes in one program
CODES = 2
# More rows than any launch has.
NEVER = 1 << 20


@dataclass(frozen=True)
class Form:
    """One form of the product."""

    # the kernel's name in `gpu_candidates`
    kernel: str
    # programs that one multiprocessor runs at once, of 8, 16, 32 and 64 rows each; and the rows that a program takes at most
    resident: tuple[int, ...]
    rows: int = 16
    # warps that have columns of their own
    parts: int = 1
    # are codes made weights? is a product of all warps one? does the last program of a pair finish it? see `gpu_candidates`
    scaled: bool = False
    flat: bool = False
    last: bool = True
    # the fewest rows of which a norm is a launch of its own
    normed: int = NEVER
    # shares of the columns at most, steps on their way and one, registers for 8 rows (0: as many as the compiler wants)
    shares: int = 16
    stages: int = 3
    registers: int = 0

    @property
    def warps(self) -> int:
        return self.parts if self.kernel == "by_columns" else 4

    def tile(self, rows: int) -> int:
        """Rows of one program, of a launch of `rows`."""
        return next((tile for tile in TILES if rows <= tile <= self.rows), self.rows)

    def run(self, launch: Any, x: Tensor, out: Tensor, other: Tensor | None, what: int) -> None:
        """In the place of `ProductLaunch._pairs`."""
        import gpu_candidates as kernels

        norm, kind = launch.norm, launch._kind(what) | {"STAGES": self.stages}
        if norm is not None and len(x) >= self.normed:
            before, x = x, torch.empty_like(x)
            width = 1 << (launch.columns - 1).bit_length()
            kernels.normed[(len(x),)](
                before, norm.weight, x, norm.epsilon, COLUMNS=launch.columns, WIDTH=width, num_warps=8, enable_fp_fusion=True
            )  # fmt: skip
            kind["NORM"] = False
        tile = self.tile(len(x))
        tiles = -(-len(x) // tile)
        shares = self.shared_out(launch, tile)
        scratch = torch.empty(tiles * launch.pairs * shares.count * self.parts * tile * 129, dtype=torch.float32, device=x.device)
        around, numbers = launch._around(other), launch._numbers(x, out, other)
        more = {"maxnreg": self.registers} if self.registers and tile == TILES[0] else {}
        getattr(kernels, self.kernel)[(launch.pairs, shares.count, tiles)](
            x, *launch._weights, picks(x.device), *around, out, scratch, launch.counters, *numbers,
            N=tile, STEP=launch.step, ROUNDS=shares.rounds, SHARES=shares.count, **kind, PARTS=self.parts, LAST=self.last,
            SCALED=self.scaled, FLAT=self.flat, num_warps=self.warps, num_stages=self.stages, enable_fp_fusion=True,
            **more,
        )  # fmt: skip
        if not self.last:
            m, count0, count1, _, *rest = numbers
            left = {name: kind[name] for name in ("COLUMNS", "MATRICES", "GATED", "NORM", "BIAS", "OTHER")}
            kernels.finish[(launch.pairs, 8 // CODES, tiles)](
                scratch, *around[1:], out, m, (count0 + 1) // 2, (count1 + 1) // 2, *rest,
                N=tile, SHARES=shares.count * self.parts, CODES=CODES, **left, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip

    def shared_out(self, launch: Any, tile: int) -> Any:
        """The shares of the columns of a launch."""
        from understudy.kernels.gpu import draft_product

        room = draft_product.running(launch.products[0].codes.device, self.resident[TILES.index(tile)])
        return draft_product.shared_out(launch.pairs, -(-launch.columns // launch.step), room, self.parts, self.shares)


# Residents are what 65,536 registers have room for, by what kernels were compiled to with Triton 3.6.
FORMS = {
    "narrow": Form("by_columns", (16, 8, 4, 4), registers=128),
    "narrow-apart": Form("by_columns", (16, 8, 4, 4), registers=128, last=False),
    "apart": Form("by_columns", (12, 8, 4, 4), last=False),
    "two": Form("by_columns", (8, 4, 4, 4), parts=2, registers=128),
    "four": Form("by_columns", (4, 2, 2, 2), parts=4, registers=128),
    "four-apart": Form("by_columns", (4, 2, 2, 2), parts=4, registers=128, last=False),
    "bytes": Form("by_bytes", (7, 4, 3, 2), rows=32, normed=17, shares=24),
    "bytes-apart": Form("by_bytes", (7, 4, 3, 2), rows=32, normed=17, shares=24, last=False),
    "weights": Form("by_bytes", (6, 6, 4, 2), rows=64, scaled=True, normed=17, shares=24),
    "flat": Form("by_bytes", (8, 6, 4, 2), rows=64, scaled=True, flat=True, normed=1, shares=24),
    "flat-apart": Form("by_bytes", (8, 6, 4, 2), rows=64, scaled=True, flat=True, normed=1, shares=24, last=False),
}


def named(asked: str) -> Form:
    """A form by its name and changes to it: NAME or NAME:field=value,..."""
    name, _, changes = asked.partition(":")
    if name not in FORMS:
        raise SystemExit(f"gpu_product: --form {asked}: there is no {name}; forms are {', '.join(FORMS)}")
    known = {field.name: getattr(FORMS[name], field.name) for field in fields(Form)}
    found: dict[str, Any] = {}
    for change in filter(None, changes.split(",")):
        what, _, value = change.partition("=")
        if not isinstance(known.get(what), int) or not value.isdigit():
            raise SystemExit(f"gpu_product: --form {asked}: {change} is no whole number for a field of a form, name=value")
        found[what] = type(known[what])(int(value))
    form = replace(FORMS[name], **found)
    if form.rows not in TILES or (form.flat and not (form.scaled and form.normed <= 1)):
        raise SystemExit(f"gpu_product: --form {asked}: rows are one of {TILES}, and what is flat is scaled, and normed=1 or 0")
    return form


@cache
def picks(device: torch.device) -> Tensor:
    """What picks byte 0 to 3 of two words, as prmt wants it."""
    return torch.tensor([0x4400 + 0x1111 * byte for byte in range(4)], dtype=torch.int32, device=device)


@contextmanager
def in_place(form: Form | None) -> Iterator[None]:
    """Products of 4 bits are launched as `form` says; None: as they are."""
    from understudy.kernels.gpu.draft_product import ProductLaunch

    usual: Callable[..., None] = ProductLaunch._pairs
    if form is not None:
        ProductLaunch._pairs = lambda launch, *given: form.run(launch, *given)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ProductLaunch._pairs = usual  # type: ignore[method-assign]


def interpreted() -> None:
    """Let Triton's interpreter follow the instructions of the 4-bit product, which it does not know by itself."""
    from tests.inline_asm import follow
    from understudy.kernels.gpu import draft_product

    os.environ["TRITON_INTERPRET"] = "1"
    follow()
    draft_product.INTERPRETED = False
