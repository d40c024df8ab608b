"""How many bits the copy has where that is left open: 6 where passes wait for the link long enough, and there is room, else 4; and
which copies are smaller.

A copy of 6 bits is accepted for longer, and its levels read 1.44 times the bytes. What it takes more of memory, a codec that stores
what the copy leaves open takes less of the link, so as many bytes are streamed in the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from .blueprint import Blueprint
from .codecs import codec
from .devices import Device
from .errors import UsageError
from .options import AUTO, MORE, USUAL, Options
from .plan.placement import Plan
from .quantizers.mixed import mixed

# Foretold sizes are those of usual weights: a plan that misses its budget by less may fit after all.
FORETOLD = 1.03
# Levels of a draft that take as long as the link takes for a pass, by bytes alone, from which on more bits are chosen. By the
# model of rounds both come out even at some 8, and from 15 on more bits clearly win; what the clock said is in docs/log.md.
PAYS_FROM = 15
# What --bits may say to have a smaller copy than by these quantisers, in the order in which it is tried.
BELOW_4: tuple[int | str, ...] = ("mixed:bits=3.5", 3, 2)
FEWER: dict[str, tuple[int | str, ...]] = {USUAL: BELOW_4, MORE: (4, *BELOW_4), "int8": (4, *BELOW_4)}


def fits(blueprint: Blueprint) -> bool:
    """Does it fit with a little to spare?"""
    return blueprint.least_bytes * FORETOLD <= blueprint.budget


def streams_less(coding: str, dtype: torch.dtype) -> bool:
    """Is there less to stream of weights of `dtype` beside a copy of more bits? If not, its memory is better spent on weights that
    stay."""
    chosen = codec(coding)
    return chosen.bits(dtype, MORE) < chosen.bits(dtype, USUAL)


def pays(options: Options, dtype: torch.dtype, device: Device, drawn: Callable[[], list[Blueprint]]) -> bool:
    """Do more bits pay for weights of `dtype`, by `options` with them and a codec? Not where they do not fit, or leave texts less
    room, where nothing streams, or a speed is not known.

    drawn: the blueprints with more bits and with the usual ones, asked only where they count, since measuring takes time and
    memory."""
    # Behind an accelerator nothing was measured: the copy must draft on one processor, whose memory is the host's.
    drafts_here = options.devices is None and not device.own_memory and options.holds_substitute
    if not drafts_here or not streams_less(options.codec, dtype):
        return False
    more, usual = drawn()
    try:
        return fits(more) and (plan := more.plan()).levels_of_a_pass >= PAYS_FROM and _room(plan) == _room(usual.plan())
    except UsageError:
        # Options that no plan can have are told by whoever plans with them.
        return False


def _room(plan: Plan) -> tuple[int, int, int]:
    """What a plan gives texts: how long they may be, how many run together, what of them stays in fast memory (0: all)."""
    return plan.context, plan.rows, plan.spill_latest


def fewer_bits(options: Options) -> Iterator[tuple[int | str, Options]]:
    """What --bits may say to have a smaller copy, each with options that say so; none where no copy drafts."""
    for bits in FEWER.get(options.recipe_quantizer, ()) if options.holds_substitute else ():
        # A mix chooses the head's bits itself.
        if options.head_bits == AUTO or mixed(str(bits)) is None:
            yield bits, options.with_bits(bits)
