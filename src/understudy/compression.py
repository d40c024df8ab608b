"""What a layer keeps whose keys of old tokens are compressed, a block of tokens to one entry (DeepSeek-V4): sizes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CompressedShape:
    """How one layer compresses: `rate` tokens in a row, from the first of a text on, are a block, and each whole block has an entry
    that is a key and a value. A node sees the entries of all blocks that end at it or before, or those that an index chooses."""

    # tokens of a block
    rate: int
    # is an entry made of the block before, too?
    overlaps: bool = False
    # numbers in an entry of the index by which a layer chooses among its entries; 0: it has none
    index_size: int = 0

    @property
    def looks_back(self) -> int:
        """Tokens that an entry is made of, the one at which its block ends included."""
        return self.rate * (2 if self.overlaps else 1)

    def parts(self, size: int) -> int:
        """Numbers that are kept of a token until entries of `size` numbers are made of it: what is added up and what it counts, for
        the entry of its own block and, where these overlap, that of the next."""
        return 2 * size * (2 if self.overlaps else 1)
