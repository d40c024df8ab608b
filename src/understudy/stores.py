"""Which Store of a checkpoint is in the cache, by what options leave open: bits of the copy and of its head, its text, the codec.

One that is there is taken, where it fits, so that other memory, or another verdict on what is faster, prepares nothing anew. Nor
does a process that starts while another makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from .codecs import copying
from .errors import StoreError
from .options import AUTO, MORE, USUAL, Options
from .weights.checkpoint import Checkpoint
from .weights.entries import INDEX
from .weights.layout import ModelLayout
from .weights.prepare import found
from .weights.recipe import Recipe
from .weights.store import Store
from .weights.writing import await_process, explained, lock_of, only_process

# A Store that is there, and options as it was made.
Made = tuple[Store, Options]


class Ceiling(Protocol):
    """What fits in the memory there is, asked before a checkpoint is prepared."""

    def suited(self, config: Any, layout: ModelLayout, options: Options) -> Options:
        """Options with the copy chosen, and what takes more room than there is left out, where they leave it open."""

    def holds(self, store: Store, config: Any, options: Options) -> bool:
        """Does a Store that is there fit, with what options leave open as in it?"""

    def pays(self, more: Made, usual: Made, config: Any) -> bool:
        """Of two Stores that are there, is it the one of more bits that would be made here if none were?"""

    def check_preparing(self, layout: ModelLayout) -> None:
        """Raise UsageError where there is no room to prepare a checkpoint, or to measure which codec suits it."""

    def check(self, config: Any, layout: ModelLayout, options: Options) -> None:
        """Raise UsageError for what cannot fit. Options have all that was left open chosen."""


def prepared(source: Checkpoint, config: Any, options: Options, ceiling: Ceiling | None) -> tuple[Store | None, Options]:
    """The Store of `source` that is in the cache, if one is there and fits, and options as it was made: then nothing has to be
    known of the checkpoint but its name and its files' sizes and dates.

    Of each number of bits that options leave open it is the first of those there may be. Where there are copies of the usual bits
    and of more, it is the one of more where `ceiling` says that it pays and it fits, and else the other. Where no Store is taken, a
    copy of more bits that is there, and does not fit, leaves the usual ones to be made."""
    if options.output is not None:
        return None, options
    there: dict[str, Made] = {}
    for candidate in left_open(options):
        directory = stored_at(source, candidate)
        if candidate.recipe_quantizer in there or not (directory / INDEX).is_file():
            continue
        try:
            there[candidate.recipe_quantizer] = found(directory, source, candidate.recipe), candidate
        except StoreError:
            # One of more bits that is damaged, or just going, is not missed where one of the usual bits is there.
            if not there:
                raise
    choices = list(there.values())
    if len(choices) > 1 and ceiling is not None and ceiling.pays(there[MORE], there[USUAL], config):
        choices.reverse()
    chosen = not (options.head_left_open or options.bits_left_open)
    for store, candidate in choices:
        if ceiling is None or chosen or ceiling.holds(store, config, candidate):
            return store, candidate
    return None, options.with_copy(USUAL) if options.bits_left_open and MORE in there else options


def as_made(options: Options, recipe: Recipe) -> Options:
    """Options with what they leave open as in the Store that is there. Earlier versions fitted nothing to a text."""
    if options.calibrate is None and not recipe.calibrated:
        options = replace(options, text=None)
    if options.bits_left_open:
        options = options.with_copy(recipe.quantizer)
    return replace(options, recipe_head=recipe.head) if options.head_bits == AUTO else options


def left_open(options: Options) -> list[Options]:
    """All that options may mean, best first; of copies the usual one. Earlier versions fitted nothing to a text, and heads had the
    bits of all weights."""
    open_bits = options.bits_left_open and not options.copy_chosen
    texts = [options.text] if options.calibrate is not None else [options.text, None]
    codecs = copying() if options.codec == AUTO else [options.codec]
    return [
        replace(copy, recipe_head=head, text=text, codec=name)
        for copy in ([options, options.with_copy(MORE)] if open_bits else [options])
        for head in ([copy.recipe_head, ""] if copy.head_left_open else [copy.recipe_head])
        for text in texts
        for name in codecs
    ]


def places(source: Checkpoint, options: Options) -> list[Path]:
    """Where a Store of `source` may be, whatever options leave open."""
    if options.output is not None:
        return [Path(options.output).expanduser()]
    return [stored_at(source, candidate) for candidate in left_open(options)]


@contextmanager
def only_chooser(source: Checkpoint, options: Options, waiting: Callable[[], None]) -> Iterator[None]:
    """While this is entered, no other process makes a Store of `source` that `options` may mean, or chooses which one to make: what
    another has made is there before anything is chosen.

    `waiting()` is called, maybe twice, where one does. Raises StoreError where there can be no file that says who chooses."""
    open_ = places(source, options)
    first = open_[0].absolute()
    # In the cache whoever chooses may come to any place for this checkpoint; what --output names is one place.
    name = source.fingerprint if options.output is None else first.name
    with explained(first.parent):
        first.parent.mkdir(parents=True, exist_ok=True)
    with only_process(first.with_name(f"{name}.choosing"), waiting):
        with explained(first.parent):
            for place in open_:
                await_process(lock_of(place.absolute()), waiting)
        yield


def stored_at(source: Checkpoint, options: Options) -> Path:
    """The directory in the cache for the Store of `source`."""
    return options.recipe.store_path(source.path.name, source.fingerprint, options.cache)
