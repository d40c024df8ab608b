"""What a planned conversation takes, and what is given up in which order where memory is short: each step with budget and speed.

SpecMemo (arXiv 2506.01986) shrinks the tree, then its heads, then the weights. Here exact weights that stay go first, since they
only spare the link, then long pieces of prompts, wide trees, old keys and values, bits of the copy, and at last drafting."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .blueprint import Blueprint
from .chat_table import KEPT, Chat, Concession
from .codecs import FALLBACK
from .copy_bits import fewer_bits
from .drafters import PLAIN_METHOD
from .drafters.search import SearchSpec
from .drafters.start import START, Start
from .errors import UsageError
from .options import AUTO, USUAL, Options
from .plan.conversation import Conversation
from .plan.demand import MIB
from .plan.drafts import Drafting
from .plan.memory import FEW_TILES, MARGIN, budget_for, make_plan, smallest_budget, smallest_passes, widened
from .plan.placement import Passes, Plan
from .plan.rounds import Arithmetic, expected
from .plan.sizes import format_size, whole_mib
from .plan.terms import terms
from .spilled import LATEST

# A budget that no model needs.
PLENTY = 1 << 50
# What may be held while the rest gives way.
FITS = ("context", "speed", "memory")
# Tokens of a pass with a trained head alone, where nothing was measured: those of papers and of this project give 2 to 6.
HEAD_TOKENS = 4.0

# Draws the blueprint of the model for other options.
Drawn = Callable[[Options], Blueprint]


@dataclass(frozen=True)
class Planner:
    """Makes steps for one conversation with one model."""

    conversation: Conversation
    arithmetic: Arithmetic
    drawn: Drawn
    # Options with the copy that a run in a budget of so many bytes would have.
    in_budget: Callable[[int], Options]
    # May the copy have other bits, and exact weights another codec? Not where they are prepared already.
    changeable: bool

    def step(self, options: Options, given: Sequence[str], budget: int | None = None, passes: Passes | None = None) -> Concession:
        """The arrangement of `options` in `budget`, or in the smallest one for `passes`, or the smallest there is.

        given: what is given up, and the options that say so. Raises UsageError where it does not fit."""
        blueprint = self.drawn(options)
        request = blueprint.request(self.conversation.tokens, self.conversation.clients)
        if budget is None:
            budget = budget_for(blueprint.footprint, request, passes or smallest_passes(request))
        request = replace(request, budget_bytes=budget)
        plan = replace(make_plan(blueprint.footprint, request), least_bytes=smallest_budget(blueprint.footprint, request))
        plan = replace(plan, device=blueprint.device.name, method=options.method, copy=blueprint.copy)
        round_ = expected(plan, self.arithmetic, drafting_of(options, plan))
        return Concession(given[0], given[1], budget, round_, plan, terms(plan, blueprint.footprint, request))

    def by_itself(self, options: Options, gives_up: str, budget: int | None = None, passes: Passes | None = None) -> Concession:
        """What a run without options does in `budget`, or in the smallest one for `passes` with the copy of `options`: it chooses
        other bits of the copy where they suit that budget better."""
        if budget is None:
            budget = self.step(options, (gives_up, ""), passes=passes).budget_bytes
        try:
            return self.step(self.in_budget(budget), (gives_up, ""), budget)
        except UsageError:
            # Beside a smaller head its exact part is larger, and may not fit by a page or two: as with bits that are asked for.
            return self.step(options, (gives_up, ""), budget)

    def steps(self, options: Options, head: str = "") -> Iterator[Concession]:
        """All steps, in order. `head`: the method of a trained head that may draft in the place of the copy."""
        blueprint = self.drawn(options)
        request = blueprint.request(self.conversation.tokens, self.conversation.clients)
        least = smallest_passes(request)
        most = widened(least, PLENTY, blueprint.footprint, request)
        # Where many read at once, the smallest passes have more.
        few = max(min(FEW_TILES, most.tiles - most.trees), least.tiles - least.trees)
        everything = self.by_itself(options, "nothing: all that helps stays in fast memory", PLENTY)
        yield self.by_itself(options, everything.gives_up, int(everything.plan.used / (1 - MARGIN)) + 1)
        yield self.by_itself(options, "exact weights that stay", passes=most)
        yield self.by_itself(options, "long pieces of prompts", passes=Passes(most.trees, most.trees + few))
        yield self.by_itself(options, "wide trees: tiles of drafts", passes=Passes(least.trees, least.trees + few))
        yield self.by_itself(options, "pieces of prompts of more than a tile")
        spill, stays = "", options
        bits, kept = options.recipe_quantizer.removeprefix("int"), kept_bits(options)
        if (spilled := self.spilling(options)) is not options:
            options, spill = spilled, f"--spill {spilled.spill} "
            yield self.step(options, ("keys and values of old tokens in fast memory: they go to disk", spill.strip() + kept))
        if self.changeable and options.head_left_open:
            said = f"{spill}--head-bits {bits}{kept}"
            yield self.step(replace(options, recipe_head=""), ("the output head's own 8 bits", said))
        for less, fewer in fewer_bits(options) if self.changeable else ():
            yield self.step(fewer, (f"bits of the copy: {str(less).removeprefix('mixed:bits=')}", f"{spill}--bits {less}"))
        if head:
            yield self.step(replace(options, method=head), ("the copy: a trained head drafts", f"{spill}--method {head}"))
        said = f"--method {PLAIN_METHOD}" + (f" --codec {FALLBACK}" if self.recoded(options) else "")
        if spill:
            # Without a copy all keys and values may fit, which is faster than to bring them from disk.
            roomy = self.step(self.plain(stays), ("drafting, while all keys and values stay in fast memory", said))
            smallest = replace(options, method=head) if head else self.fewest_bits(options)
            if roomy.budget_bytes < self.step(smallest, ("", "")).budget_bytes:
                yield roomy
        yield self.step(self.plain(options), ("drafting: no copy, no residents, the smallest ring", spill + said))

    def fewest_bits(self, options: Options) -> Options:
        """`options` with the smallest copy that may be had."""
        return [options, *(fewer for _, fewer in fewer_bits(options) if self.changeable)][-1]

    def spilling(self, options: Options) -> Options:
        """Options under which keys and values of old tokens go to disk; the same ones where they may not, or that saves nothing."""
        if options.spill != AUTO or not self.drawn(options).can_spill:
            return options
        spilled = replace(options, spill=LATEST)
        tokens, clients = self.conversation.tokens, self.conversation.clients
        drawn = self.drawn(options), self.drawn(spilled)
        stays, spills = (smallest_budget(one.footprint, one.request(tokens, clients)) for one in drawn)
        return spilled if spills < stays else options

    def recoded(self, options: Options) -> bool:
        """Would plain decoding have exact weights in another codec, which needs no copy?"""
        return self.changeable and options.codec not in ("link", FALLBACK)

    def plain(self, options: Options) -> Options:
        """Options under which nothing drafts, in the least memory."""
        plain = replace(options, method=PLAIN_METHOD)
        return replace(plain, codec=FALLBACK) if self.recoded(options) else plain

    def turns_in(self, options: Options, budget: int) -> int:
        """How many turns of the conversation `budget` holds with `options`, without drafting."""
        blueprint = self.drawn(self.plain(self.spilling(options)))

        def needed(turns: int) -> int:
            request = blueprint.request(replace(self.conversation, turns=turns).tokens, self.conversation.clients)
            return smallest_budget(blueprint.footprint, request)

        return bisect_right(range(1, self.conversation.turns + 1), budget, key=needed)

    def keeping(self, options: Options, first: Concession, last: Concession) -> Concession:
        """The smallest budget, to the MiB, at which drafting with `options` keeps KEPT of the speed of `first`; `last` is the
        smallest arrangement of theirs."""
        wanted = KEPT * first.expected.tokens_per_second
        low, high = last.budget_bytes, first.budget_bytes
        while high - low > MIB:
            middle = (low + high) // 2
            fast = self.by_itself(options, "", middle).expected.tokens_per_second >= wanted
            low, high = (low, middle) if fast else (middle, high)
        return self.by_itself(options, f"{KEPT:.0%} of the speed is kept", high)


def kept_bits(options: Options) -> str:
    """What a person writes after other options to keep a copy of more than the usual bits, which was chosen: in less memory others
    might be."""
    open_ = options.bits_left_open and options.recipe_quantizer != USUAL
    return f" --bits {options.recipe_quantizer.removeprefix('int')}" if open_ else ""


def start_of(options: Options) -> Start:
    """What the drafter's search expects of a pass: measured by `understudy scale`, or what is always expected."""
    drafter = options.drafter
    return drafter.start if isinstance(drafter, SearchSpec) else START


