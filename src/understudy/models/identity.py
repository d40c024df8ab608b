"""What the bits of keys, values and states depend on besides the text: the exact weights, the config, and what computes."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path

import torch
from llvmlite import binding  # type: ignore[import-untyped]

from ..kernels.amx_dot import has_amx
from ..kernels.compiled import stamp
from ..kernels.instructions import asked
from .model import Model

LIBRARIES = ("torch", "transformers", "numba")
COMPUTING = ("kernels", "devices", "models")  # the parts of this package, beside what lies at its top, whose code decides bits


def identity_of(model: Model) -> str:
    """64 hex digits. Two models of which it is the same, in whatever process, compute the same bits of the same text."""
    store = model.store
    weights = [(name, entry.checksum) for name, entry in store.linears.items()]
    others = [(name, stored.checksum) for name, stored in (*store.shared.items(), *store.tables.items())]
    package = Path(__file__).parents[1]
    told = {
        "weights": sorted(weights) + sorted(others) + [("embedding", store.embedding.checksum)],
        # Where the checkpoint lay does not matter.
        "config": {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"},
        "type": str(model.dtype),
        "layers": [astuple(shape) for shape in model.cache.shapes],
        "device": [model.device.name, _processor(), _accelerator(model.device.where), torch.get_num_threads()],
        "libraries": [version(name) for name in LIBRARIES],
        "sources": [stamp(folder) for folder in _sources(package)],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _sources(package: Path) -> list[Path]:
    """The folders of `package` that have code which decides bits."""
    return [package, *sorted({file.parent for part in COMPUTING for file in (package / part).rglob("*.py")})]


def _processor() -> list[str]:
    """What the processor's kernels are compiled for."""
    held = asked()
    name = binding.get_host_cpu_name() if held is None else held.name
    multiplied = "amx" if has_amx() else "vectors"
    return [platform.machine(), name, torch.backends.cpu.get_cpu_capability(), multiplied]


def _accelerator(where: str) -> str:
    """The name of the accelerator at `where`, if torch knows it."""
    return torch.cuda.get_device_name(where) if where.startswith("cuda") and torch.cuda.is_available() else ""
