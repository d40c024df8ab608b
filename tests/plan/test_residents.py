"""What stays in fast memory fits, is spread over the pass, and is what the speeds of link and memory make fastest."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from understudy.plan.residents import LinearSize, LinkSpeeds, keep, spread

PART = 1 << 20
LINEARS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12)), min_size=1, max_size=30)


def sizes(drawn: list[tuple[int, int]], share: float = 0.5) -> tuple[list[int], list[LinearSize]]:
    """Linears of so many parts; a part streams `share` of its exact bytes. None: the substitute is the weight itself."""
    linears = [
        LinearSize(9 * PART * parts // 32, PART * parts, parts) if parts else LinearSize(PART, PART, 0)
        for parts, _ in drawn
    ]
    return [int(PART * share)] * sum(parts for parts, _ in drawn), linears


@given(
    LINEARS,
    st.integers(0, 60 * PART),
    st.sampled_from(["none", "residual", "whole", "auto"]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0, 3 * PART]),
)
def test_what_is_kept_fits_and_is_counted(
    drawn: list[tuple[int, int]], room: int, resident: str, share: float, together: int
) -> None:
    parts, linears = sizes(drawn, share)
    kept = keep(parts, linears, room, resident, LinkSpeeds(1e9, 12e9, 8), 4 * PART, together)
    owners = [i for i, linear in enumerate(linears) for _ in range(linear.parts)]
    apart = kept.whole | kept.decoded
    assert not any(owners[number] in apart for number in kept.parts) and not kept.whole & kept.decoded
    assert all(linears[i].parts for i in apart)
    beyond = sum(linears[i].extra_bytes for i in kept.whole) + sum(parts[number] for number in kept.parts)
    assert kept.taken_bytes == beyond + sum(linears[i].exact_bytes for i in kept.decoded) <= room
    gone = sum(parts[number] for number, owner in enumerate(owners) if owner in apart or number in kept.parts)
    assert kept.streamed_bytes == sum(parts) - gone
    assert (resident in ("whole", "auto") or not kept.whole) and (resident in ("residual", "auto") or not kept.parts)
    assert not kept.decoded or (resident == "auto" and not kept.streamed_bytes)


@given(LINEARS, st.integers(0, 60 * PART), st.sampled_from(["none", "residual", "whole", "auto"]), st.data())
def test_what_is_always_whole_takes_no_room_of_others(
    drawn: list[tuple[int, int]], room: int, resident: str, data: st.DataObject
) -> None:
    parts, linears = sizes(drawn)
    chosen = data.draw(st.sets(st.integers(0, len(linears) - 1)))
    marked = [
        replace(linear, substitute_bytes=linear.exact_bytes, always=True) if index in chosen else linear
        for index, linear in enumerate(linears)
    ]
    kept = keep(parts, marked, room, resident, LinkSpeeds(1e9, 12e9, 8), 4 * PART)
    assert chosen <= kept.whole and not chosen & kept.decoded
    owners = [i for i, linear in enumerate(linears) for _ in range(linear.parts)]
    assert not any(owners[number] in chosen for number in kept.parts)
    others = sum(marked[i].extra_bytes for i in kept.whole) + sum(parts[number] for number in kept.parts)
    assert kept.taken_bytes == others + sum(linears[i].exact_bytes for i in kept.decoded) <= room


def test_room_that_nothing_streams_into_makes_passes_faster() -> None:
    """Exact weights lie as they are beside the substitutes, as many as there is room for; in their place if nothing drafts."""
    parts, linears = sizes([(4, 1)] * 50)
    half = sum(parts)
    drafting, plain = LinkSpeeds(1e9, 12e9, 8), LinkSpeeds(1e9, 12e9, 0)
    full = keep(parts, linears, 2 * half, "auto", drafting, PART)
    assert full.decoded == frozenset(range(50)) and not full.parts and not full.streamed_bytes
    some = keep(parts, linears, half + 10 * 2 * PART, "auto", drafting, PART)
    assert len(some.decoded) == 10 and len(some.parts) == 40 * 4 and max(some.decoded) > 40
    assert not keep(parts, linears, half - PART, "auto", drafting, PART).decoded
    alone = keep(parts, linears, 2 * half, "auto", plain, PART)
    assert alone.whole == frozenset(range(50)) and not alone.decoded


def test_whole_weights_win_where_memory_is_much_faster_than_the_link() -> None:
    """Room for R bytes spares the link R by residuals, 1.39 R by whole weights (raw); each level then reads R more."""
    parts, linears = sizes([(4, 1)] * 100, share=1.0)
    room = 60 * PART
    slow = keep(parts, linears, room, "auto", LinkSpeeds(1e9, 12e9, 8), PART)
    fast = keep(parts, linears, room, "auto", LinkSpeeds(1e9, 60e9, 8), PART)
    assert slow.parts and not slow.whole
    assert fast.whole and fast.streamed_bytes < slow.streamed_bytes
    unread = keep(
        parts, [replace(linear, substitute_bytes=0) for linear in linears], room, "auto", LinkSpeeds(1e9, 60e9, 0), PART
    )
    assert unread.parts and not unread.whole, "a part that nobody drafts with may as well be a residual"
    assert keep(parts, linears, room, "auto", LinkSpeeds(), PART).whole == frozenset()


def test_the_fastest_is_taken_when_everything_fits_only_whole() -> None:
    parts, linears = sizes([(4, 1)] * 50, share=1.0)
    room = sum(linear.extra_bytes for linear in linears)
    kept = keep(parts, linears, room, "auto", LinkSpeeds(1e8, 40e9, 8), PART)
    assert kept.whole == frozenset(range(50)) and kept.streamed_bytes == 0


def test_neighbours_of_a_linear_stay_together() -> None:
    """So that what streams and what stays are few pieces; as much stays, but for less than a group."""
    parts, linears = sizes([(12, 1)] * 20, share=1.0)
    room = sum(parts) // 3
    apart, grouped = (keep(parts, linears, room, "residual", LinkSpeeds(), PART, most) for most in (0, 4 * PART))

    def pieces(kept: frozenset[int]) -> int:
        return sum(number % 12 == 0 or (number in kept) != (number - 1 in kept) for number in range(len(parts)))

    assert pieces(grouped.parts) <= 20 * 3 < pieces(apart.parts) / 2
    assert room - 4 * PART < grouped.taken_bytes <= room and not grouped.whole


@given(st.lists(st.integers(1, 8 * PART), min_size=3, max_size=60), st.integers(0, 100 * PART))
def test_residents_are_spread_over_the_pass(parts: list[int], room: int) -> None:
    chosen = spread(parts, room)
    assert sum(parts[i] for i in chosen) <= room
    half = sum(parts[: len(parts) // 2])
    first = sum(parts[i] for i in chosen if i < len(parts) // 2)
    assert first <= room * half / sum(parts) + 1
    assert 0 not in chosen or len(chosen) == len(parts), "a pass begins with what the ring holds"


def test_a_round_is_drafting_then_what_the_ring_did_not_hold() -> None:
    speeds = LinkSpeeds(link_bytes_per_second=100.0, memory_bytes_per_second=1000.0, draft_levels=4)
    assert speeds.round_seconds(streamed=500, ring=0, draft_level=250, exact=800) == 1.0 + 5.0
    assert speeds.round_seconds(streamed=500, ring=60, draft_level=250, exact=800) == 1.0 + 4.4
    assert speeds.round_seconds(streamed=500, ring=900, draft_level=250, exact=800) == 1.0 + 4.0, (
        "drafting lasts a second"
    )
    assert speeds.round_seconds(streamed=0, ring=0, draft_level=250, exact=800) == 1.0 + 0.8
