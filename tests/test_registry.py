"""A spec names an entry of a table and its options; whatever is wrong with it is said in one line."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.registry import build, find, lookup

TABLE = {
    "pair": f"{__name__}:Pair",
    "told": f"{__name__}:Told",
    "bare": f"{__name__}:Bare",
    "lost": "no_such_module_of_ours:thing",
}


class Pair:
    def __init__(self, first: str = "given", *, width: int = 3, share: float = 0.5, name: str = "x") -> None:
        self.values = (first, width, share, name)


class Told:
    def __init__(self, *, value: str = "", depth: int = 1) -> None:
        self.values = (value, depth)


class Bare:
    pass


@given(st.integers(-9, 999), st.floats(0, 1), st.text("abc=:", max_size=5))
def test_options_get_the_types_of_their_defaults(width: int, share: float, name: str) -> None:
    made = build("thing", TABLE, f"pair:width={width},share={share!r},name={name}")
    assert made.values == ("given", width, share, name)


@pytest.mark.parametrize(
    ("spec", "values"),
    [("pair", ("other", 3, 0.5, "x")), ("pair:", ("other", 3, 0.5, "x")), ("pair:width=4", ("other", 4, 0.5, "x"))],
)
def test_what_is_given_comes_first(spec: str, values: tuple[Any, ...]) -> None:
    assert build("thing", TABLE, spec, "other").values == values


@pytest.mark.parametrize(
    ("spec", "values"),
    [("told:some/model", ("some/model", 1)), ("told:m,depth=7", ("m", 7)), ("told:value=a=b", ("a=b", 1))],
)
def test_a_bare_text_is_the_option_called_value(spec: str, values: tuple[Any, ...]) -> None:
    assert build("thing", TABLE, spec).values == values


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pear", r"^No thing 'pear'. Did you mean 'pair'\? Known: bare, lost, pair, told\.$"),
        ("zzz", r"^No thing 'zzz'. Known: bare, lost, pair, told\.$"),
        ("pair:wdth=3", r"^No thing 'pair' option 'wdth'. Did you mean 'width'\? Known: name, share, width\.$"),
        ("pair:first=3", r"^No thing 'pair' option 'first'"),
        ("pair:width=x", r"^thing 'pair': width must be int, got 'x'\.$"),
        ("pair:share=", r"^thing 'pair': share must be float, got ''\.$"),
        ("pair:width", r"^thing 'pair': 'width' should be key=value. Known keys: width, share, name\.$"),
        ("pair:width=1,width=1", r"^thing 'pair': width is given twice\.$"),
        ("told:m,value=n", r"^thing 'told': value is given twice\.$"),
        ("bare:width=1", r"^No thing 'bare' option 'width'. Known: none\."),
        ("bare:x", r"^thing 'bare': 'x' should be key=value. Known keys: none\.$"),
    ],
)
def test_what_is_wrong_is_said(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build("thing", TABLE, spec)


def test_an_entry_is_imported_when_it_is_asked_for() -> None:
    assert lookup("thing", "lost", TABLE) == TABLE["lost"]
    assert find("thing", TABLE, "bare") is Bare
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_ours"):
        find("thing", TABLE, "lost")
