"""The clock adds up passes."""

from understudy.clock import Clock


def test_passes_add_up() -> None:
    clock = Clock()
    clock.count(rows=2, nodes=9, draft=0.5, verify=1.0)
    clock.count(rows=1, nodes=3, draft=0.0, verify=2.0)
    assert clock == Clock(draft=0.5, verify=3.0, passes=2, rows=3, nodes=12)
