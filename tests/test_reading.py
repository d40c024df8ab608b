"""How much of each prompt a pass reads: nobody stands still, nobody waits for ever, decoding keeps half its speed, and what can
ride free does."""

from hypothesis import given
from hypothesis import strategies as st

from understudy.models.cost import PassCost
from understudy.reading import ALONE, ALONE_SECONDS, UNNOTICED, ReadingRoom, shared


def learned(base: float, each: float, link: float = 0.0) -> PassCost:
    """A cost that has seen passes of `base + each * nodes` seconds of arithmetic, beside weights that come in `link` seconds."""
    cost = PassCost()
    for nodes in (1, 200, 50, 120, 30, 300, 1, 200, 50, 120, 30, 300, 1):
        busy = base + each * nodes
        cost.learn(nodes, busy, max(link - busy, 0.0))
    return cost


UNREAD = st.lists(st.integers(1, 5000), min_size=1, max_size=12)


@given(UNREAD, st.integers(0, 3000))
def test_everybody_reads_and_room_is_neither_wasted_nor_overdrawn(unread: list[int], more: int) -> None:
    room = len(unread) + more
    counts = shared(unread, room)
    assert all(1 <= count <= own for count, own in zip(counts, unread, strict=True))
    assert sum(counts) == min(room, sum(unread))
    assert counts[0] >= min(unread[0], more // 2), "the oldest has less than half"


def test_a_short_prompt_beside_long_ones_is_read_at_once_and_equal_ones_come_in_turn() -> None:
    assert shared([4000, 4000, 20], 256) == [236 - 1, 1, 20]
    assert shared([4000, 300, 20], 256)[2] == 20
    assert shared([4000, 4000, 4000], 256) == [254, 1, 1]


@given(st.lists(st.integers(1, 900), min_size=1, max_size=8), st.integers(16, 64))
def test_many_long_prompts_are_all_read_and_the_oldest_within_twice_its_own_time(unread: list[int], room: int) -> None:
    left = dict(enumerate(unread))
    passes, began = 0, {0: 0}
    while left:
        oldest = next(iter(left))
        began.setdefault(oldest, passes)
        counts = shared(list(left.values()), room)
        passes += 1
        left = {number: own - count for (number, own), count in zip(left.items(), counts, strict=True) if own > count}
        if oldest not in left:
            assert passes - began[oldest] <= -(-2 * unread[oldest] // (room - len(unread))) + 1
    assert passes <= -(-sum(unread) // room) + 1


@given(
    st.floats(0.05, 5),
    st.floats(1e-4, 0.1),
    st.floats(0, 10),
    st.integers(1, 100),
    st.integers(1, 7),
    UNREAD,
    st.floats(0, 1),
)
def test_time_bounds_what_is_read_beside_texts_that_are_decoding(
    base: float, each: float, link: float, drafted: int, decoding: int, unread: list[int], unused: float
) -> None:
    cost = learned(base, each, link)
    room = ReadingRoom(unused).room(cost, drafted, decoding, unread, 5000)
    usual = cost.seconds(drafted)
    reading = len(unread)
    allowed = usual + max(usual * max(1, reading / decoding), UNNOTICED)
    assert reading <= room <= 5000 - drafted
    assert room == reading or cost.seconds(drafted + room) <= allowed
    full = room == 5000 - drafted or cost.seconds(drafted + room + 1) > usual
    assert full, "there was room for one more that rides free"


@given(st.floats(0.05, 5), st.floats(1e-3, 0.1), st.integers(1, 100), st.integers(1, 7), UNREAD, st.floats(0, 1))
def test_where_nothing_rides_free_waiting_saves_nothing(
    base: float, each: float, drafted: int, decoding: int, unread: list[int], unused: float
) -> None:
    """Reading takes its time in any pass, so it is done at once, as far as decoding keeps half of its speed."""
    cost = learned(base, each)
    room = ReadingRoom(unused).room(cost, drafted, decoding, unread, 5000)
    longer = cost.seconds(drafted) * max(1, len(unread) / decoding)
    assert room >= min(sum(unread), 5000 - drafted) or cost.seconds(drafted + room + 1) - cost.seconds(drafted) > longer


def test_a_prompt_is_read_over_several_passes_where_it_rides_free_in_them() -> None:
    """The link takes 2 s, in which 250 nodes ride, so that half a second of arithmetic is not worth a row that waits a pass."""
    cost = learned(0.5, 0.006, link=2.0)
    often = ReadingRoom(unused=0.5)
    assert 100 < often.room(cost, 100, 7, [250], 5000) < 160, "what sticks out is left for the next pass"
    assert often.room(cost, 100, 7, [160], 5000) >= 160, "a little that sticks out is not worth a pass"
    assert often.room(cost, 100, 1, [250], 5000) >= 250, "one of two rows would wait"
    assert often.room(cost, 100, 7, [250] * 7, 5000) > 300, "seven rows would wait for one"
    assert ReadingRoom().room(cost, 100, 7, [250], 5000) >= 250, "what rides free is needed for others"


def test_it_is_learned_whether_what_rides_free_goes_unused() -> None:
    cost = learned(0.5, 0.006, link=2.0)
    reading = ReadingRoom()
    for _ in range(200):
        assert reading.room(cost, 100, 7, [], 5000) == 0
    assert reading.unused > 0.9
    for _ in range(200):
        reading.room(cost, 100, 7, [5000], 5000)
    assert reading.unused < 0.1


def alone(cost: PassCost) -> int:
    """What is read of a long prompt where nobody decodes."""
    return ReadingRoom().room(cost, 0, 0, [5000], 5000)


def test_what_rides_free_is_read_and_a_prompt_alone_is_read_in_long_pieces() -> None:
    slow_link = learned(0.1, 0.01, link=4.0)
    assert slow_link.seconds(200) == slow_link.seconds(100), "weights take longer than the arithmetic"
    assert ReadingRoom().room(slow_link, 100, 7, [5000], 5000) > 290
    quick = learned(0.01, 0.001)
    assert alone(quick) * 0.001 > 0.9 * ALONE_SECONDS
    slow = learned(2.0, 0.1)
    assert 0.9 * ALONE * 2.1 < alone(slow) * 0.1 + 2.0 < 1.1 * ALONE * 2.1


def test_before_anything_was_measured_the_room_alone_decides() -> None:
    assert ReadingRoom().room(PassCost(), 20, 3, [500, 500], 128) == 108
