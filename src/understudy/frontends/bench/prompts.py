"""Fixed texts to measure with: ordinary Python, written for this purpose, so no model has seen it. They never change,
since a changed prompt is another benchmark."""

import random
from collections.abc import Sequence
from typing import Any

TEXTS = (
    '''"""Counting words in a folder of letters."""

import collections
import pathlib
import re

WORD = re.compile(r"[A-Za-z']+")


def words(path):
    """All words of one file, in lower case."""
    text = path.read_text(encoding="utf-8")
    return [match.group().lower() for match in WORD.finditer(text)]


def count(folder):
    """How often each word stands in the letters of a folder."""
    total = collections.Counter()
    for path in sorted(pathlib.Path(folder).glob("*.txt")):
        total.update(words(path))
    return total


def report(total, limit=20):
''',
    '''class Inventory:
    """What is in the store room, and what has been promised to someone."""

    def __init__(self, capacity=100):
        self.capacity = capacity
        self.items = {}
        self.promised = {}

    def add(self, name, amount):
        """Put some more of an item on the shelf."""
        if amount <= 0:
            raise ValueError("amount must be positive")
        if self.total() + amount > self.capacity:
            raise OverflowError("the shelf is full")
        self.items[name] = self.items.get(name, 0) + amount

    def total(self):
        return sum(self.items.values())

    def remove(self, name, amount):
        """Take some of an item off the shelf."""
''',
    '''import argparse
import logging
import socket
import threading

log = logging.getLogger(__name__)


class EchoServer(threading.Thread):
    """Sends every line back to whoever wrote it."""

    def __init__(self, host, port):
        super().__init__(daemon=True)
        self.address = (host, port)
        self.running = threading.Event()

    def run(self):
        with socket.create_server(self.address) as server:
            self.running.set()
            while self.running.is_set():
                connection, peer = server.accept()
                log.info("connection from %s", peer)
                self.serve(connection)

    def serve(self, connection):
''',
    '''def parse_duration(text):
    """Turn '1h30m' into seconds.

    >>> parse_duration("90s")
    90
    >>> parse_duration("1h30m")
    5400
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    total, number = 0, ""
    for character in text:
        if character.isdigit():
            number += character
        elif character in units and number:
            total += int(number) * units[character]
            number = ""
        else:
            raise ValueError(f"invalid duration: {text!r}")
    if number:
        raise ValueError(f"no unit after {number} in {text!r}")
    return total


def format_duration(seconds):
''',
    """import unittest
from shapes import Circle, Polygon, Rectangle, distance


class RectangleTest(unittest.TestCase):
    def setUp(self):
        self.small = Rectangle(0, 0, 2, 3)
        self.large = Rectangle(0, 0, 20, 30)

    def test_area(self):
        self.assertEqual(self.small.area(), 6)
        self.assertEqual(self.large.area(), 600)

    def test_contains(self):
        self.assertTrue(self.large.contains(self.small))
        self.assertFalse(self.small.contains(self.large))

    def test_negative_width(self):
        with self.assertRaises(ValueError):
            Rectangle(0, 0, -1, 3)


class CircleTest(unittest.TestCase):
""",
    '''class Matrix:
    """A small dense matrix of numbers, row by row."""

    def __init__(self, rows):
        self.rows = [list(row) for row in rows]
        widths = {len(row) for row in self.rows}
        if len(widths) > 1:
            raise ValueError("rows of different lengths")

    @property
    def shape(self):
        return len(self.rows), len(self.rows[0]) if self.rows else 0

    def __getitem__(self, index):
        row, column = index
        return self.rows[row][column]

    def transpose(self):
        return Matrix(zip(*self.rows))

    def __matmul__(self, other):
''',
    '''import json
import os
import tempfile


def load_settings(path, defaults=None):
    """Read settings from a JSON file; missing keys come from the defaults."""
    settings = dict(defaults or {})
    try:
        with open(path, encoding="utf-8") as file:
            settings.update(json.load(file))
    except FileNotFoundError:
        pass
    return settings


def save_settings(path, settings):
    """Write settings so that a reader never sees half a file."""
    folder = os.path.dirname(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".settings")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
''',
    '''def shortest_path(graph, start, goal):
    """The path from start to goal with the smallest sum of weights, or None.

    The graph maps each node to a dictionary of its neighbours and the
    weights of the edges that lead there.
    """
    import heapq

    queue = [(0, start, [start])]
    visited = set()
    while queue:
        cost, node, path = heapq.heappop(queue)
        if node == goal:
            return cost, path
        if node in visited:
            continue
        visited.add(node)
        for neighbour, weight in graph.get(node, {}).items():
            if neighbour not in visited:
                heapq.heappush(queue, (cost + weight, neighbour, path + [neighbour]))
    return None


def connected_components(graph):
''',
)


# The shortest of prompts and answers of mixed lengths, in tokens.
SHORTEST = 16
# Tokens that are cut off the end of a text each time that it is used again.
CUT = 13


def prompts(tokenizer: Any, count: int, length: int, first: int = 0) -> list[list[int]]:
    """`count` prompts of exactly `length` tokens, beginning with that of text number `first`. Each ends where its text ends
    (a place to go on from); a longer one has other texts before it."""
    found = []
    for index in range(first, first + count):
        ids: list[int] = []
        step = 0
        while len(ids) < length:
            text = TEXTS[(index - step) % len(TEXTS)]
            ids = tokenizer.encode(text, add_special_tokens=False) + ids
            step += 1
        found.append(ids[-length:])
    return found


def mixed_lengths(count: int, longest: int, seed: int) -> list[int]:
    """`count` lengths from SHORTEST (or `longest`, if that is less) to `longest`, each magnitude as likely as any other; always the
    same ones."""
    shortest = min(SHORTEST, longest)
    drawn = random.Random(seed)
    return [round(shortest * (longest / shortest) ** drawn.random()) for _ in range(count)]


def mixed_prompts(tokenizer: Any, lengths: Sequence[int]) -> list[list[int]]:
    """A prompt of each of `lengths` tokens. No two end alike: after each round through the texts, more is cut off their ends."""
    found = []
    for index, length in enumerate(lengths):
        cut = index // len(TEXTS) * CUT
        (whole,) = prompts(tokenizer, 1, length + cut, index)
        found.append(whole[:length])
    return found
