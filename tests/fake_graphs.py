"""CUDA graphs without CUDA: work is recorded operation by operation with its very tensors, and replayed without its Python.
Kernels of our own, which Triton interprets, are operations too. `FakeGraph.launches` names what a GPU would be asked to run.

As on a GPU: recording changes nothing, what would ask the device for a value fails, and whatever Python looked at while it was
recorded stays as it was then."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from understudy.devices.graphs import SLOWER, CaptureError

ASKING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_consecutive", "_unique2", "unique_dim",
    "item", "nonzero_static", "repeat_interleave", "_has_compatible_shallow_copy_type",
}  # fmt: skip
# Operations that give memory and run nothing.
MAKING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
Step = tuple[Callable[[], Any], list[Tensor]]


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def content(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


class Recorder(TorchDispatchMode):
    """While entered, `steps` are noted, and what they write to that was there before can be put back."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.launches: list[str] = []
        self.kept: list[Tensor] = []  # so that no storage is freed, and its address used again
        self.own: set[int] = set()
        # What was written to, and what it held: the first of a place counts.
        self.before: list[tuple[Tensor, Tensor]] = []
        self.saved: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ASKING or (name.startswith("index") and any(t.dtype is torch.bool for t in tensors(args[1:2]))):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing. More words.\nMore lines.")
        given = tensors((args, kwargs))
        self.kept += given
        written = [
            value
            for i, argument in enumerate(func._schema.arguments)
            if isinstance(value := args[i] if i < len(args) else kwargs.get(argument.name), Tensor)
            and argument.alias_info is not None
            and argument.alias_info.is_write
        ]
        for tensor in written:
            self.writes(tensor)
        result = func(*args, **kwargs)
        made, known = tensors(result), {storage(tensor) for tensor in given}
        fresh = known.isdisjoint({storage(tensor) for tensor in made})  # else they are views, or were written in place
        self.note(lambda: func(*args, **kwargs), made if fresh else [])
        if written or (fresh and name not in MAKING):
            self.launches.append(name)
        return result

    def writes(self, tensor: Tensor) -> None:
        if storage(tensor) not in self.own and storage(tensor) not in self.saved:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # type: ignore[call-overload]
            self.before.append((whole, whole.clone()))
            self.saved.add(storage(tensor))

    def note(self, work: Callable[[], Any], made: list[Tensor]) -> None:
        """`work` gives tensors like `made` again."""
        self.kept += made
        self.own |= {storage(tensor) for tensor in made}
        self.steps.append((work, made))

    def kernel(self, name: str, work: Callable[[], Any], given: list[Tensor]) -> None:
        """`work` is a kernel of our own that changes some of the tensors `given`."""
        self.kept += given
        before = [(tensor, tensor.clone()) for tensor in given if storage(tensor) not in self.own]
        work()
        self.before += [(tensor, held) for tensor, held in before if content(tensor) != content(held)]
        self.note(work, [])
        self.launches.append(name)

    def restore(self) -> None:
        for tensor, held in reversed(self.before):
            tensor.copy_(held)
        self.before = []


@contextmanager
def own_kernels(recorder: Recorder) -> Iterator[None]:
    """Hand kernels that Triton interprets to `recorder`, each as one step. Nothing, where Triton is not installed."""
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:
        yield
        return
    run = InterpretedFunction.run

    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch._C._DisableTorchDispatch():
            recorder.kernel(self.__name__, lambda: run(self, *args, **kwargs), tensors((args, kwargs)))

    with patch.object(InterpretedFunction, "run", recorded):
        yield


class FakeGraph:
    def __init__(self, graphs: "FakeGraphs", recorder: Recorder):
        self.graphs, self.recorder = graphs, recorder

    @property
    def launches(self) -> list[str]:
        """The names of what a replay asks a GPU to run, in order: torch's operations, which may be several kernels each, and
        kernels of our own. Views and empty memory are none."""
        return self.recorder.launches

    def replay(self) -> None:
        graphs = self.graphs
        graphs.replayed += 1
        assert graphs.thread in (None, threading.get_ident()), "graphs of one pool run at the same time"
        graphs.aside += graphs.thread is not None
        with torch._C.DisableTorchFunction():
            for work, made in self.recorder.steps:
                with graphs.guard:
                    result = work()
                    for into, tensor in zip(made, tensors(result)[: len(made)], strict=True):
                        into.copy_(tensor)


class FakeGraphs:
    """`captured`, `replayed`: how often; `aside`: of these, in a thread that works beside others. `full`: so many captures from now
    find no memory left. `guard`: held by the one thread whose work a kernel or an operation is."""

    def __init__(self, full: int = 0, guard: AbstractContextManager[Any] | None = None) -> None:
        self.captured = self.replayed = self.aside = 0
        self.full = full
        self.guard = nullcontext() if guard is None else guard
        self.thread: int | None = None

    @contextmanager
    def beside(self, after: Any) -> Iterator[None]:
        assert self.thread is None, "two threads work beside others"
        self.thread = threading.get_ident()
        try:
            yield
        finally:
            self.thread = None

    def capture(self, work: Callable[[], None]) -> FakeGraph:
        assert self.thread is None, "recorded while a thread works beside others"
        work()
        recorder = Recorder()
        try:
            with recorder, own_kernels(recorder):
                work()
            if self.full:
                self.full -= 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More words.")
        except RuntimeError as error:
            raise CaptureError(f"{SLOWER} ({str(error).split('. ')[0]})") from None
        finally:
            recorder.restore()
        self.captured += 1
        return FakeGraph(self, recorder)
