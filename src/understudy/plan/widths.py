"""How wide a draft level is on a device: a graph has fixed shapes, so a level is padded to the next of a few widths."""

WIDEST = 64  # nodes of all rows together: the draft's products read each code once for so many
SCORED = 16  # nodes whose noise is made at a time
GRAPHS = 12  # recorded levels that are kept


def padded(nodes: int) -> int:
    """The width of a level of so many nodes: 1, 2, 4, 8, ..."""
    assert nodes > 0, f"a level of {nodes} nodes"
    return 1 << (nodes - 1).bit_length()


def widest(row: int, forced: bool, rows: int) -> int:
    """The widest level of `rows` rows with at most `row` nodes each; what is forced is not capped. 0 where there are no levels."""
    if not row:
        return 0
    return padded(row * rows if forced else max(min(row * rows, WIDEST), rows))
