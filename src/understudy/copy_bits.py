"""How many bits the copy has where that is left open: 6 where passes wait for the link long enough, and there is room, else 4.

A copy of 6 bits is accepted for longer, and its levels read 1.44 times the bytes. What it takes more of memory, a codec that stores
what the copy leaves open takes less of the link, so as many bytes are streamed in the same memory."""

from __future__ import annotations

import torch

from .blueprint import Blueprint
from .codecs import codec
from .devices import Device
from .errors import UsageError
from .options import MORE, USUAL, Options
from .plan.placement import Plan

# Foretold sizes are those of usual weights: a plan that misses its budget by less may fit after all.
FORETOLD = 1.03
# Levels of a draft that take as long as the link takes for a pass, by bytes alone, from which on more bits are chosen. By the
# model of rounds both come out even at some 8, and from 15 on more bits clearly win; what the clock said is in docs/log.md.
PAYS_FROM = 15


def fits(blueprint: Blueprint) -> bool:
    """Does it fit with a little to spare?"""
    return blueprint.least_bytes * FORETOLD <= blueprint.budget


def may_pay(options: Options, device: Device) -> bool:
    """Can more bits be worth anything: does the copy draft on one processor, whose memory is the host's? Behind an accelerator
    nothing was measured."""
    return options.devices is None and not device.own_memory and options.holds_substitute


def streams_less(coding: str, dtype: torch.dtype) -> bool:
    """Is there less to stream of weights of `dtype` beside a copy of more bits? If not, its memory is better spent on weights that
    stay."""
    chosen = codec(coding)
    return chosen.bits(dtype, MORE) < chosen.bits(dtype, USUAL)


def pays(more: Blueprint, usual: Blueprint) -> bool:
    """Do more bits pay, by the blueprints with them and with the usual ones? Not where they do not fit, or leave texts less room,
    where nothing streams, or a speed is not known."""
    try:
        return fits(more) and (plan := more.plan()).levels_of_a_pass >= PAYS_FROM and _room(plan) == _room(usual.plan())
    except UsageError:
        # Options that no plan can have are told by whoever plans with them.
        return False


def _room(plan: Plan) -> tuple[int, int, int]:
    """What a plan gives texts: how long they may be, how many run together, what of them stays in fast memory (0: all)."""
    return plan.context, plan.rows, plan.spill_latest
