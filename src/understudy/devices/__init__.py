"""Devices: where a model's fast tensors lie and what computes there. One is one file and one line of the table below.

The processor is a device like any other, so nothing outside this folder asks which one it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import UsageError
from ..registry import find, lookup

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor

    from ..codecs import Codec, Encoded
    from ..kernels.attention import AttentionSpec, Chosen
    from ..kernels.blocks import BlockKernels
    from ..kernels.chosen_keys import IndexQuery
    from ..kernels.exact_operand import Operand
    from ..kernels.expert_kernels import ExpertKernels, ExpertLinear
    from ..kernels.level_kernels import LevelKernels
    from ..kernels.recurrence import RuleStep
    from ..kernels.state_form import HeadRows
    from ..plan.machine import Machine
    from ..plan.placement import Plan
    from ..quantizers import Linear, Quantizer, Tensors
    from ..recurrent import RecurrentShape, RecurrentState
    from ..spilled import SpilledState
    from ..tiers import Streaming
    from ..tiers.ring import Ring
    from ..tree import Nodes
    from .graphs import Graphs

DEVICES: dict[str, str] = {
    "cpu": "understudy.devices.processor:Processor",
    "cuda": "understudy.devices.cuda:open_cuda",
}
AUTO = "auto"
DEFAULT = "cpu"  # what "auto" stands for


class DraftAttention(Protocol):
    """The attention of one draft level: its nodes are known, and each layer asks once."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        """query [n, heads, key size] over a layer's keys and values [rows, kv heads, places, size] -> [n, heads, value size]."""


# A draft level, a call of a trained head, what it says of tokens, a pass whose Linears multiply by kernels of our own, one of them
# in wide tiles, and one of torch's own products, whose bits may depend on the number of threads.
SharedWork = Literal["level", "head", "head logits", "pass", "prompt", "stock pass"]

# Takes operands of exact weights with their first blocks, and gives what multiplies tiles by them: tiles, and where results go.
ExactProduct = Callable[["Sequence[tuple[Operand, int]]"], Callable[["Sequence[Tensor]", "Tensor"], None]]

# Takes logits [k, vocabulary] that lie here and, from the host, how each row is drawn from; gives the tokens [k] int64 that the
# exact model puts after them to the host, as `sampling.Chooser`.
TokenChooser = Callable[["Tensor", "Mapping[str, Tensor]"], "Tensor"]

# Takes rows x [n, K], blocks of exact weights [nb, K, 64], and where the products go [n, nb, 64]. The bits of a row's products do
# not depend on the other rows, nor on their number.
RowProduct = Callable[["Tensor", "Tensor", "Tensor"], None]

# Takes query [n, heads, key size], a layer's state and the nodes, and gives what `Device.attend` would, to the bit. Raises
# TransferError where the file cannot be read.
SpilledAttention = Callable[["Tensor", "SpilledState", "Nodes", "AttentionSpec"], "Tensor"]


# Takes all that the kernels look at and change, by name, and sizes.
OpenLevelKernels = Callable[["Mapping[str, Any]"], "LevelKernels"]


