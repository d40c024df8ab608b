"""The module that takes every streamed Linear's place, and the attention that takes every attention's place.

Both only hand their input to the pass under way, so the stock model code around them is run as it is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..cache import Cache
from ..compressed import MakeEntry
from ..devices import Device
from ..errors import CheckpointError
from ..kernels.attention import ALL, AttentionSpec, Chosen
from ..kernels.chosen_keys import IndexQuery
from ..kernels.expert_kernels import ExpertKernels
from ..kernels.recurrence import RuleStep
from ..tree import Nodes
from .mixtures.experts import hand_over, mixes
from .mixtures.routed import Rows
from .path_entries import PathEntries
from .pooled_keys import PooledQuery
from .stock import hf, latent, near_bias

# In modules of ours that ask the pass under way: the `CurrentPass` of their model.
ASKS = "understudy"
# What stock code tells attention of the keys that it may look at, where these depend on what they hold.
CHOSEN = ("indices", "block_indices")


class Pass(Protocol):
    """One forward of the stock model: a level of the draft view, or one tile of the target view."""

    # Its nodes. Inputs may have more rows, behind theirs.
    count: int

    @property
    def tokens(self) -> Tensor:
        """[rows of its inputs] the tokens of its nodes; any behind them."""

    @property
    def expert_kernels(self) -> ExpertKernels | None:
        """What finds and adds up rows that go to experts where it runs; None: the host does."""

    def linear(self, index: int, x: Rows) -> Tensor:
        """Product of x [n, K] with the weight of streamed Linear `index`: [n, N], without its bias. Of routed rows each is
        multiplied by the matrix of its expert."""

    def write_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put keys [n, kv heads, key size] and values [n, kv heads, value size] of the pass's nodes in the KV cache."""

    def choose(self, layer: int, keys: Tensor, asked: IndexQuery | PooledQuery) -> Chosen:
        """Put keys [n, size] of the pass's nodes in the index of `layer`, and choose by it what each of them looks at."""

    def history(self, layer: int) -> Tensor:
        """The last tokens of each node's path that `layer` looks up together, [n, tokens], its own the last; -1 before the text."""

    def compress(self, layer: int, parts: Tensor, make: MakeEntry, *, of_index: bool) -> None:
        """Keep `parts` [n, numbers] of the pass's nodes, of which `make` makes entries of whole blocks: those that `layer` attends
        to, or those of its index."""

    def choose_entries(self, layer: int, asked: IndexQuery) -> None:
        """Choose by the index of `layer`, which has the entries of the pass's nodes, what each of them looks at there."""

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        """Attention of query [n, heads, key size] over the KV cache: [n, heads, value size]."""

    def convolve(self, layer: int, x: Tensor, weight: Tensor, bias: Tensor | None, number: int = 0) -> Tensor:
        """Convolution of x [n, channels] with weight [channels, taps] along the path of each node, the layer's convolution
        `number`; x is recorded."""

    def recur(self, layer: int, step: RuleStep) -> Tensor:
        """What the rule of recurrent `layer` gives after each node [n, value heads, value size], float32; `step` is recorded."""


class CurrentPass(threading.local):
    """Holder of the pass that the calling thread has under way. One per model; not a module, so that it is shared and never moved
    or saved."""

    under_way: Pass | None = None


