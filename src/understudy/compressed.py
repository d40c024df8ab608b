"""Keys that are compressed, a block of tokens to one entry (DeepSeek-V4), of every row and every node of its tree.

What an entry is made of is kept of each token at its slot. The node at which a block ends makes the block's entry, of its own path
alone, and the entry is that node's: it lies at a place of its own, so siblings that end the same block have each theirs, what a
draft made is overwritten by the target, and rolling back is setting a number, as with keys. A node finds an entry by the slot of
the token at which its block ends. Accepted tokens lie at the slots of their positions, so their entries follow one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .compression import CompressedShape
from .layer_states import LayerShape, SlidingState
from .tree import AcceptedPath, Nodes

# Makes an entry [size] of the parts [tokens, numbers] of the tokens it is made of, in the order of positions, and of the block's
# number. Those before the text, which a first block has before it where blocks overlap, are of any content.
MakeEntry = Callable[[Tensor, int], Tensor]
# What is kept of tokens and of blocks: for the entries that a layer attends to, and for those of its index.
OWN, INDEX = "own", "index"
# Places of keys that are looked through at a time.
TOGETHER = 1 << 18


def spare_entries(scratch: int) -> int:
    """Places for the entries of a row's tree, which has at most `scratch` nodes: no two of its slots, or one beyond, share one."""
    return scratch + 2


