"""Taps: hidden states of the target, handed out while it runs, for drafters that read the model's mind.

A tap is a place in transformers' list `hidden_states`: 0 is what the first decoder block is given, k is what block k
gives (the first is number 1), and the last is what the head is given, after the final norm. -1 is the last, -2 the
one before it. BEFORE_NORM is what the list lacks: what the last block gives, before the final norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..errors import UsageError
from .stock.shape import mixed_states
from .stock.structure import decoder_blocks
from .streamed import CurrentPass

# The tap of what the last decoder block gives, before the final norm.
BEFORE_NORM = 1 << 20
# The tap of what the block in the middle is given: number n // 2 of n blocks.
MIDDLE = 1 << 21


@runtime_checkable
class Tapped(Protocol):
    """A pass that takes hidden states; those of another pass are nobody's."""

    def tap(self, number: int, states: Tensor) -> None:
        """Take the hidden states [n, hidden size] at tap `number`."""


def places_of(taps: Sequence[int], blocks: int) -> list[int]:
    """`taps` in a model of so many decoder blocks, counted from the start. BEFORE_NORM stays as it is. Raises UsageError for a
    place that the model has not."""
    taps = [blocks // 2 if tap == MIDDLE else tap for tap in taps]
    for tap in taps:
        if tap != BEFORE_NORM and not -blocks - 1 <= tap <= blocks:
            raise UsageError(f"The drafter reads hidden state {tap}, but this model of {blocks} layers has 0 to {blocks}.")
    return [tap if tap == BEFORE_NORM else tap % (blocks + 1) for tap in taps]


def install(model: nn.Module, taps: Sequence[int], current: CurrentPass) -> None:
    """Make `model` hand its hidden states at `taps` to the pass under way, as tap number 0, 1, ... in the order of
    `taps`.

    The decoder blocks are found by their Linears, which must still be there. Raises UsageError for a place without one state."""
    _, blocks = decoder_blocks(model)
    # Some classes call their base, others what lies in it.
    decoder = model.get_decoder()  # type: ignore[operator]
    places = places_of(taps, len(blocks))
    mixed = mixed_states(model.config)
    if between := [tap for tap, place in zip(taps, places, strict=True) if mixed > 1 and place != len(blocks)]:
        what = f"its layers hand on {mixed} states side by side that are mixed anew each time"
        raise UsageError(f"The drafter reads hidden state {between[0]} of this model, but {what}: only -1 can be read.")
    for number, place in enumerate(places):
        tap = _Tap(number, current)
        if place == 0:
            blocks[0].register_forward_pre_hook(tap.before, with_kwargs=True)
        elif place < len(blocks) or place == BEFORE_NORM:
            block = blocks[-1] if place == BEFORE_NORM else blocks[place - 1]
            block.register_forward_hook(tap.after)
        else:
            decoder.register_forward_hook(tap.after_all)


class _Tap:
    """Hooks of one tap, as torch calls them."""

    def __init__(self, number: int, current: CurrentPass):
        self.number = number
        self.current = current

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._hand_over(args[0] if args else kwargs["hidden_states"])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._hand_over(output if isinstance(output, Tensor) else output[0])

    def after_all(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._hand_over(output.last_hidden_state)

    def _hand_over(self, states: Tensor) -> None:
        """states: [1, n, hidden size], or of states side by side [count, 1, n, hidden size], of which the first is meant."""
        if isinstance(self.current.under_way, Tapped):
            self.current.under_way.tap(self.number, states.reshape(-1, *states.shape[-2:])[0])
