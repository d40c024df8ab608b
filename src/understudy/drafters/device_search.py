"""The tree search as a function from tensors to tensors: a level of it can be recorded and replayed on a device.

All shapes are fixed and no value is asked for. A level takes the candidates that the level before it chose, appends them as
nodes, runs the draft on them, and chooses candidates for the next level. Candidates that do not pay are inert: they run on a
cache slot after the largest tree and leave no trace.

The rules are those of `tree_search.TreeSearch`, in float64 too, with three differences. A level costs what its padded width
costs. A level has at most plan.widths.WIDEST nodes of all sequences together, unless its shape is forced. The padded width of a
level is chosen before the number of candidates is known (see `launch`): those that find no place in it stay candidates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.search_columns import CHAIN, CHANCE, CHILDREN, DEEP, DEPTH, FROM, PLACE, ROW, SPINE, THROUGH, VALID, WHAT
from ..plan.widths import SCORED
from ..plan.widths import WIDEST as WIDEST_TOGETHER
from ..sampling import BatchParams, perturb_batch
from ..tree import Nodes
from .device_adjust import DeviceAdjustment, paths
from .device_guesses import keep_agreed, put_guesses, straight
from .device_state import COLUMNS, FIGURES, KEY, SCORES, LevelShape, SearchSizes, levels_left
from .device_subtree import Grown
from .growing_tree import MOST_NODES
from .pace import LEAST_FREE, RANKS, SHARPNESS, STEEPEST, WIDEST
from .packed_tensors import PackedTensors, Shapes
from .policy import Shape


class TensorSearch:
    """The state of a draft on a device, and the levels that change it.

    `forward(nodes)` gives logits [n, vocab]. Sequences are numbered by their place in the draft; number `rows` is a
    dummy. `tails[r, i, j]` is the slot in which node i of sequence r sees position `straight + j`: where the root lies straight
    behind the text, that is the slot of its ancestor j + 1 levels below the root."""

    def __init__(self, forward: Callable[[Nodes], Tensor], make: Callable[[int], Tensor], shape: Shape, sizes: SearchSizes):
        self.forward = forward
        self.shape = shape
        self.rows = sizes.rows
        self.widest = sizes.widest
        rows = self.rows + 1
        self.given = PackedTensors.of(*sizes.given(), make)
        # What levels of kinds that are adjusted ask.
        self.adjustment: DeviceAdjustment | None = None
        integers: Shapes = {"node": (rows, MOST_NODES, CHILDREN + RANKS), "count": (rows,), "figures": (len(FIGURES),)}
        self.state = PackedTensors.of(integers, {"node chances": (rows, MOST_NODES, COLUMNS)}, make)
        self.next = PackedTensors.of(
            {"candidates": (VALID + 1, self.widest + 1)}, {"chances": (self.widest + 1,)}, make
        )
        where = self.state.memory.device
        self.tails = torch.zeros((rows, MOST_NODES, MOST_NODES), dtype=torch.int64, device=where)
        self.sharpness = torch.tensor(SHARPNESS, dtype=torch.float64, device=where)

    def begin(self, rows: int, guesses: int = 0) -> None:
        """Begin a draft of the first `rows` sequences with what `given` holds: their roots, and `guesses` nodes behind them."""
        self.state.integers.zero_()
        self.state.reals.fill_(-1.0)
        self.next.memory.zero_()
        given = self.given
        candidates = self.next["candidates"]
        candidates[ROW, :rows] = torch.arange(rows, device=candidates.device)
        candidates[PLACE] = self._nowhere
        candidates[FROM] = -1
        candidates[WHAT, :rows] = given["root"][:rows]
        candidates[CHAIN] = 1
        candidates[VALID, :rows] = (given["remaining"][:rows] > 1).to(torch.int64)
        self.next["chances"].fill_(1.0)
        if guesses:
            put_guesses(given["guess"][:, :guesses], candidates[:, rows : rows + guesses], self.state["node"])

    def see(self, row: int, slots: Tensor) -> None:
        """Let the root of sequence `row`, once it is run, see `slots` [m] beyond what lies straight."""
        self.tails[row, 0, : len(slots)] = slots.to(self.tails.device)

    def take_over(self, grown: Grown) -> None:
        """Hold `grown` of the only sequence of a draft that has begun, and choose the candidates of its next level."""
        self.state.memory.copy_(grown.state.memory, non_blocking=True)
        self.tails[0, : len(grown.tails)] = grown.tails.to(self.tails.device, non_blocking=True)
        self.choose_first()

    def choose_first(self) -> None:
        """Choose the candidates of one sequence's next level where no level was run before."""
        self._choose(1)

    @property
    def _nowhere(self) -> int:
        """A dummy index in state.reals: what is written there is never read."""
        return self.rows * MOST_NODES * COLUMNS + CHANCE

    def level(self, kind: LevelShape) -> None:
        """Run one level, and choose the candidates of the next one."""
        taken, chances = self._taken(kind.width)
        row = taken[ROW]
        valid = taken[VALID] > 0
        mine = (row[:, None] == torch.arange(self.rows + 1, device=row.device)) & valid[:, None]
        before = (mine.cumsum(0) - mine.to(torch.int64)).gather(1, row[:, None])[:, 0]
        index = self.state["count"][row] + before
        most = self.given["most"][row]
        valid = valid & (index < most)
        node = torch.where(valid, row * MOST_NODES + index, self.rows * MOST_NODES)
        reals = self.state.reals  # a candidate that is taken is none any more
        place = torch.where(valid, taken[PLACE], self._nowhere)
        reals.index_fill_(0, torch.cat([place, place + torch.where(place == self._nowhere, 0, RANKS)]), -1.0)
        nodes = self._nodes(taken, torch.where(valid, index, most), node, valid, kind.guessed)
        found, values = self._best_children(kind, self.forward(straight(nodes) if kind.guessed else nodes), taken, nodes.tail)
        self._add_nodes(taken, chances, node, valid, found, values)
        self.state["count"].add_((mine & valid[:, None]).sum(0))
        if kind.guessed:
            keep_agreed(self.state, kind.rows, self.widest)
        self.state["figures"][2:].add_(valid.any().to(torch.int64))
        (self._choose_forced if self.shape.depth else self._choose)(kind.rows)

    def _taken(self, width: int) -> tuple[Tensor, Tensor]:
        """The candidates [VALID + 1, width] of this level and their chances: the likeliest, a tip of a chain among them."""
        candidates = self.next["candidates"]
        if self.shape.depth:
            return candidates[:, :width], self.next["chances"][:width]
        valid = candidates[VALID, :width] > 0
        pick = torch.arange(width, device=candidates.device)
        without = ~(valid & (candidates[CHAIN, :width] > 0)).any()
        pick = torch.where((pick == valid.sum() - 1) & without, self.widest, pick)
        return candidates.index_select(1, pick), self.next["chances"].index_select(0, pick)

    def _nodes(self, taken: Tensor, index: Tensor, node: Tensor, valid: Tensor, guessed: bool) -> Nodes:
        """The new nodes [w], at `index` [w] in their trees; chains, if they are `guessed`. Inert ones lie in the slot after the
        largest tree, and see the first position alone."""
        given = self.given
        row = taken[ROW]
        depth = taken[DEEP]
        length, first = given["length"][row], given["straight"][row]
        slots = given["slot"][row] + index
        flat = self.tails.view(-1, MOST_NODES)
        tail = flat.index_select(0, row * MOST_NODES + taken[FROM].clamp(min=0))
        at = torch.arange(MOST_NODES, device=tail.device)
        if guessed:
            tail = torch.where(at < depth[:, None], given["slot"][row][:, None] + 1 + at, 0)
        tail = torch.where(at == (length + depth - first)[:, None], slots[:, None], tail)
        flat.index_copy_(0, node, tail)
        position = torch.where(valid, length + depth, 0)
        prefix = torch.where(valid, first + depth * guessed, 1)
        return Nodes(taken[WHAT], given["row"][row], slots, position, prefix, tail)

    def _best_children(self, kind: LevelShape, logits: Tensor, taken: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens [w, RANKS] of the best children of each node, and their scores; -inf where there are none."""
        length = self.given["length"][taken[ROW]]
        path = paths(self.state["node"], taken, tail, length) if kind.adjusted else tail
        most = min(RANKS, logits.shape[-1])
        best = []
        count = SCORED if kind.sampled or kind.adjusted else len(logits)
        for start in range(0, len(logits), count):
            part = slice(start, start + count)
            scores = self._scores(kind, logits[part], taken[:, part], path[part])
            best.append(scores.topk(most, dim=-1))
        values = torch.cat([piece.values for piece in best])
        tokens = torch.cat([piece.indices for piece in best])
        missing = (0, RANKS - most)
        return (
            torch.nn.functional.pad(tokens, missing),
            torch.nn.functional.pad(values.double(), missing, value=-torch.inf),
        )

    def _scores(self, kind: LevelShape, logits: Tensor, taken: Tensor, path: Tensor) -> Tensor:
        """[k, vocab] float32: the scores of tokens after k of the nodes `taken`. path: [k, MOST_NODES], as `paths`."""
        given = self.given
        row = taken[ROW]
        scores = logits.float()
        if kind.adjusted and self.adjustment is not None:
            scores = self.adjustment(scores, row, path, given["stops"][row])
        if kind.sampled:
            names = ("temperature", "offset", "top_k", "top_p", "min_p")
            batch = BatchParams(*(given[name][row] for name in names))
            scores = perturb_batch(scores, batch, given["length"][row] + taken[DEEP] + 1, kind.filtered)
        return scores

    def _add_nodes(
        self, taken: Tensor, chances: Tensor, node: Tensor, valid: Tensor, tokens: Tensor, scores: Tensor
    ) -> None:
        """Write the new nodes, their best children and the chance of each (as `Calibration.chances`) to the state."""
        given = self.given
        row = taken[ROW]
        depth = taken[DEEP]
        finite = scores > -torch.inf
        through = chances[:, None] * self._chances(row, scores, finite)
        stopped = (tokens[:, :, None] == given["stops"][row][:, None]).any(-1)
        going = finite & ~stopped & (depth + 1 < given["remaining"][row] - 1)[:, None]
        through = torch.where(finite, through, -1.0)
        numbers = [taken[WHAT], taken[FROM], depth, taken[CHAIN], finite.sum(1)]
        whole = torch.cat([torch.stack(numbers, 1), tokens], 1)
        self.state["node"].view(-1, CHILDREN + RANKS).index_copy_(0, node, whole)
        keys = torch.where(going, through, -1.0)
        reals = torch.cat([chances[:, None], through, keys, scores], 1)
        self.state["node chances"].view(-1, COLUMNS).index_copy_(0, node, reals)

    def _chances(self, row: Tensor, scores: Tensor, finite: Tensor) -> Tensor:
        """The chance of each child [w, RANKS], from the scores of the best children, as `Calibration.chances`."""
        behind = torch.where(finite, scores[:, :1] - scores, 0.0)
        # [w, SHARPNESS, RANKS]
        weights = torch.exp(-(self.sharpness[:, None] * behind[:, None, :]).clamp(max=STEEPEST)) * finite[:, None, :]
        soft = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
        return self.given["inside"][row][:, None] * (self.given["belief"][row][:, :, None] * soft).sum(1)

    def _candidates(self, rows: int) -> tuple[Tensor, Tensor]:
        """Chances, -1 for none: [rows, MOST_NODES, 1] of tips of chains, [rows, MOST_NODES, RANKS] of all others."""
        keys = self.state["node chances"][:rows, :, KEY:SCORES]
        roomy = self.state["count"][:rows] < self.given["most"][:rows]
        keys = torch.where(roomy[:, None, None], keys, -1.0)
        spine = self.state["node"][:rows, :, SPINE, None] > 0
        tips = torch.where(spine, keys[:, :, :1], -1.0)
        return tips, torch.cat([torch.where(spine, -1.0, keys[:, :, :1]), keys[:, :, 1:]], 2)

    def _choose(self, rows: int) -> None:
        """Choose as `TreeSearch._best`: the likeliest, as many as pay. Of equal ones, tips come first, then older
        nodes."""
        tips, others = self._candidates(rows)
        tip, at = tips[:, :, 0].max(1)
        own = torch.arange(rows, device=at.device) * MOST_NODES + at
        chances, order = torch.cat([tip, others.reshape(-1)]).sort(descending=True, stable=True)
        chances = chances[: self.widest]
        order = order[: self.widest]
        chain = order < rows
        beyond = (order - rows).clamp(min=0)
        node = torch.where(chain, own[order.clamp(max=rows - 1)], beyond // RANKS)
        rank = torch.where(chain, 0, beyond % RANKS)
        best = own.index_select(0, tip.argmax()[None])  # kept at hand for a level that would be without a tip
        depth = self.state["node"].view(-1, CHILDREN + RANKS)[own, DEPTH] + 1
        wish, left = self._wish(rows, tip, depth, chances)
        valid = torch.arange(len(order), device=at.device) < wish
        self._offer(torch.cat([node, best]), torch.cat([rank, rank.new_zeros(1)]), chain, valid, wish, left)

    def _wish(self, rows: int, tip: Tensor, depth: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
        """How many candidates pay (as `Pace.width`), and how many levels after the next one may (as
        `Pace.levels_left`). tip, depth: the chance, -1 for none, and the depth of the end of each sequence's chain, [rows]."""
        given = self.given
        nodes = given["nodes"][0]
        rate = given["rate"][0]
        least = given["break even"][0]
        used = self.state["count"][:rows].clamp(min=1).sum()
        left = levels_left(tip, depth, least[None])[0].gather(0, tip.argmax()[None])[0]
        room = nodes - used
        there = (tip >= 0).sum()
        count = torch.arange(1, len(chances) + 1, device=tip.device)
        # As `Pace.share`: with each candidate more, chains may go on to its chance.
        wanted = count + levels_left(tip, depth, torch.maximum(chances, least)).sum(1)
        most = ((wanted <= room) & (chances >= 0)).sum().clamp(min=1)
        most = most.clamp(max=min(WIDEST * rows, WIDEST_TOGETHER, self.widest))
        gain = chances.clamp(min=0).cumsum(0)
        node = given["share"].index_select(0, torch.minimum(used, nodes)[None])
        value = gain - rate * (given["cost"][: len(chances)] + count * node)
        value = torch.where((count <= most) & (chances >= 0), value, -torch.inf)
        highest, at = value.max(0)
        free = (given["free"][0] > 0) & (chances[0] > LEAST_FREE)
        wish = torch.where(highest > 0, at + 1, free.to(torch.int64))
        wish = torch.where((there > 0) & (room > 0), wish, 0)
        return wish, torch.where(wish > 0, left, 0)

    def _choose_forced(self, rows: int) -> None:
        """As `TreeSearch._forced`: of each tree the children of the newest level, the chain's first, then the
        likeliest."""
        tips, others = self._candidates(rows)
        level = self.state["figures"][2]
        width = min(self.shape.width, MOST_NODES * RANKS)
        newest = self.state["node"][:rows, :, DEPTH, None] + 1 == level
        key = torch.cat([torch.where(tips >= 0, tips + 2, others[:, :, :1]), others[:, :, 1:]], 2)
        chances, order = torch.where(newest, key, -1.0).view(rows, -1).sort(dim=1, descending=True, stable=True)
        chances = chances[:, :width].reshape(-1)
        order = order[:, :width]
        node = (torch.arange(rows, device=order.device)[:, None] * MOST_NODES + order // RANKS).reshape(-1)
        valid = (chances >= 0) & (level <= self.shape.depth - 1)
        rank = (order % RANKS).reshape(-1)
        chain = chances >= 2
        last = torch.zeros(1, dtype=torch.int64, device=order.device)
        wish = valid.sum()
        self._offer(torch.cat([node, last]), torch.cat([rank, last]), chain, valid, wish, torch.zeros_like(wish))

    def _offer(self, node: Tensor, rank: Tensor, chain: Tensor, valid: Tensor, wish: Tensor, left: Tensor) -> None:
        """Make children [k], by node and rank, the candidates of the next level; the last stands in where there is
        no tip."""
        state = self.state
        known = state["node"].view(-1, CHILDREN + RANKS)[node]
        place = node * COLUMNS + THROUGH + rank
        token = known.gather(1, (CHILDREN + rank)[:, None])[:, 0]
        one = chain.new_ones(1)
        flags = [torch.cat([flag, one]).to(torch.int64) for flag in (chain, valid)]
        depth = known[:, DEPTH] + 1
        fields = torch.stack([node // MOST_NODES, place, node % MOST_NODES, token, depth, *flags])
        candidates = self.next["candidates"]
        chances = self.next["chances"]
        count = len(valid)
        candidates[VALID].zero_()
        candidates[:, :count] = fields[:, :-1]
        candidates[:, self.widest] = fields[:, -1]
        found = state.reals[place]  # "node chances" is all of them
        chances[:count] = found[:-1]
        chances[self.widest] = found[-1]
        state["figures"][0] = wish
        state["figures"][1] = left
