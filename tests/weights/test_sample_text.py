"""The text that comes along is what it says: text of several kinds, and enough of it."""

from understudy.weights.sample_text import TEXT


def test_it_holds_prose_code_and_other_scripts() -> None:
    assert 1500 < len(TEXT) < 4000 and "def " in TEXT and "Question:" in TEXT
    assert any(ord(c) > 0x4E00 for c in TEXT) and any(0x400 < ord(c) < 0x500 for c in TEXT)
