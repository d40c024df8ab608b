"""CUDA graphs without CUDA: work is recorded operation by operation with its very tensors, and replayed without its Python.

As on a GPU: recording changes nothing, what would ask the device for a value fails, and whatever Python looked at while it was
recorded stays as it was then."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from understudy.devices.graphs import SLOWER, CaptureError

ASKING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_consecutive", "_unique2", "unique_dim",
    "item", "nonzero_static", "repeat_interleave", "_has_compatible_shallow_copy_type",
}  # fmt: skip
Step = tuple[Callable[[], Any], list[Tensor]]


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class Recorder(TorchDispatchMode):
    """While entered, `steps` are noted, and what they write to that was there before can be put back."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.kept: list[Tensor] = []  # so that no storage is freed, and its address used again
        self.own: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ASKING or (name.startswith("index") and any(t.dtype is torch.bool for t in tensors(args[1:2]))):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing. More words.\nMore lines.")
        given = tensors((args, kwargs))
        self.kept += given
        for value, argument in zip(args, func._schema.arguments, strict=False):
            if isinstance(value, Tensor) and argument.alias_info is not None and argument.alias_info.is_write:
                self.writes(value)
        result = func(*args, **kwargs)
        made, known = tensors(result), {storage(tensor) for tensor in given}
        fresh = known.isdisjoint({storage(tensor) for tensor in made})  # else they are views, or were written in place
        self.note(lambda: func(*args, **kwargs), made if fresh else [])
        return result

    def writes(self, tensor: Tensor) -> None:
        if storage(tensor) not in self.own and storage(tensor) not in self.before:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # type: ignore[call-overload]
            self.before[storage(tensor)] = (whole, whole.clone())

    def note(self, work: Callable[[], Any], made: list[Tensor]) -> None:
        """`work` gives tensors like `made` again."""
        self.kept += made
        self.own |= {storage(tensor) for tensor in made}
        self.steps.append((work, made))

    def restore(self) -> None:
        for whole, content in self.before.values():
            whole.copy_(content)


class FakeGraph:
    def __init__(self, graphs: "FakeGraphs", recorder: Recorder):
        self.graphs, self.recorder = graphs, recorder

    def replay(self) -> None:
        self.graphs.replayed += 1
        with torch._C.DisableTorchFunction():
            for work, made in self.recorder.steps:
                result = work()
                for into, tensor in zip(made, tensors(result)[: len(made)], strict=True):
                    into.copy_(tensor)


class FakeGraphs:
    """`captured`, `replayed`: how often. `full`: so many captures from now find no memory left."""

    def __init__(self, full: int = 0) -> None:
        self.captured = self.replayed = 0
        self.full = full
        self.recorder: Recorder | None = None

    def capture(self, work: Callable[[], None]) -> FakeGraph:
        work()
        recorder = self.recorder = Recorder()
        try:
            with recorder:
                work()
            if self.full:
                self.full -= 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More words.")
        except RuntimeError as error:
            raise CaptureError(f"{SLOWER} ({str(error).split('. ')[0]})") from None
        finally:
            self.recorder = None
            recorder.restore()
        self.captured += 1
        return FakeGraph(self, recorder)

    def kernel(self, work: Callable[[], Tensor]) -> Tensor:
        """Call a kernel of our own, which is not made of torch's operations; while recording it is one step."""
        if self.recorder is None:
            return work()
        with torch._C._DisableTorchDispatch():
            out = work()
        self.recorder.note(work, [out])
        return out
