"""Prefixes on disk: what the KV cache keeps of the beginnings of prompts, for later texts and later processes.

A text is cut in blocks of BLOCK tokens, and a block's name is a digest of all tokens up to its end and of everything that its bits
depend on. Two kinds of files: *tokens* hold the keys and values of one block; a *point* holds what windows and recurrent layers
need to go on from a block's end. What cannot be read, or is not what its name says, is as if it were not there."""

# Tokens of a block. Recurrent layers can go on from each multiple of 64.
BLOCK = 64
# Shorter prompts are not worth a file.
LEAST = 256
# Bytes that may wait to be written.
ROOM = 64 << 20


def memory_for(largest: int) -> int:
    """Bytes that keeping prefixes takes, where the largest file has `largest`: what waits, and one file that is written or read."""
    return max(ROOM, largest) + 2 * largest