def drafting_of(options: Options, plan: Plan) -> Drafting | None:
    """What the drafter of `options` is expected to give; None: nothing drafts, or nobody knows what is drafted."""
    if options.holds_substitute:
        return Drafting.by_copy(options.recipe_quantizer)
    if "draft head" not in plan.items:
        return None
    start = start_of(options)
    tokens = HEAD_TOKENS if start is START else start.tokens_per_pass
    return replace(Drafting.seen(tokens, tokens + 1, 2 * tokens), head_bytes=plan.head_level_bytes)


def plan_chat(planner: Planner, options: Options, fit: str, head: str = "") -> Chat:
    """What the conversation takes, and what to run on the budget of `options`. Raises UsageError where it cannot be held."""
    assert options.codec != AUTO, "the codec must be chosen before a conversation is planned"
    blueprint = planner.drawn(options)
    planner.conversation.check_positions(blueprint.shape.positions)
    budget = blueprint.budget
    steps = tuple(planner.steps(options, head))
    drafts = drafting_of(options, steps[0].plan) is not None
    own = [step for step in steps if not step.options]
    keeping = planner.keeping(options, own[0], own[-1]) if drafts else None
    notes = ["speeds are those of text like the built-in model's; other text is accepted more or less often"]
    if not planner.changeable:
        notes.append("the model is prepared: other bits of the copy or another codec would prepare it anew")
    chosen = chosen_step(planner, options, steps, keeping, (fit, budget))
    return Chat(planner.conversation, fit, budget, steps, keeping, chosen, tuple(notes))


