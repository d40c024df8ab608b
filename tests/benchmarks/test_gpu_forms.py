"""Other forms of the 4-bit product, in the interpreter: each is the product, and leaves it as it was."""

import pytest
import torch

pytest.importorskip("triton")
import gpu_forms
from tests.four_bits import compare
from tests.inline_asm import follow
from tests.kernels.gpu.test_compiles import PAIR_STEPS, PAIRS, SHARED, made_of
from understudy.kernels.gpu import draft_product
from understudy.kernels.gpu.draft_product import ColumnShares, ProductLaunch

WIDE_ROW = {"COLUMNS": 5120, "WIDTH": 8192}
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the instructions itself")


@pytest.mark.parametrize(
    ("form", "columns", "group", "rows"),
    [
        ("narrow", 448, 64, 5), ("narrow-apart", 96, 32, 19), ("two", 448, 64, 5), ("four-apart", 256, 128, 9),
        ("bytes", 448, 64, 5), ("bytes-apart", 256, 128, 19), ("weights", 448, 64, 5), ("weights", 96, 32, 70),
        ("flat", 448, 64, 5), ("flat-apart", 96, 32, 40),
    ],
)  # fmt: skip
def test_a_form_is_the_product(form: str, columns: int, group: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_product, "INTERPRETED", False)
    follow(monkeypatch.setattr)
    asked: list[int] = []

    def two_shares(blocks: int, steps: int, room: int, parts: int, most: int) -> ColumnShares:
        asked.append(parts)
        return ColumnShares(2, -(-steps // (2 * parts)))

    monkeypatch.setattr(draft_product, "shared_out", two_shares)
    usual = ProductLaunch._pairs
    with gpu_forms.in_place(gpu_forms.FORMS[form]):
        assert ProductLaunch._pairs is not usual
        compare(columns, group, rows)
    assert ProductLaunch._pairs is usual and gpu_forms.FORMS[form].parts in asked


def test_a_form_is_named_with_changes() -> None:
    form = gpu_forms.named("weights:shares=8,last=0,rows=16")
    assert (form.shares, form.last, form.rows, form.scaled) == (8, False, 16, True) and form.warps == 4
    assert [form.tile(rows) for rows in (1, 8, 9, 16, 64)] == [8, 8, 16, 16, 16]
    assert gpu_forms.FORMS["flat"].tile(33) == 64 and gpu_forms.FORMS["two"].warps == 2


@pytest.mark.parametrize("wrong", ["nosuch", "weights:kernel=1", "weights:shares", "weights:rows=12", "flat:scaled=0"])
def test_a_form_that_cannot_be_is_refused(wrong: str) -> None:
    with pytest.raises(SystemExit, match="gpu_product: --form"):
        gpu_forms.named(wrong)


@pytest.mark.parametrize("target", [80, 90])
def test_forms_compile_for_gpus_of_servers(target: int) -> None:
    sums = dict.fromkeys(("scratch", "bias"), "*fp32") | {"other": "*bf16", "out": "*bf16", "m": "i32", "epsilon": "fp32"}
    sums |= dict.fromkeys(("pairs0", "pairs1", "rows0", "rows1", "rows2", "beside", "apart"), "i32")
    alone = {name: PAIR_STEPS[name] for name in ("N", "COLUMNS", "SHARES", "MATRICES", "GATED", "NORM", "BIAS", "OTHER")}
    kernels = {"finish": ("gpu_candidates", "finish", sums, alone | {"CODES": gpu_forms.CODES}, {})}
    row = {"x": "*bf16", "norm": "*fp32", "out": "*bf16", "epsilon": "fp32"}
    kernels["normed"] = ("gpu_candidates", "normed", row, WIDE_ROW, {})
    for name, form in gpu_forms.FORMS.items():
        kind = {"PARTS": form.parts, "LAST": form.last, "SCALED": form.scaled, "FLAT": form.flat, "NORM": form.normed > 8}
        # only of so many rows does every Triton make one product of all warps
        kind |= {"N": form.rows} if form.flat else {}
        options = {"num_warps": form.warps, "num_stages": form.stages, **({"maxnreg": form.registers} if form.registers else {})}
        kernels[name] = ("gpu_candidates", form.kernel, PAIRS | {"picks": "*i32"}, PAIR_STEPS | kind, options)
    made = made_of(kernels, target)
    for name, found in made.items():
        assert "error" not in found and found["cubin"] > 0 and found["shared"] <= SHARED, (name, found)
    assert ("wgmma" in made["flat"]["ptx"]) == (target == 90) and "fma.rn.bf16x2" in made["weights"]["ptx"]