class CompressedState(SlidingState):
    """The keys of one layer that sees a window of tokens and, of what came before, entries.

    keys: [rows, 1, places, size], of which the first `held` places are those of tokens, and the others of entries, so that a node
    finds both in one. parts, by what they are for: [rows, 1, held, numbers]. index: [rows, 1, entries, size], None: it has none.
    Of both kinds of entries the first `straight` are those of tokens that lie at the slots of their positions, by the number of the
    block, and the rest those of other nodes of a tree, by slot."""

    def __init__(self, shape: LayerShape, rows: int, capacity: int, scratch: int, dtype: torch.dtype) -> None:
        compressed = shape.compressed
        assert compressed is not None and shape.latent and shape.kv_heads == 1, "entries are keys and values of one head for all"
        self.compressed: CompressedShape = compressed
        self.tokens = shape.slots(capacity)
        self.slides = self.tokens < capacity
        self.straight = capacity // compressed.rate
        self.spare = spare_entries(scratch)
        entries = self.straight + self.spare
        super().__init__(shape, rows, self.tokens + entries, dtype)
        sizes = {OWN: shape.key_size, **({INDEX: compressed.index_size} if compressed.index_size else {})}
        self.parts = {
            kind: torch.zeros(rows, 1, self.tokens, compressed.parts(size), dtype=dtype) for kind, size in sizes.items()
        }
        self.index = torch.zeros(rows, 1, entries, compressed.index_size, dtype=dtype) if compressed.index_size else None

    @property
    def held(self) -> int:
        return self.tokens

    @property
    def slabs(self) -> dict[str, Tensor]:
        parts = {f"{kind} parts": slab for kind, slab in self.parts.items()}
        return {"keys": self.keys[:, :, : self.tokens], **parts}

    @property
    def entries(self) -> dict[str, Tensor]:
        """The entries, by what they are for: [rows, 1, entries, size]."""
        own = {OWN: self.keys[:, :, self.tokens :]}
        return own if self.index is None else {**own, INDEX: self.index}

    @property
    def nbytes(self) -> int:
        return sum(slab.nbytes for slab in (*self.slabs.values(), *self.entries.values()))

    def growth(self, reached: int, slots: int) -> int:
        rate = self.compressed.rate
        token, entry = (sum(slab[0, 0, 0].nbytes for slab in each.values()) for each in (self.slabs, self.entries))
        tokens = max(min(slots, self.tokens) - min(reached, self.tokens), 0)
        return token * tokens + entry * max(slots // rate - reached // rate, 0)

    def entry_places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where among the entries those lie of blocks that end at `positions`, in nodes at `slots`."""
        return torch.where(slots == positions, positions // self.compressed.rate, self.straight + slots % self.spare)

    def compress(self, nodes: Nodes, kind: str, parts: Tensor, make: MakeEntry) -> None:
        """Put `parts` [n, numbers] of `nodes` at their slots, and make the entry of each at which a block ends, by itself."""
        # of a long pass so many at a time that none is overwritten which an entry is made of
        step = self.tokens - self.compressed.looks_back if self.slides else len(nodes)
        for start in range(0, len(nodes), step):
            self._compress(nodes[start : start + step], kind, parts[start : start + step], make)

    def _compress(self, nodes: Nodes, kind: str, parts: Tensor, make: MakeEntry) -> None:
        compressed, slab = self.compressed, self.parts[kind]
        slab[nodes.rows, 0, self.places(nodes.slots)] = parts.to(slab.dtype)
        ends = ((nodes.positions + 1) % compressed.rate == 0).nonzero()[:, 0]
        if not len(ends):
            return
        those, own = nodes.picked(ends), self.entries[kind]
        before = those.positions[:, None] - torch.arange(compressed.looks_back - 1, -1, -1)
        places = self.places(those.slots_at(before.clamp(min=0)))
        into = self.entry_places(those.slots, those.positions)
        numbers = (those.positions // compressed.rate).tolist()
        for row, number, place, found in zip(those.rows.tolist(), numbers, into.tolist(), places, strict=True):
            own[row, 0, place] = make(slab[row, 0, found], number).to(own.dtype)

    def ended(self, nodes: Nodes) -> Nodes:
        """`nodes` as those see entries that take them for tokens: in the place of positions there are numbers of blocks, up to the
        last that has ended on a node's path, and in that of slots the places of entries."""
        rate = self.compressed.rate
        counts = (nodes.positions + 1) // rate
        # where a path is straight, entries lie by the number of their block
        straight = torch.minimum(nodes.prefix // rate, counts)
        numbers = straight[:, None] + torch.arange(int((counts - straight).max()))
        last = numbers * rate + rate - 1
        tail = torch.where(numbers < counts[:, None], self.entry_places(nodes.slots_at(last), last), -1)
        places = torch.full_like(nodes.slots, self.straight + self.spare - 1)
        return replace(nodes, positions=counts - 1, prefix=straight, tail=tail, slots=places)

    def seen(self, nodes: Nodes, ended: Nodes, window: int, chosen: Tensor | None) -> Nodes:
        """`nodes` as attention sees them that looks at the entries that have `ended` on their paths, then at as many of the last
        tokens as a `window` has. chosen [1, n, words]: bit j of word b is set where a node looks at entry 64 * b + j; None: at
        all."""
        # a few at a time, in little room
        step = max(TOGETHER // (ended.last + 1 + window), 1)
        parts = [slice(start, start + step) for start in range(0, len(nodes), step)]
        found = [self._listed(nodes[p], ended[p], window, None if chosen is None else chosen[0, p]) for p in parts]
        widest = max(slots.shape[1] for slots in found)
        slots = torch.cat([torch.nn.functional.pad(each, (0, widest - each.shape[1]), value=-1) for each in found])
        return replace(nodes.seeing(slots), slots=torch.full_like(nodes.slots, self.keys.shape[2] - 1))

    def _listed(self, nodes: Nodes, ended: Nodes, window: int, chosen: Tensor | None) -> Tensor:
        """[n, any]: the places of keys that each of `nodes` looks at, -1 after the last of them; see `seen`."""
        numbers = torch.arange(ended.last + 1).expand(len(nodes), -1)
        looked_at = numbers <= ended.positions[:, None]
        if chosen is not None:
            looked_at &= (chosen.repeat_interleave(64, 1)[:, : ended.last + 1] >> numbers % 64 & 1).bool()
        latest = nodes.positions[:, None] - torch.arange(window - 1, -1, -1)
        own = self.places(nodes.slots_at(latest.clamp(min=0)))
        whole = torch.cat((self.tokens + ended.slots_at(numbers), own), 1)
        wanted = torch.cat((looked_at, latest >= 0), 1)
        # those that are wanted side by side, in their order; the rest go to a last column that is cut off
        widest = int(wanted.sum(1).max())
        to = torch.where(wanted, wanted.cumsum(1) - 1, widest)
        return torch.full((len(nodes), widest + 1), -1).scatter_(1, to, whole)[:, :widest]

    def reach(self, row: int, length: int, written: int) -> int:
        # tokens that have a place each are never overwritten by later ones
        return super().reach(row, length, written if self.slides else 0)

    def keep(self, row: int, length: int, path: AcceptedPath) -> None:
        super().keep(row, length, path)
        moves = path.moves(length, self.keys.device)
        if moves is None:
            return
        to, source = moves[:, (moves[0] + 1) % self.compressed.rate == 0]
        if len(to):
            into, places = self.entry_places(to, to), self.entry_places(source, to)
            for slab in self.entries.values():
                slab[row].index_copy_(1, into, slab[row].index_select(1, places))

    def copy(self, row: int, to: int, length: int) -> None:
        super().copy(row, to, length)
        for slab in self.entries.values():
            slab[to] = slab[row]

    def taken(self, row: int, start: int, end: int) -> dict[str, Tensor]:
        """Entries of blocks that end there, of which there may be none."""
        blocks = slice(start // self.compressed.rate, end // self.compressed.rate)
        there = {f"{kind} entries": slab[row, :, blocks] for kind, slab in self.entries.items()}
        return {name: entries.to("cpu", copy=True).contiguous() for name, entries in there.items() if entries.numel()}

    def put(self, row: int, start: int, tensors: Mapping[str, Tensor], first: int) -> None:
        begin = start // self.compressed.rate
        skipped = max(first // self.compressed.rate - begin, 0)
        for kind, slab in self.entries.items():
            if (new := tensors.get(f"{kind} entries")) is not None:
                slab[row, :, begin + skipped : begin + new.shape[1]] = new[:, skipped:]

    def taken_bytes(self, tokens: int) -> int:
        """Bytes of what `taken` gives of so many tokens, at most."""
        return -(-tokens // self.compressed.rate) * sum(slab[0, 0, 0].nbytes for slab in self.entries.values())
