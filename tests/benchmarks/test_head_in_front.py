"""The table of a head in front of the copy: ratios are those of the same answers."""

from head_in_front import Told, table


def test_ratios_and_shares_are_those_of_all_answers() -> None:
    alone = [Told((1, 2, 3, 4, 5), 2.0, 1.0, 2, 8.0, {"text": 4}, {"text": 1}), Told((1, 2, 3), 1.0, 0.5, 1, 4.0, {}, {})]
    first = Told((1, 2, 3, 4, 5), 1.0, 0.2, 2, 3.0, {"text": 2, "head": 5}, {"head": 3})
    helped = [first, Told((1, 2, 3), 1.0, 0.2, 1, 3.0, {}, {})]
    lines = table(0.6, list(zip(alone, helped, strict=True)))
    assert lines[0] == "T = 0.6, 2 answers"
    assert lines[-3] == "| head in front | 3.00 | 2.00 | 2.00 | 1.000 | 20% | 0 of 2 | 3 of 5 |"
    assert lines[-4] == "| text alone | 2.00 | 2.00 | 4.00 | 2.000 | 50% | 1 of 4 |  |"
    assert lines[-1] == "tokens per second: 1.50 x (median of answers 1.50 x); levels per round: 0.50 x"
