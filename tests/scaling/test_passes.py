"""What a pass takes, and the width at which nodes stop being free."""

import pytest

from understudy.errors import UnderstudyError
from understudy.scaling.passes import PassSample, pass_law


def made(whole: float, request: float, node: float, link: float = 0.0, batches: tuple[int, ...] = (1, 2, 8)) -> list[PassSample]:
    """PassSample of `batches` x widths, as a machine with these seconds would take for them."""
    found = []
    for rows in batches:
        for width in (1, 8, 32):
            busy = whole + rows * (request + width * node)
            found.append(PassSample(rows, rows * width, busy, max(link - busy, 0.0)))
    return found


def test_seconds_of_a_pass_are_told_apart() -> None:
    law = pass_law(made(0.4, 0.02, 0.005))
    assert (law.whole, law.request, law.node, law.link) == pytest.approx((0.4, 0.02, 0.005, 0.0))
    assert law.fit.r2 == pytest.approx(1) and law.seconds(4, 10) == pytest.approx(0.4 + 4 * 0.07)


def test_the_best_width_falls_with_the_batch_as_the_roofline_says() -> None:
    """k = I_crit (W / b + KV) / F: with bytes in seconds W = 0.4, KV = 0.02, and 0.005 seconds a node."""
    law = pass_law(made(0.4, 0.02, 0.005))
    assert [law.width(rows) for rows in (1, 2, 8)] == pytest.approx([84, 44, 14])
    assert law.terms == pytest.approx((80, 4)) and not law.linked


def test_while_a_link_brings_the_weights_nodes_come_free() -> None:
    law = pass_law(made(0.4, 0.02, 0.005, link=2.0))
    assert law.linked and law.link == pytest.approx(2.0)
    assert law.seconds(1, law.width(1)) == pytest.approx(2.0) and law.seconds(8, law.width(8)) == pytest.approx(2.0)
    assert law.seconds(1, 0.9 * law.width(1)) == pytest.approx(2.0) and law.seconds(1, 1.1 * law.width(1)) > 2.01
    a, c = law.terms
    assert law.width(2) == pytest.approx(a / 2 + c)


def test_one_batch_alone_has_no_requests_to_tell_apart() -> None:
    law = pass_law(made(0.4, 0.0, 0.005, batches=(1,)))
    assert (law.whole, law.request, law.node) == pytest.approx((0.4, 0.0, 0.005))


def test_a_request_that_seems_to_save_time_is_noise() -> None:
    law = pass_law(made(0.4, -0.01, 0.005))
    assert law.request == 0 and law.node > 0


def test_nodes_that_take_no_time_have_no_best_width() -> None:
    with pytest.raises(UnderstudyError, match="measure wider ones"):
        pass_law(made(0.4, 0.02, 0.0))
