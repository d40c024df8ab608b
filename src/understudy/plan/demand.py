"""What a plan is asked to place: the bytes a model takes, and what the user wants of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .residents import UNKNOWN, LinearSize, LinkSpeeds
from .widths import GRAPHS, SCORED, of_group

MIB = 1 << 20
# Interpreter, torch, transformers, compiled kernels and allocator slack in a program of somebody else's; measured, see docs/log.md.
RUNTIME = 490 * MIB
# What importing all that a run needs takes of memory that the kernel cannot take back, and a little of what it could.
IMPORTED = 224 * MIB
# What a process that prepares and compiles nothing grows by until weights are read, its tokenizer aside: kernels that are on disk.
EXPECTED_GROWTH = 68 * MIB
# What it grows by from then on, beside all that a plan counts: modules of the model, threads, what libraries keep.
REST = 20 * MIB
# The driver's context and libraries on a device.
RUNTIME_CUDA = 700 * MIB
# The search's state on a device for each sequence: nodes, their children, where each one's path lies.
SEARCH = 900 << 10
# What torch and the driver keep for one recorded level: a guess that no GPU has confirmed.
GRAPH = 8 * MIB
# Of the budget, for the KV cache of all sequences where the user did not say how many; and how many they are at most.
CACHE_SHARE = 0.04
MOST_ROWS = 8


@dataclass(frozen=True)
class LevelSize:
    """Bytes that the levels of a draft take on a device, weights aside."""

    # For each node of the widest level.
    node_bytes: int
    # For each node whose noise is made, of which at most SCORED are made together.
    noise_bytes: int
    # For the search of each sequence.
    sequence_bytes: int = SEARCH
    # What all recorded levels keep.
    recorded_bytes: int = GRAPHS * GRAPH

    def total(self, widest_level: int, rows: int, groups: int = 1) -> int:
        """Bytes for levels of at most `widest_level` nodes of `rows` sequences, all together or in so many groups side by side.
        Each search keeps a spare sequence."""
        kept = self.sequence_bytes * (rows + 1) + self.recorded_bytes
        level = self.node_bytes * widest_level + self.noise(widest_level)
        if groups > 1:
            some, width = of_group(widest_level, rows)
            kept += groups * self.sequence_bytes * (some + 1)
            level = max(level, groups * (self.node_bytes * width + self.noise(width)))
        return kept + level

    def noise(self, widest_level: int) -> int:
        """Bytes for the noise of a level of so many nodes."""
        return self.noise_bytes * min(widest_level, SCORED)


@dataclass(frozen=True)
class Spilling:
    """How many tokens of each text stay in fast memory where keys and values spill to a file."""

    # The latest tokens that stay at least.
    latest: int
    # Slots of a row that this takes.
    slots: int


@dataclass(frozen=True)
class SpillSizes:
    """Bytes that a model takes where keys and values of layers that see all spill, for `threads` that attend side by side."""

    # Keys and values of those layers, for one token of one sequence.
    token_bytes: int
    # The rooms for what comes from the file.
    rooms_bytes: int
    # Threads that attend side by side.
    threads: int


@dataclass(frozen=True)
class LayerSize:
    """What one decoder layer keeps of one sequence. Sizes are bytes."""

    # Keys and values of one token.
    token_bytes: int
    # Tokens that it holds at most; 0: the whole context.
    slots: int = 0
    # Of a recurrent part: states with the records that the next token reads, and each record of a tree's nodes.
    state_bytes: int = 0
    record_bytes: int = 0
    # The layer whose keys and values it reads: its own number, or an earlier one.
    reads: int = 0


@dataclass(frozen=True)
class Footprint:
    """The bytes that a model takes in memory."""

    # Each residual part, in the order of a pass.
    part_bytes: tuple[int, ...]
    # The substitutes that are held, to draft or to decode with.
    substitute_bytes: int
    # Norms and biases.
    shared_bytes: int
    # Keys and values of the layers that hold the whole context, for one token of one sequence.
    kv_bytes_per_token: int
    # What one tile of a pass holds beside its logits.
    tile_bytes: int
    # The logits of one tile.
    tile_logits_bytes: int
    # What choosing tokens from logits takes.
    choosing_bytes: int
    # The embedding table on a device, or the rows of it that are kept.
    embedding_bytes: int
    # The largest part that must be decoded into a buffer.
    decoding_bytes: int = 0
    # Up to how many bytes neighbouring parts of a Linear stay or stream together; 0: each by itself.
    together_bytes: int = 0
    # The tokenizer's tables.
    tokenizer_bytes: int = 0
    # What this process holds beyond what was expected of it; below 0: it holds less.
    grown_bytes: int = 0
    # Keys and values of the layers that hold a window: bytes for one token of one sequence, and tokens held at most.
    kv_windows: tuple[tuple[int, int], ...] = ()
    # Of recurrent layers, for one sequence: states and the records that its next token reads, and each record of a tree's nodes.
    state_bytes: int = 0
    record_bytes: int = 0
    # What a recurrent layer computes with on a device.
    working_bytes: int = 0
    # Each Linear, in the order of a pass.
    linears: tuple[LinearSize, ...] = ()
    # The levels of a draft that is searched on a device; None: the host searches, or nothing drafts.
    levels: LevelSize | None = None
    # What spilling takes; None: these layers cannot spill, or nothing here does.
    spill: SpillSizes | None = None
    # Each decoder layer.
    layers: tuple[LayerSize, ...] = ()
    # The state that a layer hands on, for one node.
    state_line: int = 0

    def with_layers(self, layers: Sequence[LayerSize]) -> Footprint:
        """The same with what these decoder layers keep, and no others."""
        # By slots that are held at most (0: the whole context), bytes of one token.
        tokens: dict[int, int] = {}
        for layer in layers:
            if layer.token_bytes:
                tokens[layer.slots] = tokens.get(layer.slots, 0) + layer.token_bytes
        return replace(
            self,
            kv_bytes_per_token=tokens.pop(0, 0),
            kv_windows=tuple((nbytes, slots) for slots, nbytes in sorted(tokens.items())),
            state_bytes=sum(layer.state_bytes for layer in layers),
            record_bytes=sum(layer.record_bytes for layer in layers),
            layers=tuple(layers),
        )

    @property
    def exact_bytes(self) -> int:
        """The exact weights of all Linears: what a pass reads."""
        return sum(linear.exact_bytes for linear in self.linears)

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of one sequence with `tokens` cache slots."""
        windows = sum(token_bytes * min(tokens, most) for token_bytes, most in self.kv_windows)
        return self.kv_bytes_per_token * tokens + windows

    def cache_bytes(self, tokens: int, nodes: int, spilling: Spilling | None = None) -> int:
        """All that the cache of one sequence takes: `tokens` slots, and states and records for trees of `nodes` nodes.

        spilling: of layers that see all, only so many slots lie in fast memory."""
        spilled = self.spill.token_bytes * (tokens - spilling.slots) if self.spill is not None and spilling is not None else 0
        return self.kv_bytes(tokens) + self.state_bytes + self.record_bytes * nodes - max(spilled, 0)

    def rows_in(self, budget: int, tokens: int, nodes: int) -> int:
        """Sequences whose caches, as in `cache_bytes`, take a small share of the budget: 1 to MOST_ROWS."""
        return max(1, min(MOST_ROWS, int(budget * CACHE_SHARE) // max(self.cache_bytes(tokens, nodes), 1)))

    def prefix_file_bytes(self, tokens: int) -> int:
        """The largest file of a prefix of which each holds `tokens` tokens: these, or what windows and recurrent layers hold."""
        windows = sum(token_bytes * most for token_bytes, most in self.kv_windows)
        return max(self.kv_bytes_per_token * tokens, windows + self.state_bytes)

    def alone(self, rows: int, tokens: int, widest_level: int, nodes: int = 0) -> int:
        """Bytes of a second model that only drafts, held whole, with `tokens` cache slots a sequence, whose trees have at most
        `nodes` nodes."""
        weights = self.substitute_bytes + self.shared_bytes + self.embedding_bytes
        levels = self.levels.total(widest_level, rows) if self.levels else 0
        passes = 2 * self.tile_bytes + self.tile_logits_bytes
        return weights + self.cache_bytes(tokens, nodes) * rows + passes + levels


@dataclass(frozen=True)
class PlanRequest:
    """What a plan must hold, and where."""

    # Bytes of fast memory.
    budget_bytes: int
    # Sequences that run together: rows of the KV cache.
    rows: int
    # Tokens of each sequence.
    context: int
    # Cache slots past the context at most, for the nodes of a tree.
    scratch: int
    # Which exact weights stay in fast memory: auto, none, residual or whole.
    resident: str = "auto"
    # Nodes of one tile.
    tile: int = 32
    # What is in use before any of the model is there.
    runtime_bytes: int = RUNTIME
    # A second model that drafts.
    second_model_bytes: int = 0
    # A trained head that drafts or suggests, with its cache.
    head_bytes: int = 0
    # Of these, those of experts that a level of one token leaves unread.
    head_unread_bytes: int = 0
    # What keeping prefixes on disk takes.
    prefix_bytes: int = 0
    # Grammars that texts are held to.
    grammar_bytes: int = 0
    # Nodes of each sequence's tree; 0: as many as pay.
    tree_nodes: int = 0
    # Tiles that the trees of all sequences may grow to, see `memory.tree_tiles`.
    tree_tiles: int = 4
    # Nodes of each sequence's tree that recurrent layers have room for.
    record_nodes: int = 0
    # Rows that a pass verifies in a left-padded rectangle, and bytes for realigning them; 0: each row has a length of its own.
    padded_rows: int = 0
    aligning_bytes: int = 0
    # Nodes of the widest draft level on a device; 0: none is drafted there.
    widest_level: int = 0
    # Can groups of texts be drafted for at the same time, and how many of them may be under way on several devices?
    apart: bool = False
    groups: int = 1
    # Decoder layers.
    layers: int = 0
    # Does a pass bring all experts, whichever its nodes go to?
    all_experts: bool = False
    # How keys and values spill; None: they all stay in fast memory.
    spilling: Spilling | None = None
    # Bits of a key's or value's number, where not the model's own type; 0: that.
    kv_bits: int = 0
    speeds: LinkSpeeds = UNKNOWN
