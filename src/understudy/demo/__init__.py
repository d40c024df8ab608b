"""The built-in demo model: a small Llama that writes Python, trained by `understudy.demo.train`."""

from pathlib import Path

PROMPT = '''class Shelf:
    """A shelf of books, in the order in which they were put on it."""

    def __init__(self, books=()):
        self.books = list(books)

    def __len__(self):'''


def path() -> Path:
    """The directory of the packaged model, in Hugging Face's format."""
    return Path(__file__).parent / "model"
