"""The options of loading a model, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .codecs import CODECS, FALLBACK
from .devices import device_names
from .drafters import DEFAULT_METHOD, DrafterSpec, spec_of
from .errors import UsageError
from .option_kinds import check_kinds
from .option_rules import check_devices, check_not_padded, check_prefixes
from .plan.remembered import cache_directory
from .plan.sizes import parse_size
from .policies import DEFAULT_POLICY, Policy, policy_of
from .quantizers.mixed import mixed
from .registry import lookup
from .tiers import tier_names
from .weights.recipe import (
    NO_TEXT,
    Recipe,
    calibration_text,
    check_calibration,
    checksum_of,
    quantizer_name,
    uses_text,
)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BITS: dict[int | str, str] = {2: "int2", 3: "int3", 4: "int4", 6: "int6", 8: "int8", 16: "exact"}
AUTO = "auto"
# The quantiser of all weights where bits are left open, and the one with more bits, which may be chosen then.
USUAL, MORE = "int4", "int6"
# The head's quantiser where its bits are left open and there is room, beside those of all other weights.
HEAD = "int8"
BESIDE = ("int2", "int3", "int4", "int6")
# What `kv_bits` may say beside auto.
SMALL = 8
# What `spill` says where nothing may spill.
STAY = "none"
# Tokens that stay in fast memory at least where others spill.
LEAST_LATEST = 64
# Bytes of prefixes on disk where the user does not say.
PREFIXES = "4GB"
# Options whose sizes are checked where they are read.
SIZES = {"memory", "host_memory", "prefix_cache_size"}
# Fields that follow from the environment and from other options: nobody gives them.
DERIVED = {"cache", "recipe_quantizer", "recipe_head", "copy_chosen", "text"}


@dataclass(frozen=True)
class Options:
    """The options of loading a model. Sizes are bytes or texts such as "8GiB"; None: loading decides."""

    # Memory for everything: of the accelerator where there is one, else of this process.
    memory: str | int | None = None
    # Host memory behind an accelerator.
    host_memory: str | int | None = None
    device: str = "auto"
    # Several devices of one kind, such as "cuda:0,cuda:1": exact weights are dealt out, the first runs all else. None: one device.
    devices: str | None = None
    # How a model is split over several devices: blocks (of outputs), stages (of layers), or auto, the faster.
    split: str = AUTO
    # Where streamed weights come from, a tier's name; auto: what the device is made for.
    tier: str = AUTO
    # The type to compute in, by name or as torch's own; auto: that of the weights.
    dtype: str = "auto"
    # The drafter and its options, as in "substitute:width=6".
    method: str = DEFAULT_METHOD
    # Hidden states that a pass hands out; empty: those that the drafter reads.
    taps: tuple[int, ...] = ()
    # Which exact weights stay in fast memory: auto, none, residual or whole.
    resident: str = "auto"
    # Tokens that a prompt and its continuation may have together.
    context: int | None = None
    # Latest tokens of a text whose keys and values stay in fast memory while those of older ones go to disk; none: all stay; auto:
    # they go where the context that was asked for does not fit otherwise.
    spill: int | str = AUTO
    # Bits of keys' and values' numbers: 8, which is not exact, or auto: those of the model's own type.
    kv_bits: int | str = AUTO
    # Sequences that run together.
    rows: int | None = None
    # Bits of a substitute's weight, or "mixed" for a mix; auto: 6 where passes wait long for weights and there is room, else 4.
    bits: int | str = AUTO
    # Bits of the head's substitute; auto: 8 beside fewer `bits` where there is room for them, else those of all others.
    head_bits: int | str = AUTO
    # The name of a quantiser of all weights, which takes the place of `bits`.
    quantizer: str | None = None
    # A file of text that weighs a mix.
    calibrate: str | Path | None = None
    # The codec that exact weights are stored in; auto: the faster one on this machine.
    codec: str = AUTO
    # Keep no copy of the exact weights: read them from the checkpoint.
    link: bool = False
    # The directory of the Store; None: one in the cache.
    output: str | Path | None = None
    # The policy that says which requests a pass serves.
    policy: str = DEFAULT_POLICY
    # Do not ask the hub.
    offline: bool = False
    # The branch, tag or commit of a model of the hub; None: its main one, or what the model's name says after "@".
    revision: str | None = None
    # Where defaults of sampling come from: auto (the model's own generation_config.json), none, or the directory of one.
    generation_config: str | Path = AUTO
    # A directory where prefixes of prompts are kept for later processes; None: they are not kept.
    prefix_cache: str | Path | None = None
    # The most that all files there may take; None: 4 GB.
    prefix_cache_size: str | int | None = None
    # Plan for grammars that texts are held to.
    grammars: bool = False
    # Bytes per second that the disk is slowed down to, for tests and benchmarks; 0: full speed.
    throttle: float = 0.0
    # Where Stores and measurements are kept.
    cache: Path = Path()
    # The full name of the quantiser of all weights, or of the mix.
    recipe_quantizer: str = USUAL
    # The quantiser of the head; empty: that of all weights.
    recipe_head: str = ""
    # Has the quantiser been chosen, where bits were left open?
    copy_chosen: bool = False
    # The text in `calibrate`, read once; the one that comes along where none is named.
    text: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], environment: Mapping[str, str]) -> Options:
        """Check every option. Raises UsageError; for an unknown option it names the nearest."""
        known = {field.name: field for field in fields(cls) if field.name not in DERIVED}
        for name in given:
            lookup("option", name, known)
        if isinstance(given.get("dtype"), torch.dtype):
            given = {**given, "dtype": str(given["dtype"]).removeprefix("torch.")}
        options = cls(**given, cache=cache_directory(environment))
        check_kinds(options, skipped=SIZES)
        spec_of(options.method)
        policy_of(options.policy)
        lookup("dtype", options.dtype, {"auto": 0, **DTYPES})
        lookup("device", options.device, dict.fromkeys(device_names(), 0))
        lookup("tier", options.tier, dict.fromkeys(tier_names(), 0))
        lookup("codec", options.codec.partition(":")[0], {AUTO: "", **CODECS})
        lookup("resident", options.resident, {"auto": 0, "none": 0, "residual": 0, "whole": 0})
        for name in ("context", "rows"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, got {value}.")
        if options.quantizer is None and options.bits not in (AUTO, *BITS) and mixed(str(options.bits)) is None:
            raise UsageError(f"--bits must be one of {', '.join(map(str, BITS))}, auto or mixed, got {options.bits}.")
        if options.head_bits not in (AUTO, *BITS):
            raise UsageError(f"--head-bits must be one of {', '.join(map(str, BITS))} or auto, got {options.head_bits}.")
        check_devices(options)
        options._check_spill()
        options._check_kv_bits()
        check_prefixes(options)
        options = options._with_recipe()
        return options._linked() if options.link else options

    def _check_spill(self) -> None:
        """Raise UsageError for what spilling cannot do."""
        if self.spill in (AUTO, STAY):
            return
        if not isinstance(self.spill, int) or self.spill < LEAST_LATEST:
            raise UsageError(f"--spill must be auto, none or a number of tokens, {LEAST_LATEST} or more, got {self.spill}.")
        check_not_padded(self, "--spill")

    def _check_kv_bits(self) -> None:
        """Raise UsageError for what keys and values of 8 bits cannot do."""
        if self.kv_bits == AUTO:
            return
        if self.kv_bits != SMALL:
            raise UsageError(f"--kv-bits must be {SMALL} or {AUTO}, got {self.kv_bits}.")
        if self.devices is not None:
            raise UsageError(f"--kv-bits {SMALL} is for one processor: leave it or --devices {self.devices} out.")
        if isinstance(self.spill, int):
            raise UsageError(f"--kv-bits {SMALL} is not for keys and values that spill: leave it or --spill {self.spill} out.")
        if self.prefix_cache is not None:
            raise UsageError(f"--kv-bits {SMALL} is not for --prefix-cache, whose files hold exact ones: choose one of the two.")
        check_not_padded(self, f"--kv-bits {SMALL}")

    @property
    def small_keys(self) -> bool:
        """Have keys and values 8 bits?"""
        return self.kv_bits == SMALL

    @property
    def recipe(self) -> Recipe:
        """How the Store is made. The codec must have been chosen."""
        assert self.codec != AUTO, "the codec was not chosen yet"
        return Recipe(self.recipe_quantizer, self.codec, checksum_of(self.text), self.recipe_head)

    @property
    def bits_left_open(self) -> bool:
        """May the copy have other bits than those of `recipe_quantizer`, until they are chosen, and give way to fewer then?"""
        return self.bits == AUTO and self.quantizer is None

    def with_copy(self, quantizer: str) -> Options:
        """With a copy by this quantiser, chosen where bits were left open."""
        return replace(self, recipe_quantizer=quantizer, recipe_head=self._head(quantizer), copy_chosen=True)

    def with_bits(self, bits: int | str) -> Options:
        """As if --bits said so, and a head whose bits are left open has no own ones."""
        name = BITS.get(bits, str(bits))
        made = replace(self, bits=bits, quantizer=None, recipe_quantizer=name)
        return replace(made, recipe_head="" if self.head_bits == AUTO else made._head(name))

    @property
    def smallest(self) -> Options:
        """With all that is left open as it takes least memory."""
        made = self.with_copy(USUAL) if self.bits_left_open else self
        return replace(made, recipe_head="") if made.head_left_open else made

    @property
    def head_left_open(self) -> bool:
        """May the head have the quantiser of all weights instead of its own?"""
        return self.head_bits == AUTO and bool(self.recipe_head)

    @property
    def prefix_bytes(self) -> int:
        """The most bytes that files of prefixes may take."""
        return parse_size(PREFIXES if self.prefix_cache_size is None else self.prefix_cache_size, "--prefix-cache-size")

    @cached_property
    def drafter(self) -> DrafterSpec:
        """What the drafter of `method` needs; a trained head is looked for once, then. Raises UsageError for an unknown method or
        option, CheckpointError for a head that is nowhere."""
        return spec_of(self.method).located(self.offline)

    @property
    def batching(self) -> Policy:
        """A new policy of the kind and options of `policy`. Raises UsageError for an unknown one."""
        return policy_of(self.policy)

    def slowed(self, link: float) -> float:
        """What is left of a link of so many bytes a second (0: not known) where it is slowed down."""
        return min(link or self.throttle, self.throttle) if self.throttle else link

    @property
    def method_name(self) -> str:
        """The drafter's name, without its options."""
        return self.method.partition(":")[0]

    @property
    def handed_out(self) -> tuple[int, ...]:
        """Hidden states that a pass hands out, as numbers of `DrafterSpec.taps`."""
        return self.taps or self.drafter.taps

    @property
    def holds_substitute(self) -> bool:
        """Are the substitutes held in fast memory to draft with?"""
        return self.drafter.holds_substitute

    @property
    def holds_head(self) -> bool:
        """Is the substitute of the output head held, whether or not the others are?"""
        return self.drafter.holds_head

    def held_whole(self) -> Options:
        """For a second model that drafts: its own weights and type, held whole, prepared in the cache."""
        recipe: dict[str, Any] = {"quantizer": "exact", "recipe_quantizer": "exact", "recipe_head": "", "codec": FALLBACK}
        recipe |= {"calibrate": None, "text": None}
        alone: dict[str, Any] = {"output": None, "revision": None, "prefix_cache": None, "prefix_cache_size": None, "kv_bits": AUTO}
        return replace(self, **recipe, **alone, dtype="auto", method=DEFAULT_METHOD)

    def _with_recipe(self) -> Options:
        """With the quantiser's full name and the text that the copy is fitted to."""
        named = self.quantizer or (USUAL if self.bits_left_open else BITS.get(self.bits, str(self.bits)))
        given = self.calibrate is not None and str(self.calibrate) != NO_TEXT
        check_calibration(named, given)
        text = calibration_text(self.calibrate) if uses_text(named) else None
        name = quantizer_name(named, text if given else None)
        return replace(self, recipe_quantizer=name, recipe_head=self._head(name), text=text)

    def _head(self, name: str) -> str:
        """The head's own quantiser beside quantiser or mix `name`; empty where it has none. UsageError for one beside a mix."""
        if self.head_bits == AUTO:
            return HEAD if self.quantizer is None and name in BESIDE else ""
        if mixed(name) is not None:
            raise UsageError("--head-bits is not for a mix, which chooses the head's bits itself: choose one of them.")
        head = BITS[self.head_bits]
        return "" if head == name else head

    def _linked(self) -> Options:
        """With the codec that `link` means. Raises UsageError where another option contradicts it."""
        if self.codec not in (AUTO, "link"):
            raise UsageError(f"--link keeps no copy of the exact weights, --codec {self.codec} does: choose one of them.")
        if self.recipe_quantizer == "exact":
            raise UsageError("--link needs a copy that drafts beside the exact weights: --bits 8 or fewer.")
        return replace(self, codec="link")
