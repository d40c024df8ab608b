"""Sets of instructions that machine code is made for, and the one that is used here.

Kernels are written once, and LLVM makes them for the processor at hand. A few have a second form where a processor multiplies
bytes or bfloat16 at once (`has`). UNDERSTUDY_ISA names a smaller set than this processor's, so that what others have can be run
and measured here. Machine code that comes with the package is made for these sets too."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import binding  # type: ignore[import-untyped]
from numba import config as numba_config

from ..errors import UsageError

VARIABLE = "UNDERSTUDY_ISA"


@dataclass(frozen=True)
class InstructionSet:
    """What a processor can do, as far as kernels differ by it."""

    name: str
    # What `platform.machine()` calls the family of processors.
    machine: str
    # The processor that LLVM makes code for, and what it may use beyond that one's own instructions.
    cpu: str
    features: tuple[str, ...]
    # What a processor must have to run the code, as LLVM calls it: enough of it to tell it from a smaller one.
    needs: frozenset[str]
    # What torch's own kernels, and those of its library oneDNN, are held to where this set is asked for.
    torch: str
    onednn: str

    @property
    def llvm_features(self) -> str:
        """The features in the form that LLVM takes."""
        return ",".join(f"+{feature}" for feature in self.features)

    def serves(self, found: frozenset[str]) -> bool:
        """Does its code run on a processor with the features `found`?"""
        return self.machine == platform.machine() and self.needs <= found


_V2 = frozenset({"sse4.2", "ssse3", "popcnt", "cx16"})
_V3 = _V2 | {"avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI = _V4 | {"avx512vnni"}
_BF16 = _VNNI | {"avx512bf16"}
# each processor that has AMX moves bytes anywhere, too
_AMX = _BF16 | {"amx-tile", "amx-bf16", "avx512vbmi"}
_TILES = ("avx512vnni", "avx512bf16", "avx512vbmi", "amx-tile", "amx-bf16")
_NEON = frozenset({"neon"})
_DOT = _NEON | {"dotprod"}

SETS = (
    InstructionSet("amx", "x86_64", "x86-64-v4", _TILES, _AMX, "avx512", "AVX512_CORE_AMX"),
    InstructionSet("avx512bf16", "x86_64", "x86-64-v4", ("avx512vnni", "avx512bf16"), _BF16, "avx512", "AVX512_CORE_BF16"),
    InstructionSet("avx512vnni", "x86_64", "x86-64-v4", ("avx512vnni",), _VNNI, "avx512", "AVX512_CORE_VNNI"),
    InstructionSet("avx512", "x86_64", "x86-64-v4", (), _V4, "avx512", "AVX512_CORE"),
    InstructionSet("avxvnni", "x86_64", "x86-64-v3", ("avxvnni",), _V3 | {"avxvnni"}, "avx2", "AVX2_VNNI"),
    InstructionSet("avx2", "x86_64", "x86-64-v3", (), _V3, "avx2", "AVX2"),
    InstructionSet("sse4", "x86_64", "x86-64-v2", (), _V2, "default", "SSE41"),
    InstructionSet(
        "neonbf16", "aarch64", "generic", ("neon", "dotprod", "i8mm", "bf16"), _DOT | {"i8mm", "bf16"}, "default", "ALL"
    ),
    InstructionSet("neondot", "aarch64", "generic", ("neon", "dotprod"), _DOT, "default", "ALL"),
    InstructionSet("neon", "aarch64", "generic", ("neon",), _NEON, "default", "ALL"),
)
"""Of each family of processors, the largest set first. Processors with AVX-512 and no AVX-VNNI have every set but that one."""


@cache
def found() -> frozenset[str]:
    """The features of this processor, as LLVM calls them."""
    return frozenset(name for name, there in binding.get_host_cpu_features().items() if there)


def best() -> InstructionSet | None:
    """The largest set that this processor has; None: it has none of them, and code is made for it alone."""
    return next((each for each in SETS if each.serves(found())), None)


@cache
def asked() -> InstructionSet | None:
    """The set that UNDERSTUDY_ISA names; None where it is not set.

    Raises UsageError for an unknown one, and for one that this processor does not have."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        return None
    here = [each.name for each in SETS if each.serves(found())]
    if name not in here:
        what = "is not known" if all(name != each.name for each in SETS) else "is more than this processor has"
        raise UsageError(f"{VARIABLE}={name} {what}: choose one of {', '.join(here) or 'none'}, or leave it unset.")
    return next(each for each in SETS if each.name == name)


def has(*features: str) -> bool:
    """Whether kernels are compiled for a machine with all these features (as LLVM calls them)."""
    config: Any = numba_config
    if (chosen := asked()) is not None:
        return chosen.needs.issuperset(features)
    return not (config.CPU_NAME or config.CPU_FEATURES) and found().issuperset(features)


def hold() -> None:
    """Hold numba, torch and oneDNN to the set that UNDERSTUDY_ISA names, if it names one.

    Called before anything is compiled or computed: each of them looks once."""
    if (chosen := asked()) is not None:
        config: Any = numba_config
        config.CPU_NAME = chosen.cpu
        config.CPU_FEATURES = chosen.llvm_features
        os.environ["ATEN_CPU_CAPABILITY"] = chosen.torch
        os.environ["ONEDNN_MAX_CPU_ISA"] = chosen.onednn


def told() -> str:
    """The set in use, for people: its name, and who chose it."""
    if (chosen := asked()) is not None:
        return f"{chosen.name} ({VARIABLE})"
    here = best()
    return here.name if here is not None else "none that is known: kernels are compiled for this processor alone"
