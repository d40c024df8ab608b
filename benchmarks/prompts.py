"""Eight beginnings of Python modules for benchmarks, written for this purpose and in nobody's training corpus."""

from typing import Protocol

TEXTS = (
    '''"""Reads and writes simple tables of text, one row on each line."""

import os
import re

__all__ = ["Table", "TableError", "open_table"]


class TableError(Exception):
    """Raised when a table cannot be read."""


class Table:
    """A table whose columns have names.

    The first line of the file holds the names, separated by tabs.
    """

    def __init__(self, names, rows=None):
        self.names = list(names)
        self.rows = []
''',
    '''import socket
import threading
import selectors


class EchoServer(threading.Thread):
    """Sends back whatever a client sends, one thread for all clients."""

    def __init__(self, address, timeout=None):
        super().__init__(daemon=True)
        self.address = address
        self.timeout = timeout
        self._selector = selectors.DefaultSelector()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def run(self):
        """Accept connections until stop() is called."""
''',
    '''def parse_date(text, format=None):
    """Return the date written in text.

    If format is given, only that format is tried.  ValueError is raised
    if the text is not a date.
    """
    if not isinstance(text, str):
        raise TypeError("text must be a string, not %r" % type(text).__name__)
    if format is not None:
        formats = [format]
    else:
        formats = DEFAULT_FORMATS
    for format in formats:
''',
    '''import unittest
from collections import deque


class Queue:
    """A queue with a fixed size; the oldest item is dropped when it is full."""

    def __init__(self, size):
        if size < 0:
            raise ValueError("size must not be negative")
        self._items = deque(maxlen=size)

    def put(self, item):
        """Add an item to the end of the queue."""
        self._items.append(item)

    def get(self):
        """Remove and return the item at the front of the queue."""
''',
    '''class Handler:
    """Base class of the objects which handle the events of a parser."""

    def __init__(self, target=None):
        self._target = target
        self._stack = []

    def start_element(self, name, attributes):
        """Called at the start of each element."""
        self._stack.append(name)
        if self._target is not None:
            self._target.start(name, attributes)

    def end_element(self, name):
        """Called at the end of each element."""
''',
    '''#! /usr/bin/env python3

"""Usage: count [-l] [-w] [-c] [file ...]

Print the number of lines, words and characters of each file.
"""

import sys
import getopt


def usage(message=None):
    if message:
        print(message, file=sys.stderr)
    print(__doc__, file=sys.stderr)
    sys.exit(2)


def main():
    try:
        opts, args = getopt.getopt(sys.argv[1:], "lwc")
''',
    '''    def walk(self, node, depth=0):
        """Visit a node and then its children, in order."""
        method = getattr(self, "visit_" + node.__class__.__name__, None)
        if method is not None:
            result = method(node)
            if result is not None:
                return result
        for child in node.children:
            self.walk(child, depth + 1)
        return None

    def visit_Name(self, node):
        """Look the name up in the scopes, the innermost first."""
        for scope in reversed(self.scopes):
''',
    '''import asyncio
import logging

logger = logging.getLogger(__name__)


class Pool:
    """A pool of connections that are opened when they are first needed."""

    def __init__(self, connect, *, limit=10, loop=None):
        self._connect = connect
        self._limit = limit
        self._loop = loop
        self._free = []
        self._used = set()
        self._closed = False

    async def acquire(self):
        """Wait for a free connection and return it."""
        if self._closed:
            raise RuntimeError("the pool is closed")
''',
)


class Encoder(Protocol):
    """All that is needed of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...


def prompts(tokenizer: Encoder, length: int = 64, count: int = len(TEXTS)) -> list[list[int]]:
    """The first `length` tokens of each text."""
    cut = [tokenizer.encode(text)[:length] for text in TEXTS[:count]]
    short = [len(tokens) for tokens in cut if len(tokens) < length]
    assert not short, f"a text has only {min(short)} tokens, {length} were asked for"
    return cut
