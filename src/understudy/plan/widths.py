"""How wide a draft level is on a device: a graph has fixed shapes, so a level is padded to the next of a few widths."""

WIDEST = 64  # nodes of all rows together: the draft's products read each code once for so many


def padded(nodes: int) -> int:
    """The width of a level of so many nodes: 1, 2, 4, 8, ..."""
    assert nodes > 0, f"a level of {nodes} nodes"
    return 1 << (nodes - 1).bit_length()


def widest(row: int, rows: int, forced: bool) -> int:
    """The widest level that `rows` rows with at most `row` nodes each can have; what is forced is not capped."""
    return padded(row * rows if forced else max(min(row * rows, WIDEST), rows))
