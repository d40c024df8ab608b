"""How the text of a reply is divided by tokens: each character stands with the token it came with, whatever was held back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from understudy.api.origins import Origins, TokenOrigin


@dataclass
class Reply:
    """What the text of a reply is after each token."""

    ends: list[int] = field(default_factory=list)


@dataclass
class GivenStep:
    text: str
    token_ids: list[int]
    accepted: int


@given(st.lists(st.tuples(st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), st.integers(0, 4), st.integers(0, 3))))
def test_tokens_join_to_the_text_and_keep_their_origin(passes: list[tuple[list[str], int, int]]) -> None:
    """Each pass: the texts of its tokens, how many were accepted, and how many characters are held back at its end."""
    reply, whole, told = Reply(), "", 0
    origins = Origins(reply)  # type: ignore[arg-type]
    expected: list[tuple[str, TokenOrigin]] = []
    found: list[tuple[str, TokenOrigin]] = []
    for number, (texts, accepted, held) in enumerate(passes, 1):
        for place, text in enumerate(texts):
            whole += text
            reply.ends.append(len(whole))
            expected += [(sign, TokenOrigin(place < accepted, number)) for sign in text]
        last = number == len(passes)
        until = len(whole) if last else max(len(whole) - held, told)
        step: Any = GivenStep(whole[told:until], [0] * len(texts), accepted)
        told = until
        found += [(sign, origin) for text, origin in origins.divided(step) for sign in text]
    assert found == expected


def test_what_the_end_of_a_text_brings_belongs_to_its_last_token() -> None:
    reply = Reply([1, 1])
    step: Any = GivenStep("a\ufffd", [5, 6], 1)
    found = list(Origins(reply).divided(step))  # type: ignore[arg-type]
    assert found == [("a", TokenOrigin(True, 1)), ("\ufffd", TokenOrigin(False, 1))]