class Device(Protocol):
    """One place to compute, open and ready. Sizes are bytes, speeds bytes per second, times seconds."""

    # what --device calls it
    name: str
    # torch's name for its memory
    where: str
    # what a person should know, such as a slower way taken; empty when all is well
    note: str
    # bytes of its memory that are in use before any of the model is there
    runtime_bytes: int
    # whether its memory is apart from this process's, so that host memory lies behind it
    own_memory: bool
    # whether the host searches for drafts, beside the text; else the search runs here, level by level
    drafts_see_text: bool
    # whether attention over latent states runs here, so that these are kept in the place of keys and values
    attends_over_states: bool
    # whether the nodes of a pass cost next to nothing beside its weights, so that trees may be larger
    nodes_are_free: bool
    # what records work to do it again as a whole; None where there is nothing that could
    graphs: Graphs | None

    def at_work(self) -> AbstractContextManager[object]:
        """A block in which the calling thread works with it, where a machine has several of its kind."""
        ...

    # Memory

    def budget(self, asked: str | int | None, machine: Machine) -> int:
        """Bytes of its memory that a model may use: `asked`, or most of what is free. UsageError where it is too much."""
        ...

    def peak_bytes(self) -> int:
        """The most of its memory that was held at once."""
        ...

    def forget(self) -> None:
        """Give back memory that is held for later use alone."""
        ...

    def arena(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of its memory, of any content."""
        ...

    def landing(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of host memory that `late` copies to and the device is given small things from."""
        ...

    def incoming(self, place: Tensor) -> Tensor:
        """Host memory, page-aligned, to read what belongs in `place` into: `place` itself where the host can write there."""
        ...

    # The slow path

    def link_bytes_per_second(self, disk: float) -> float:
        """The speed at which streamed weights come, where the disk gives `disk`; 0 where that is not known."""
        ...

    def memory_bytes_per_second(self, machine: Machine) -> float:
        """The speed of its memory; 0 where that is not known."""
        ...

    def behind(self, plan: Plan, host_memory: str | int | None, machine: Machine, disk: float) -> Plan:
        """`plan` with what is streamed placed behind this device. UsageError for `host_memory` that is too small."""
        ...

    def ring(self, streaming: Streaming, capacity: int) -> Ring:
        """The parts of `streaming` on their way, in `capacity` bytes of its memory; each is checked before it is used."""
        ...

    # Work: it may go on after a call returns, in the order it was asked for

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
        """query [n, heads, key size] of `nodes` over a layer's keys and values [rows, kv heads, places, size] ->
        [n, heads, value size].

        All of them lie here. The bits of a node do not depend on the other nodes."""
        ...

    def choose(self, asked: IndexQuery, keys: Tensor, nodes: Nodes) -> Chosen:
        """What each of `nodes` looks at, chosen by the index `keys` of a layer [rows, 1, slots, size]. It depends on no
        other node."""

    def head_product(self, weights: Tensor) -> HeadRows:
        """What multiplies rows [n, heads, K], each for itself, by `weights` [heads, N, K], where it attends over states."""

    def spilled_attention(self) -> SpilledAttention | None:
        """What attends over keys and values of which a file holds most; None: they cannot spill here."""

    def draft_attention(self, nodes: Nodes) -> DraftAttention:
        """The attention of a draft level of `nodes`, which lie here. Fast; its bits may depend on the other nodes."""
        ...

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, state: RecurrentState, nodes: Nodes) -> Tensor:
        """Convolution of x [n, channels] along the path of each of `nodes`, which records x; see `kernels.recurrence`.

        All of them lie here. The bits of a node do not depend on the other nodes."""
        ...

    def recur(self, step: RuleStep, state: RecurrentState, nodes: Nodes, together: bool) -> Tensor:
        """The rule of a recurrent layer after each of `nodes`, [n, value heads, value size] float32, which records the step.

        `together`: none of them is another's ancestor, and bits do not matter. Else the bits of a node do not depend on the
        other nodes."""
        ...

    def walks(self, shape: RecurrentShape) -> bool:
        """Does `recur` take as many nodes of a pass as `recurrence.most_walked` says, and fold what they read on its way?"""
        ...

    def fold(self, state: RecurrentState, row: int, number: int) -> None:
        """Make the state of `row` after 64 * (number + 1) tokens, from the one after 64 * number tokens and the records since."""
        ...

    def draft_product(self, quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        """The linear map [m, K] -> [m, N] of a substitute, in `dtype`. Keeps `tensors`, which lie here."""
        ...

    def expert_kernels(self) -> ExpertKernels | None:
        """What rows that go to experts are found and added up with, and multiplied by exact weights; None: the host counts them."""
        ...

    def draft_experts(
        self, quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], experts: int, dtype: torch.dtype
    ) -> ExpertLinear | None:
        """As `draft_product`, of the matrices of `experts` one below the other, each for the rows that go there; None: the host
        multiplies expert by expert, or asks for that."""
        ...

    def search_kernels(self) -> OpenLevelKernels | None:
        """What opens the kernels of a tree search on this device; None: there are none, and torch's operations do it."""
        ...

    def block_kernels(self) -> BlockKernels | None:
        """What decoder blocks of the draft that run in fewer steps are made of; None: there is nothing."""
        ...

    def exact_product(self, dtype: torch.dtype, columns: int, rows: torch.dtype) -> ExactProduct | None:
        """What multiplies rows of the type `rows` by exact weights of the type `dtype` as they arrive, as
        `kernels.exact_product.BlockProduct`; None: they are decoded."""
        ...

    def row_product(self) -> RowProduct | None:
        """What multiplies any number of rows by decoded weights, each row for itself; None: tiles of one shape do."""
        ...

    def token_chooser(self) -> TokenChooser | None:
        """What chooses the tokens after any number of nodes in few steps; None: the operations of torch do."""
        ...

    def refusal(self, codec: Codec) -> str:
        """Why weights stored by `codec` cannot be decoded here, and what to do, in one line; empty: they can."""
        ...

    def decode(self, codec: Codec, part: Encoded, out: Tensor | None = None) -> Tensor:
        """The exact blocks [count, columns, 64] of a part whose bytes are here: in `out`, or a view of its data."""
        ...

    def seconds_a_weight(self, codec: Codec, quantizer: str, dtype: torch.dtype) -> float:
        """Seconds that a weight of `dtype`, stored by `codec` beside `quantizer`'s copy, takes to be used, once its bytes came."""
        ...

    def sharing(self, work: SharedWork, nodes: int) -> AbstractContextManager[None]:
        """Around work of this kind on so many `nodes`: it is shared by as many of the host's threads as such work was fastest on,
        and is timed for that. It says nothing of work that the device itself does."""
        ...

    def sent(self, sources: Sequence[Tensor], where: str) -> list[Tensor]:
        """`sources`, which lie here and are made already, in memory `where`: they are there at return, and what is under way here
        or there is not waited for."""

    # Time

    def finish(self) -> None:
        """Wait until all that was asked so far is done."""

    def mark(self) -> Any:
        """An event that happens when all that was asked so far is done. Does not wait."""
        ...

    def late(self, source: Tensor, into: Tensor) -> Any:
        """Copy to the host once all that was asked so far is done. Does not wait; returns the event of its arrival."""
        ...

    def wait_for(self, event: Any) -> None:
        """Block the host until `event` has happened."""
        ...

    def seconds_between(self, first: Any, last: Any) -> float:
        """Seconds between two events that have happened."""
        ...

    # Trouble

    def out_of_memory(self, error: BaseException) -> str:
        """What `error` says of memory that was not there, in few words; empty: it is about something else."""
        ...

    def lost(self, error: BaseException) -> bool:
        """Whether `error` means that nothing can be computed here any more, until the model is loaded again."""
        ...

    def close(self) -> None:
        """Give back threads. Further calls do nothing."""
        ...


def device_names() -> tuple[str, ...]:
    """All that --device may be."""
    return (AUTO, *DEVICES)


def open_device(name: str, host_memory: str | int | None = None) -> Device:
    """The device called `name`. UsageError where it cannot be used, or where `host_memory` is asked for behind none."""
    lookup("device", name, dict.fromkeys(device_names(), ""))
    device: Device = find("device", DEVICES, DEFAULT if name == AUTO else name)()
    refuse_host_memory(device, host_memory)
    return device


def refuse_host_memory(device: Device, asked: str | int | None) -> None:
    """Raise UsageError where host memory is `asked` for behind a device that has none behind it."""
    if asked is not None and not device.own_memory:
        raise UsageError("--host-memory is for an accelerator; on the CPU --memory is all the memory there is.")