class StreamedLinear(nn.Module):
    """Linear number `index` in the order of execution; its weights are the Store's, its bias is shared by both views."""

    def __init__(self, current: CurrentPass, index: int, bias: nn.Parameter | None, outputs: int, dtype: torch.dtype):
        super().__init__()
        self.current = current
        self.index = index
        self.bias = bias
        self.outputs = outputs
        # No parameter, and nothing in it: stock code may ask for its type.
        self.weight = torch.empty(0, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        under_way = self.current.under_way
        assert under_way is not None, "a streamed model runs only through its target or draft view"
        y = under_way.linear(self.index, x.reshape(-1, x.shape[-1]))
        y = y.view(*x.shape[:-1], self.outputs)
        return y if self.bias is None else y + self.bias


class _NothingKept(list[Any]):
    """The layers of such a cache: whichever is asked for keeps no positions of earlier tokens."""

    def __getitem__(self, index: Any) -> Any:
        return SimpleNamespace(indexer_position_ids=None)


@cache
def _pass_cache_class() -> Any:
    """The class of `pass_cache`, made at first use: its parent is imported then."""

    class PassCache(hf.cache_class()):  # type: ignore[misc]
        """Gives back what it is handed: `attention` puts keys and values in the KV cache, and reads them there."""

        # the parent's layers are not wanted, so its __init__ is not called
        def __init__(self, positions: Tensor | None) -> None:
            self.layers: list[Any] = _NothingKept()
            # [1, n] of the pass's nodes
            self.positions = positions

        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return key_states, value_states

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 0

        def __repr__(self) -> str:
            return "PassCache()"

    return PassCache


def pass_cache(positions: Tensor | None = None) -> Any:
    """A cache for stock model code that keeps nothing: to each layer, only the tokens of the pass under way seem to be there.
    `positions` [1, n]: those of the pass's nodes, for layers that ask a cache for them."""
    return _pass_cache_class()(positions)


class LayerDevices(Protocol):
    """Which device runs which decoder layer."""

    def device(self, layer: int) -> Device:
        """The device that runs decoder layer `layer`."""

    def carried(self, tensors: Sequence[Tensor], where: str, fresh: bool) -> list[Tensor]:
        """`tensors` in memory `where`, that of the device that the calling thread's forward is on; `fresh`: none is there yet."""


class Placed:
    """The nodes of a pass in the memory of `device`, or in that of each layer's device where there are `stages`."""

    def __init__(self, cache: Cache, nodes: Nodes, device: Device, stages: LayerDevices | None) -> None:
        self.cache = cache
        self.first = cache.placed(nodes).to(device.where)
        self.device = device
        self.stages = stages
        self._there = {device.name: self.first}
        # By device and size of a chunk: the nodes as attention within chunks sees them.
        self._within: dict[tuple[str, int], Nodes] = {}
        # What layers that compress keys find for the nodes.
        self.entries = PathEntries(cache, self.at)

    def at(self, layer: int) -> tuple[Device, Nodes]:
        """The device of `layer`, with the nodes there."""
        if self.stages is None:
            return self.device, self.first
        device = self.stages.device(layer)
        if device.name not in self._there:
            bring = partial(self.stages.carried, where=device.where, fresh=True)
            self._there[device.name] = self.first.moved(bring)
        return device, self._there[device.name]

    def choose(self, layer: int, keys: Tensor, asked: IndexQuery | PooledQuery) -> Chosen:
        """Put keys [n, size] of the nodes in the index of `layer`, and choose by it what each of them looks at."""
        device, there = self.at(layer)
        state = self.cache.layers[layer]
        if isinstance(asked, PooledQuery):
            return asked.choose(state, keys, there)
        state.write_index(there, keys)
        assert state.index is not None
        return device.choose(asked, state.index, there)

    def seen_in(self, layer: int, spec: AttentionSpec) -> tuple[Device, Nodes]:
        """The same, with the nodes as the attention of `layer` sees them: it may look back to the beginning of a chunk alone, or at
        what was chosen."""
        device, there = self.at(layer)
        if spec.chosen.nodes is not None:
            return device, spec.chosen.nodes
        chunk = self.cache.shapes[layer].chunk
        if not 0 < chunk < self.cache.capacity:
            return device, there
        if (device.name, chunk) not in self._within:
            self._within[device.name, chunk] = there.within(chunk, chunk if device.own_memory else None)
        return device, self._within[device.name, chunk]


def place_of_one(nodes: Nodes, device: Device) -> tuple[int, int] | None:
    """The row and slot of a single node; None for more, and on a device with memory of its own: reading them would make the host
    wait."""
    if len(nodes) != 1 or device.own_memory:
        return None
    return int(nodes.rows[0]), int(nodes.slots[0])


def attention_name() -> str:
    """The name under which stock models find `attention`; registered with transformers at the first call."""
    return hf.register_attention("understudy", attention)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention function as transformers calls it: query [1, heads, n, key size] -> [1, n, heads, value size].

    key, value [1, kv heads, n, size] are the pass's own: what a layer attends with goes to the KV cache, which need not be what
    it gave its cache (a latent state, say). All are read from there."""
    told = (attention_mask, *(others.get(name) for name in CHOSEN))
    chosen = next((each for each in told if isinstance(each, Chosen)), None)
    if query.device.type == "meta":
        if chosen is None and (name := next((name for name in CHOSEN if others.get(name) is not None), None)):
            raise CheckpointError(f"Layer {module.layer_idx} attends to some keys alone ({name}), which is not supported yet.")
        if (watch := getattr(module, "watch", None)) is not None:
            watch.call(module, query, key, value)
        near_bias.bias_given(module, others.get(near_bias.BIAS))
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None
    current: CurrentPass = module.understudy  # type: ignore[assignment]
    under_way = current.under_way
    assert under_way is not None and isinstance(module.layer_idx, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = near_bias.bias_given(module, others.get(near_bias.BIAS))
    spec = AttentionSpec(float(scale), sliding_window or 0, softcap or 0.0, others.get("s_aux"), chosen or ALL, bias)
    under_way.write_kv(module.layer_idx, key[0].transpose(0, 1), value[0].transpose(0, 1))
    asked, heads = query[0].transpose(0, 1), getattr(module, latent.HEADS, None)
    if heads is None:
        return under_way.attend(module.layer_idx, asked, spec)[None], None
    return heads.widened(under_way.attend(module.layer_idx, heads.ask(asked), spec))[None], None


def pair(model: nn.Module, order: list[str], current: CurrentPass) -> None:
    """Put a StreamedLinear in the place of each Linear named in `order`, take the stacks of experts named there away, and tell each
    attention and all experts where the current pass is."""
    for index, path in enumerate(order):
        parent, _, name = path.rpartition(".")
        if mixes(module := model.get_submodule(parent)):
            hand_over(module, current, name, index)
            continue
        old = model.get_submodule(path)
        assert isinstance(old, nn.Linear)
        bias = None if old.bias is None else nn.Parameter(torch.empty(0, dtype=old.bias.dtype), requires_grad=False)
        setattr(model.get_submodule(parent), name, StreamedLinear(current, index, bias, len(old.weight), old.weight.dtype))
    for module in model.modules():
        if hasattr(module, "layer_idx") or ASKS in vars(module):
            object.__setattr__(module, "understudy", current)
