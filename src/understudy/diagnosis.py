"""What limits a model on this machine and what would help, by the planner's own model of rounds and what was measured here.

A limit is found by asking what would be reached without it: of all that takes time, the one whose absence helps most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from .concessions import Drawn, drafting_of
from .copy_bits import fewer_bits, pays
from .options import MORE, USUAL, Options
from .plan.memory import make_plan
from .plan.placement import Plan
from .plan.rounds import Arithmetic, Round, expected
from .plan.sizes import format_size

# As fast as if it took no time.
BOUNDLESS = 1e6
# How much more of something is tried.
TWICE = 2
# A gain below this share helps nobody.
WORTH = 0.03


@dataclass(frozen=True)
class Change:
    """A machine or a choice that differs in one respect, and the speed that is then expected."""

    what: str
    tokens_per_second: float


@dataclass(frozen=True)
class Diagnosis:
    """What a model is expected to reach here, and by what."""

    plan: Plan
    expected: Round
    # Without one of the things that take time; what limits most comes first.
    limits: tuple[Change, ...]
    # What would help and can be had, and each where it does not.
    helps: tuple[Change, ...]

    @property
    def speed(self) -> float:
        """Tokens per second of one text."""
        return self.expected.text_tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON."""
        return {
            "tokens_per_second": self.speed,
            "tokens_per_pass": self.expected.shape.tokens,
            "draft_seconds": self.expected.draft_seconds,
            "pass_seconds": self.expected.pass_seconds,
            "memory": self.plan.used,
            "streamed": self.plan.streamed_bytes,
            "limited_by": self.limits[0].what,
            "without": [asdict(limit) for limit in self.limits],
            "helps": [asdict(change) for change in self.helps],
        }

    def lines(self) -> list[str]:
        """For people."""
        streamed = f", {format_size(self.plan.streamed_bytes)} streamed per pass" if self.plan.streamed_bytes else ""
        ran, shape = self.expected, self.expected.shape
        lines = [
            f"{'expected':16} {self.speed:.1f} tok/s: {shape.tokens:.1f} tokens per pass, drafts of {shape.levels:.0f} levels"
            f" take {1e3 * ran.draft_seconds:.0f} ms, a pass {1e3 * ran.pass_seconds:.0f} ms",
            f"{'memory':16} {format_size(self.plan.used)} of {format_size(self.plan.budget_bytes)}{streamed}",
            f"{'limited by':16} {self.limits[0].what}: {self.limits[0].tokens_per_second:.1f} tok/s if it took no time",
        ]
        for limit in self.limits[1:]:
            lines.append(f"{'':16} {limit.what}: {limit.tokens_per_second:.1f} tok/s if it took no time")
        for change in self.helps:
            gain = change.tokens_per_second / self.speed - 1
            what = f"{change.tokens_per_second:.1f} tok/s" if gain > WORTH else "does not help"
            lines.append(f"{'what would help' if change is self.helps[0] else '':16} {change.what}: {what}")
        return lines


def diagnose(drawn: Drawn, options: Options, arithmetic: Arithmetic, changeable: bool) -> Diagnosis:
    """What the model that `drawn` draws reaches with `options`, and what limits it.

    changeable: may its copy have other bits? Raises UsageError where it does not fit."""
    plan = drawn(options).plan()
    drafting = drafting_of(options, plan)

    def speed(plan: Plan, arithmetic: Arithmetic) -> float:
        return expected(plan, arithmetic, drafting).text_tokens_per_second

    limits = [Change(what, speed(*without)) for what, without in _without(plan, arithmetic)]
    limits.sort(key=lambda limit: -limit.tokens_per_second)
    return Diagnosis(
        plan=plan,
        expected=expected(plan, arithmetic, drafting),
        limits=tuple(limits),
        helps=tuple(_helps(drawn, options, arithmetic, changeable, plan)),
    )


def _without(plan: Plan, arithmetic: Arithmetic) -> Iterator[tuple[str, tuple[Plan, Arithmetic]]]:
    """What takes time, each with the plan and the arithmetic of a machine on which it takes none."""
    if plan.streamed_bytes:
        speeds = replace(plan.speeds, link_bytes_per_second=plan.speeds.link_bytes_per_second * BOUNDLESS)
        yield "link (exact weights are streamed)", (replace(plan, speeds=speeds), arithmetic)
    # What rebuilding takes beyond multiplying weights as they lie.
    rebuilding = max(1 / arithmetic.rebuilt_rate - 1 / arithmetic.plain_rate, 0.0)
    yield "decoding (exact weights are rebuilt)", (plan, replace(arithmetic, rebuilt_rate=arithmetic.plain_rate))
    alone = {"rebuilt_rate": 1 / max(rebuilding, 1e-20), "plain_rate": arithmetic.plain_rate * BOUNDLESS, "node_seconds": 0.0}
    yield "products (of exact weights)", (plan, replace(arithmetic, **alone))
    levels = {"level_layer": 0.0, "level_node": 0.0, "level_rest": 0.0, "head_level": 0.0}
    drafted = {"copy_rate": arithmetic.copy_rate * BOUNDLESS, "copy_node_seconds": 0.0}
    yield "drafting", (plan, replace(arithmetic, **drafted, **levels))
    passes = {"pass_layer": 0.0, "pass_node": 0.0, "pass_tile": 0.0, "part_seconds": 0.0, "round_rest": 0.0}
    yield "work beside the products", (plan, replace(arithmetic, **levels, **passes))


def _helps(drawn: Drawn, options: Options, arithmetic: Arithmetic, changeable: bool, plan: Plan) -> Iterator[Change]:
    """More memory, a faster link, more or fewer bits of the copy: each planned anew."""
    budget = TWICE * plan.budget_bytes
    blueprint = drawn(options)
    request = replace(blueprint.request(plan.context, plan.rows), budget_bytes=budget)
    tried = [(f"twice the memory ({format_size(budget)})", options, make_plan(blueprint.footprint, request))]
    if plan.streamed_bytes and plan.link_bytes_per_second:
        link = TWICE * plan.link_bytes_per_second
        faster = replace(options, throttle=link)
        tried.append((f"twice the link ({link / 1e9:.2f} GB/s)", options, drawn(faster).plan()))
    more = options.with_copy(MORE)
    open_to_more = changeable and options.recipe_quantizer == USUAL
    if open_to_more and pays(more, blueprint.dtype, blueprint.device, lambda: [drawn(more), blueprint]):
        tried.append((f"--bits {MORE.removeprefix('int')}", more, drawn(more).plan()))
    for bits, fewer in fewer_bits(options) if changeable else ():
        tried.append((f"--bits {bits}", fewer, drawn(fewer).plan()))
    for what, other, changed in tried:
        yield Change(what, expected(changed, arithmetic, drafting_of(other, changed)).text_tokens_per_second)
