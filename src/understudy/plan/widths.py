"""How wide a draft level is on a device: a graph has fixed shapes, so a level is padded to the next of a few widths."""

# Nodes of all sequences together in one level: the draft's products read each code once for so many.
WIDEST = 64
# What a level of any number of sequences has room for: a text's guesses behind the root are checked together.
GUESSED = 32
# Nodes whose noise is made at a time.
SCORED = 16
# Recorded levels that are kept.
GRAPHS = 12


def padded(nodes: int) -> int:
    """The width of a level of `nodes` nodes: 1, 2, 4, 8, ..."""
    assert nodes > 0, f"a level of {nodes} nodes"
    return 1 << (nodes - 1).bit_length()


def widest(level_width: int, forced: bool, rows: int) -> int:
    """The widest level of `rows` sequences with at most `level_width` nodes each; 0 where there are no levels.

    It has at most WIDEST nodes and at least GUESSED, unless the width is `forced` or there are more sequences."""
    if not level_width:
        return 0
    nodes = level_width * rows
    return padded(nodes if forced else max(min(nodes, WIDEST), rows, GUESSED))


def of_group(widest_level: int, rows: int) -> tuple[int, int]:
    """The most sequences of one of several groups, of `rows` in all, and its widest level where that of all together has
    `widest_level` nodes."""
    half = -(-rows // 2)
    return half, padded(-(-widest_level * half // rows)) if widest_level else 0