def chosen_step(
    planner: Planner, options: Options, steps: Sequence[Concession], keeping: Concession | None, asked: tuple[str, int]
) -> Concession:
    """What to run, for what is to be held and the budget `asked`. Raises UsageError where it does not fit."""
    fit, budget = asked
    lowest = min(steps, key=lambda step: step.budget_bytes)
    if lowest.budget_bytes > budget:
        raise UsageError(_too_long(planner, options, lowest, budget))
    if fit == "memory":
        return lowest
    if fit == "speed":
        held = keeping or steps[0]
        if held.budget_bytes > budget:
            raise UsageError(
                f"Drafting keeps {KEPT:.0%} of its speed from {whole_mib(held.budget_bytes)} on, and --memory is"
                f" {format_size(budget)}: plan fewer turns or clients, or --fit context."
            )
        return held
    first = next(step for step in steps if step.budget_bytes <= budget)
    if not first.options:
        return planner.by_itself(options, first.gives_up, budget)
    return first


def _too_long(planner: Planner, options: Options, lowest: Concession, budget: int) -> str:
    """The error of a conversation that does not even fit without drafting: how many turns do."""
    talk = planner.conversation
    needed = f"{talk.turns} turns need {whole_mib(lowest.budget_bytes)} at least ({lowest.gives_up})"
    text = f"{needed}, and --memory is {format_size(budget)}"
    fewer = planner.turns_in(options, budget)
    fit = "1 turn fits" if fewer == 1 else f"{fewer} turns fit"
    return f"{text}: {fit}." if fewer else f"{text}: no turn fits; use more memory or a smaller model."
