"""`understudy scale`: what it prints and draws of given figures."""

from dataclasses import replace
from pathlib import Path

from tests.scaling.made import heads, speed
from understudy.frontends.scale.plot import plot
from understudy.frontends.scale.table import table
from understudy.scaling.study import Study


def test_the_table_has_heads_laws_speeds_and_advice() -> None:
    speeds = [speed(depth, batch, width) for depth in (0, 1, 2) for batch in (1, 4) for width in ((1, 4) if depth else (0,))]
    text = "\n".join(table(Study.of("demo", heads(), speeds)))
    assert "ln T" in text and "paper" in text and "0.89" in text
    assert "D = 2" in text and "T = 16000" in text and "natural logarithm" in text
    assert "A pass of b texts with k nodes each takes 400.0 + b (20.00 + 5.000 k) ms" in text
    assert "k = 80.0 / b + 4.0" in text and "Nodes of a text in a pass: 84 at batch 1, 24 at batch 4." in text
    assert "Use heads/eagle-depth1-tokens16000" in text


def test_the_table_says_what_layers_add_and_how_sure_that_is() -> None:
    found = [replace(one, by_text=((60 * one.cell.depth, 100), (50, 100))) for one in heads((1, 2), (1000,))]
    text = "\n".join(table(Study.of("demo", found, [])))
    assert "standard error over texts" in text and "+0.347 +-0.300" in text
    assert "standard error" not in "\n".join(table(Study.of("demo", heads(), [])))


def test_the_table_of_few_figures_says_what_is_missing() -> None:
    text = "\n".join(table(Study.of("demo", heads((1,), (1000,)), [])))
    assert "two depths, or two budgets" in text and "Speed" not in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    speeds = [speed(1, batch, width) for batch in (1, 4) for width in (1, 4)]
    plot(Study.of("demo", heads(), speeds), tmp_path / "scale.png")
    plot(Study.of("demo", heads((1,), (1000,)), []), tmp_path / "few.png")
    assert (tmp_path / "scale.png").read_bytes()[:4] == b"\x89PNG" == (tmp_path / "few.png").read_bytes()[:4]
