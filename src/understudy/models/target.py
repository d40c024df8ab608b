"""The exact view. One pass over the slow weights runs all nodes of all rows, whatever their number.

Nodes are packed in tiles of TILE rows. Every tile is one forward of the stock model in a greenlet of its own, always of the same
shape; at each Linear it parks until all tiles are there, and the weight part that has just arrived multiplies them one by one.
So weights arrive once per pass, and a node's bits do not depend on how many others ran with it: the shapes never change."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from ..cache import Cache
from ..kernels.attention import attend
from ..tree import Nodes
from .paired import PassCache, Runner

TILE = 32
Multiply = Callable[[int, list[Tensor]], list[Tensor]]


class Tile:
    """TILE nodes (the last tile of a pass is padded): a forward of the stock model that stops at every Linear."""

    def __init__(self, view: Target, nodes: Nodes, head: bool):
        self.view, self.nodes, self.head = view, nodes, head
        self.count = len(nodes)
        self.thread = greenlet(self._forward)
        self.result: Tensor | None = None

    def _forward(self) -> Tensor | None:
        view, device = self.view, self.view.device
        padding = (0, TILE - self.count)
        positions = nn.functional.pad(self.nodes.positions, padding)[None].to(device)
        self.view.embed(nn.functional.pad(self.nodes.tokens, padding))
        inputs = {"input_ids": torch.arange(TILE, device=device)[None], "position_ids": positions}
        cache = PassCache(view.runner)
        if not self.head:
            view.base(**inputs, past_key_values=cache, use_cache=True)
            return None
        logits: Tensor = view.model(**inputs, past_key_values=cache, use_cache=True).logits
        return logits[0, : self.count]

    def linear(self, index: int, x: Tensor) -> Tensor:
        result: Tensor = getcurrent().parent.switch((index, x))
        return result

    def remember(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.view.cache.write(layer, self.nodes, keys[: self.count], values[: self.count])

    def attend(self, layer: int, query: Tensor, scaling: float, window: int, softcap: float) -> Tensor:
        start = time.perf_counter()
        view = self.view
        out = attend(
            query[: self.count],
            view.cache,
            layer,
            self.nodes,
            scaling=scaling,
            window=window,
            softcap=softcap,
            pool=view.pool,
            threads=view.threads,
        )
        self.view.attention_seconds += time.perf_counter() - start
        return nn.functional.pad(out, (0, 0, 0, 0, 0, TILE - self.count))


@dataclass
class Target:
    """model, base: the stock causal model and its headless part. multiply(index, tiles) streams Linear `index` once for all."""

    model: nn.Module
    base: nn.Module
    runner: Runner
    cache: Cache
    embed: Callable[[Tensor], None]
    multiply: Multiply
    device: str = "cpu"
    pool: ThreadPoolExecutor | None = None
    threads: int = 1
    attention_seconds: float = 0.0

    def __call__(self, nodes: Nodes, wanted: Tensor) -> Tensor:
        """Run `nodes` and return logits [len(wanted), vocab] of those indices (ascending). Keys and values land in the cache.

        Raises what the stream raises; the cache's lengths are untouched, so a failed pass leaves nothing behind."""
        tiles = []
        for start in range(0, len(nodes), TILE):
            part = nodes[start : start + TILE]
            tiles.append(Tile(self, part, bool(((wanted >= start) & (wanted < start + TILE)).any())))
        self._run(tiles)
        rows = [tile.result for tile in tiles if tile.result is not None]
        heads = torch.tensor([i for i, tile in enumerate(tiles) if tile.head])
        place = torch.full((len(tiles),), -1)
        place[heads] = torch.arange(len(heads)) * TILE
        return torch.cat(rows)[(place[wanted // TILE] + wanted % TILE).to(self.device)]

    def _run(self, tiles: list[Tile]) -> None:
        answers: list[object] = [None] * len(tiles)
        alive = list(range(len(tiles)))
        try:
            while alive:
                parked = []
                for i in alive:
                    self.runner.current = tiles[i]
                    said = tiles[i].thread.switch(*(() if answers[i] is None else (answers[i],)))
                    if tiles[i].thread.dead:
                        tiles[i].result = said
                    else:
                        parked.append((i, said))
                alive = [i for i, _ in parked]
                if parked:
                    index = parked[0][1][0]
                    assert all(said[0] == index for _, said in parked), (
                        f"tiles are at different Linears: {[s[0] for _, s in parked]}"
                    )
                    for i, y in zip(alive, self.multiply(index, [said[1] for _, said in parked]), strict=True):
                        answers[i] = y
        finally:
            self.runner.current = None
            for tile in tiles:
                if not tile.thread.dead:
                    tile.thread.throw()
