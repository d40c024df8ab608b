"""How much of a predicted text became true. It depends on the texts alone, not on which tokens were drafted together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

# Equal tokens in a row by which a text finds back to its prediction after it went another way.
RUN = 3


def appeared(prediction: Sequence[int], text: Sequence[int]) -> int:
    """How many tokens of `prediction` stand in `text`, in the same order; a text that left the prediction finds back at the
    earliest later place where RUN tokens are equal."""
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for end in range(RUN, len(prediction) + 1):
        places[tuple(prediction[end - RUN : end])].append(end)
    found: set[int] = set()
    place = 0
    for index, token in enumerate(text):
        if place < len(prediction) and prediction[place] == token:
            found.add(index)
            place += 1
            continue
        later = places.get(tuple(text[max(index + 1 - RUN, 0) : index + 1]), ())
        if further := [end for end in later if end > place]:
            found.update(range(index + 1 - RUN, index + 1))
            place = further[0]
    return len(found)
