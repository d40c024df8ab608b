"""The tree search as a function from tensors to tensors: a level of it can be recorded and replayed on a device.

All shapes are fixed and no value is asked for. A level takes the candidates that the level before it chose, appends them as
nodes, runs the draft on them, and chooses candidates for the next level. Candidates that do not pay are inert: they run on a
spare cache slot and leave no trace.

The rules are those of `tree_search.TreeSearch`, in float64 too, with three differences. A level costs what its padded width
costs. A level has at most plan.widths.WIDEST nodes of all sequences together, unless its shape is forced. The padded width of a
level is chosen before the number of candidates is known (see `launch`): those that find no place in it stay candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan.widths import SCORED
from ..plan.widths import WIDEST as LEVEL
from ..sampling import BatchParams, perturb_batch
from ..tree import Nodes
from .growing_tree import MOST_NODES
from .pace import EDGES, PRIOR_WEIGHT, RANKS, SHARPNESS, SURE
from .packed_tensors import PackedTensors, Shapes
from .tree_search import WIDEST, Shape

TOKEN, PARENT, DEPTH, SPINE, BUCKET, FOUND, CHILDREN = range(7)  # of a node's whole numbers; its best children's tokens follow
CHANCE, THROUGH, KEY = 0, 1, 1 + RANKS  # of its reals: its chance, its children's (-1: none, or taken), those that may be run
ROW, PLACE, FROM, WHAT, DEEP, CHAIN, VALID = range(7)  # of a candidate; PLACE: where its chance stands among all reals
FIGURES = ("wish", "left", "level")
LIKELIEST = 0.98  # as `TreeSearch._best`


def places(rows: int, stops: int, nodes: int, widest: int) -> tuple[Shapes, Shapes]:
    """What is given to a draft: whole numbers and reals, by name. `nodes`: the most of a pass."""
    row = ("row", "length", "most", "remaining", "offset", "top_k", "root")
    numbers: Shapes = dict.fromkeys(row, (rows,)) | {"stops": (rows, stops), "nodes": (1,)}
    each = ("temperature", "top_p", "min_p", "trust")
    learned = {"hits": (rows, len(EDGES) + 1), "trials": (rows, len(EDGES) + 1), "belief": (rows, len(SHARPNESS))}
    common = {"rate": (1,), "break even": (1,), "free": (1,), "cost": (widest,), "share": (nodes + 1,)}
    return numbers, dict.fromkeys(each, (rows,)) | learned | {"ranks": (rows, RANKS)} | common


@dataclass(frozen=True)
class LevelShape:
    """What a recorded level is fixed to: its padded width, how many rows it has, and how their tokens are chosen."""

    width: int
    rows: int
    sampled: bool
    filtered: bool


class TensorSearch:
    """`forward(nodes)` -> logits [n, vocab]. Rows are numbered by their place in a draft; number `rows` is where nothing goes.

    `tails[r, i, j]`: the slot of the ancestor of node i of row r that is j + 1 levels below the root."""

    def __init__(
        self, forward: Callable[[Nodes], Tensor], make: Callable[[int], Tensor], shape: Shape, *,
        rows: int, capacity: int, stops: int, nodes: int, widest: int,
    ):  # fmt: skip
        self.forward, self.shape, self.rows, self.spare, self.widest = forward, shape, rows, capacity - 1, widest
        self.given = PackedTensors.of(*places(rows, stops, nodes, widest), make)
        whole: Shapes = {"node": (rows + 1, MOST_NODES, CHILDREN + RANKS), "count": (rows + 1,), "figures": (len(FIGURES),)}
        self.state = PackedTensors.of(whole, {"node chances": (rows + 1, MOST_NODES, 1 + 2 * RANKS)}, make)
        self.next = PackedTensors.of({"candidates": (VALID + 1, widest + 1)}, {"chances": (widest + 1,)}, make)
        where = self.state.memory.device
        self.tails = torch.zeros((rows + 1, MOST_NODES, MOST_NODES), dtype=torch.int64, device=where)
        self.edges = torch.tensor(EDGES, dtype=torch.float64, device=where)
        self.sharpness = torch.tensor(SHARPNESS, dtype=torch.float64, device=where)

    def begin(self, rows: int) -> None:
        """After `given` was filled: the roots of the first `rows` rows are candidates, where a row may still have drafts."""
        self.state.whole.zero_()
        self.state.reals.fill_(-1.0)
        self.next.memory.zero_()
        candidates, given = self.next["candidates"], self.given
        candidates[ROW, :rows] = torch.arange(rows, device=candidates.device)
        candidates[PLACE] = self._nowhere
        candidates[FROM] = -1
        candidates[WHAT, :rows] = given["root"][:rows]
        candidates[CHAIN] = 1
        candidates[VALID, :rows] = (given["remaining"][:rows] > 1).to(torch.int64)
        self.next["chances"].fill_(1.0)

    @property
    def _nowhere(self) -> int:
        """A place among all reals that means nothing."""
        return self.rows * MOST_NODES * (1 + 2 * RANKS) + CHANCE

    def level(self, kind: LevelShape) -> None:
        """One level of `kind.width` places."""
        some, chances = self._taken(kind.width)
        row, valid = some[ROW], some[VALID] > 0
        mine = (row[:, None] == torch.arange(self.rows + 1, device=row.device)) & valid[:, None]
        before = (mine.cumsum(0) - mine.to(torch.int64)).gather(1, row[:, None])[:, 0]
        index = self.state["count"][row] + before
        valid = valid & (index < self.given["most"][row])
        node = torch.where(valid, row * MOST_NODES + index, self.rows * MOST_NODES)
        reals = self.state.reals  # a candidate that is taken is none any more
        place = torch.where(valid, some[PLACE], self._nowhere)
        reals.index_fill_(0, torch.cat([place, place + torch.where(place == self._nowhere, 0, RANKS)]), -1.0)
        logits = self.forward(self._nodes(some, index, node, valid))
        found, values = self._best(kind, logits, row, self.given["length"][row] + some[DEEP] + 1)
        self._settle(some, chances, node, valid, found, values)
        self.state["count"].add_((mine & valid[:, None]).sum(0))
        self.state["figures"][2:].add_(valid.any().to(torch.int64))
        (self._beam if self.shape.depth else self._choose)(kind.rows)

    def _taken(self, width: int) -> tuple[Tensor, Tensor]:
        """The candidates [VALID + 1, width] of this level and their chances: the likeliest, one of the argmax chain among them."""
        candidates = self.next["candidates"]
        if self.shape.depth:
            return candidates[:, :width], self.next["chances"][:width]
        valid = candidates[VALID, :width] > 0
        pick = torch.arange(width, device=candidates.device)
        without = ~(valid & (candidates[CHAIN, :width] > 0)).any()
        pick = torch.where((pick == valid.sum() - 1) & without, self.widest, pick)
        return candidates.index_select(1, pick), self.next["chances"].index_select(0, pick)

    def _nodes(self, some: Tensor, index: Tensor, node: Tensor, valid: Tensor) -> Nodes:
        """Where the new nodes [w] lie and what they see. Inert ones lie in the spare slot and see the first position alone."""
        given, (row, depth) = self.given, (some[ROW], some[DEEP])
        length = given["length"][row]
        slots = torch.where(valid, length + index, self.spare)
        flat = self.tails.view(-1, MOST_NODES)
        tail = flat.index_select(0, row * MOST_NODES + some[FROM].clamp(min=0))
        deep = torch.arange(MOST_NODES, device=tail.device) == (depth - 1)[:, None]
        tail = torch.where(deep, slots[:, None], tail)
        flat.index_copy_(0, node, tail)
        position, prefix = torch.where(valid, length + depth, 0), torch.where(valid, length + 1, 1)
        return Nodes(some[WHAT], given["row"][row], slots, position, prefix, tail)

    def _best(self, kind: LevelShape, logits: Tensor, row: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """The best tokens [w, RANKS] and their scores; -inf where there are none."""
        most, best, given = min(RANKS, logits.shape[-1]), [], self.given
        names = ("temperature", "offset", "top_k", "top_p", "min_p")
        for start in range(0, len(logits), SCORED if kind.sampled else len(logits)):
            part = slice(start, start + (SCORED if kind.sampled else len(logits)))
            scores = logits[part].float()
            if kind.sampled:
                batch = BatchParams(*(given[name][row[part]] for name in names))
                scores = perturb_batch(scores, batch, after[part], kind.filtered)
            best.append(scores.topk(most, dim=-1))
        values, tokens = (torch.cat([getattr(b, name) for b in best]) for name in ("values", "indices"))
        missing = (0, RANKS - most)
        return (
            torch.nn.functional.pad(tokens, missing),
            torch.nn.functional.pad(values.double(), missing, value=-torch.inf),
        )

    def _settle(
        self, some: Tensor, chances: Tensor, node: Tensor, valid: Tensor, tokens: Tensor, scores: Tensor
    ) -> None:
        """The new nodes, and their best children with the chance of each, as `Calibration.chances`."""
        given, row, depth = self.given, some[ROW], some[DEEP]
        finite = scores > -torch.inf
        margin = torch.where(finite[:, 1], scores[:, 0] - scores[:, 1], torch.inf)
        bucket = (margin[:, None] >= self.edges).sum(1)
        curve = (1 / (1 + torch.exp(-(self.sharpness * margin[:, None]).clamp(max=40.0)))).clamp(max=SURE)
        belief = given["belief"][row]
        prior = (belief * curve).sum(1) / belief.sum(1)
        first = (given["hits"][row, bucket] + PRIOR_WEIGHT * prior) / (given["trials"][row, bucket] + PRIOR_WEIGHT)
        ranks = given["ranks"][row]
        others = (1 - first)[:, None] * ranks[:, : RANKS - 1] / ranks.sum(1)[:, None]
        through = chances[:, None] * torch.cat([first[:, None], others], 1)
        chain = some[CHAIN] > 0
        through[:, 1:] = through[:, 1:] * torch.where(chain, given["trust"][row], 1.0)[:, None]
        stopped = (tokens[:, :, None] == given["stops"][row][:, None]).any(-1)
        going = finite & ~stopped & (depth + 1 < given["remaining"][row] - 1)[:, None]
        through = torch.where(finite, through, -1.0)
        numbers = [some[WHAT], some[FROM], depth, some[CHAIN], bucket, finite.sum(1)]
        self.state["node"].view(-1, CHILDREN + RANKS).index_copy_(0, node, torch.cat([torch.stack(numbers, 1), tokens], 1))
        keys = torch.where(going, through, -1.0)
        reals = torch.cat([chances[:, None], through, keys], 1)
        self.state["node chances"].view(-1, 1 + 2 * RANKS).index_copy_(0, node, reals)

    def _candidates(self, rows: int) -> tuple[Tensor, Tensor]:
        """Chances, -1 for none: [rows, MOST_NODES, 1] of the tips of argmax chains, [rows, MOST_NODES, RANKS] of all others."""
        keys = self.state["node chances"][:rows, :, KEY:]
        roomy = self.state["count"][:rows] < self.given["most"][:rows]
        keys = torch.where(roomy[:, None, None], keys, -1.0)
        spine = self.state["node"][:rows, :, SPINE, None] > 0
        tips = torch.where(spine, keys[:, :, :1], -1.0)
        return tips, torch.cat([torch.where(spine, -1.0, keys[:, :, :1]), keys[:, :, 1:]], 2)

    def _choose(self, rows: int) -> None:
        """As `TreeSearch._best`: the likeliest, as many as pay. Of equal ones the tips go first, then older nodes, as there."""
        tips, others = self._candidates(rows)
        tip, at = tips[:, :, 0].max(1)
        own = torch.arange(rows, device=at.device) * MOST_NODES + at
        chances, order = torch.cat([tip, others.reshape(-1)]).sort(descending=True, stable=True)
        chances, order = chances[: self.widest], order[: self.widest]
        chain = order < rows
        beyond = (order - rows).clamp(min=0)
        node = torch.where(chain, own[order.clamp(max=rows - 1)], beyond // RANKS)
        rank = torch.where(chain, 0, beyond % RANKS)
        best = own.index_select(0, tip.argmax()[None])  # kept at hand for a level that would be without a tip
        depth = self.state["node"].view(-1, CHILDREN + RANKS)[best, DEPTH][0] + 1
        wish, left = self._wish(rows, tip, depth, chances)
        valid = torch.arange(len(order), device=at.device) < wish
        self._offer(torch.cat([node, best]), torch.cat([rank, rank.new_zeros(1)]), chain, valid, wish, left)

    def _wish(self, rows: int, tip: Tensor, depth: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
        """How many of the candidates pay, and how many more levels are likely to, after the next one."""
        given = self.given
        nodes, rate, worth = given["nodes"][0], given["rate"][0], given["break even"][0]
        used = self.state["count"][:rows].clamp(min=1).sum()
        best = tip.max()
        chance = best.clamp(min=1e-300)
        loss = (chance ** (1 / depth.double())).clamp(max=LIKELIEST)
        left = torch.where(best > worth, (torch.log(worth / chance) / torch.log(loss)).trunc(), 0.0)
        left = left.clamp(0, MOST_NODES).to(torch.int64)
        room, there = nodes - used, (tip >= 0).sum()
        most = torch.minimum(torch.maximum(room // (1 + left), there), room).clamp(max=min(WIDEST * rows, LEVEL))
        count = torch.arange(1, len(chances) + 1, device=tip.device)
        gain = chances.clamp(min=0).cumsum(0)
        node = given["share"].index_select(0, torch.minimum(used, nodes)[None])
        value = gain - rate * (given["cost"][: len(chances)] + count * node)
        value = torch.where((count <= most) & (chances >= 0), value, -torch.inf)
        highest, at = value.max(0)
        free = (given["free"][0] > 0) & (chances[0] > 0.05)
        wish = torch.where(highest > 0, at + 1, free.to(torch.int64))
        wish = torch.where((there > 0) & (room > 0), wish, 0)
        return wish, torch.where(wish > 0, left, 0)

    def _beam(self, rows: int) -> None:
        """As `TreeSearch._beam`: of each row the children of the newest level, the argmax chain's first, then the likeliest."""
        tips, others = self._candidates(rows)
        level, width = self.state["figures"][2], min(self.shape.width, MOST_NODES * RANKS)
        newest = self.state["node"][:rows, :, DEPTH, None] + 1 == level
        key = torch.cat([torch.where(tips >= 0, tips + 2, others[:, :, :1]), others[:, :, 1:]], 2)
        chances, order = torch.where(newest, key, -1.0).view(rows, -1).sort(dim=1, descending=True, stable=True)
        chances, order = chances[:, :width].reshape(-1), order[:, :width]
        node = (torch.arange(rows, device=order.device)[:, None] * MOST_NODES + order // RANKS).reshape(-1)
        valid = (chances >= 0) & (level <= self.shape.depth - 1)
        rank, chain = (order % RANKS).reshape(-1), chances >= 2
        last = torch.zeros(1, dtype=torch.int64, device=order.device)
        wish = valid.sum()
        self._offer(torch.cat([node, last]), torch.cat([rank, last]), chain, valid, wish, torch.zeros_like(wish))

    def _offer(self, node: Tensor, rank: Tensor, chain: Tensor, valid: Tensor, wish: Tensor, left: Tensor) -> None:
        """Children [k] by node and rank, and a last one that may stand in, are the candidates of the next level."""
        state, known = self.state, self.state["node"].view(-1, CHILDREN + RANKS)[node]
        place = node * (1 + 2 * RANKS) + THROUGH + rank
        token = known.gather(1, (CHILDREN + rank)[:, None])[:, 0]
        one = chain.new_ones(1)
        flags = [torch.cat([flag, one]).to(torch.int64) for flag in (chain, valid)]
        row, parent = node // MOST_NODES, node % MOST_NODES
        fields = torch.stack([row, place, parent, token, known[:, DEPTH] + 1, *flags])
        candidates, chances = self.next["candidates"], self.next["chances"]
        count = len(valid)
        candidates[VALID].zero_()
        candidates[:, :count] = fields[:, :-1]
        candidates[:, self.widest] = fields[:, -1]
        found = state.reals[place]  # "node chances" is all of them
        chances[:count] = found[:-1]
        chances[self.widest] = found[-1]
        state["figures"][0] = wish
        state["figures"][1] = left
