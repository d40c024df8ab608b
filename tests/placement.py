"""Finds tensors that are on the wrong side: "cuda" is imitated on the CPU, and what PyTorch would refuse there is refused.

Storages that were made on, or moved to, "cuda" are remembered. An operation on tensors of both sides fails as on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

THERE = torch.device("cuda")
FREE = {"copy_", "__getitem__", "__setitem__", "index_put_"}  # these may have arguments of both sides


class Placement(TorchFunctionMode):
    """While entered. `crossings` counts copies from one side to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, StorageWeakRef] = {}
        self.watching, self.crossings = True, 0

    def there(self, tensor: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            return tensor.device.type == "cpu" and tensor.untyped_storage()._cdata in self.known

    def put(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            if tensor.device.type == "cpu":
                reference = StorageWeakRef(tensor.untyped_storage())  # held, so that its address is not used again
                self.known[tensor.untyped_storage()._cdata] = reference
        return tensor

    @contextmanager
    def kernel(self, *tensors: Tensor) -> Iterator[None]:
        """Code that runs on the device: all it is given must be there."""
        assert all(self.there(tensor) for tensor in tensors), [self.there(tensor) for tensor in tensors]
        before, self.watching = self.watching, False
        try:
            yield
        finally:
            self.watching = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not self.watching:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if name == "__get__":
            if func.__self__ is Tensor.device and self.there(args[0]):
                return THERE
            return func(*args, **kwargs)
        if name == "__set__":
            return func(*args, **kwargs)
        assert name != "numpy" or not self.there(args[0]), "a tensor on the device has no numpy view"
        sides = {self.there(tensor) for tensor in tensors if tensor.dim() and tensor.device.type in ("cpu", "cuda")}
        asked, args, kwargs = _asked(name, args, kwargs)
        if asked is None:
            if name in FREE:
                assert name in ("copy_",) or self.there(args[0]) or True not in sides, (
                    f"{name} on the CPU with what is there"
                )
                self.crossings += name == "copy_" and len(sides) == 2
            else:
                shapes = [(tuple(tensor.shape), self.there(tensor)) for tensor in tensors]
                assert len(sides) < 2, f"{name} of tensors on both sides: {shapes}"
            return self._placed(func(*args, **kwargs), any(self.there(tensor) for tensor in tensors))
        moved = asked.type == "cuda"
        result = func(*args, **kwargs)
        if tensors and isinstance(result, Tensor) and self.there(args[0]) != moved:
            self.crossings += 1
            result = result.clone()  # under the mode it is where the old one is
            return self._placed(result, moved) if moved else _fresh(result)
        return self._placed(result, moved)

    def _placed(self, result: Any, there: bool) -> Any:
        return tree_map_only(Tensor, self.put, result) if there else result


def _fresh(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return tensor.clone()


def _asked(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[torch.device | None, Any, dict[str, Any]]:
    """The device a call names, if any, and the call with the CPU in its place."""

    def device(value: Any) -> torch.device | None:
        if isinstance(value, torch.device):
            return value
        return (
            torch.device(value) if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda", "meta") else None
        )

    if name == "cpu":
        return torch.device("cpu"), args, kwargs
    found = None
    if kwargs.get("device") is not None:
        found = device(kwargs["device"])
    elif name == "to":
        found = next((device(value) for value in args[1:] if device(value) is not None), None)
    if found is None or found.type != "cuda":
        return (None if found is None or found.type == "meta" else found), args, kwargs
    swap: Callable[[Any], Any] = lambda value: torch.device("cpu") if device(value) is not None else value  # noqa: E731
    return found, tuple(swap(value) for value in args), {key: swap(value) for key, value in kwargs.items()}
