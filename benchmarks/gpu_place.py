"""The model that `gpu_check` measures: a stand-in and its Stores, in the fastest place there is room for, and made once."""

import json
import math
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_child import ROOT, Send
from gpu_rows import Size

SHARED_MEMORY = Path("/dev/shm")
NOISE = 3.0
# Bytes of the stand-in and of a Store with each codec, against those of the stand-in; what the host holds for the device besides.
SHARES = {"raw": 1.4, "delta": 0.9}
HELD, SPARE = 1.1, 12 << 30


def standin_of(folder: Path, size: Size) -> Path:
    return folder / f"standin-{size.widen}"


def head_of(model: Path) -> Path:
    """Where the head of the stand-in `model` lies."""
    return model.with_name(f"{model.name}-head")


def place(size: Size, codecs: Sequence[str]) -> Path:
    """A new folder: in memory where there is room for all of it beside the work, else where temporary files go."""
    needed = int(bytes_of(size) * (1 + sum(SHARES[codec] for codec in codecs)))
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK):
        available = min(shutil.disk_usage(SHARED_MEMORY).free, available_memory() - int(HELD * bytes_of(size)) - SPARE)
        if available > needed:
            return Path(tempfile.mkdtemp(prefix="gpu-check-", dir=SHARED_MEMORY))
    return Path(tempfile.mkdtemp(prefix="gpu-check-"))


def available_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def bytes_of(size: Size) -> int:
    """Bytes of the stand-in's weights, a little more than they are."""
    with (ROOT / "src/understudy/demo/model/model.safetensors").open("rb") as file:
        header = json.loads(file.read(*struct.unpack("<Q", file.read(8))))
    values = sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return 2 * values * size.widen**2


def prepare(send: Send, folder: Path, size: Size, codecs: Sequence[str], headed: bool) -> None:
    """The stand-in, a Store for each codec, and a head where rows are `headed`; what is there already is left. Sends what each
    took, in seconds.

    What the text says of the inputs of Linears is measured once for all Stores."""
    model = standin_of(folder, size)
    began = time.perf_counter()
    if not model.exists():
        make(folder, model, size)
    send("made", "stand-in", time.perf_counter() - began)
    from understudy import LLM
    from understudy.models import calibration

    measure, known = calibration.moments_of_text, []

    def measured(*given: Any) -> None:
        *rest, note = given
        if not known:
            began = time.perf_counter()
            measure(*rest, known.append)
            send("made", "calibration", time.perf_counter() - began)
        for inputs in known:
            note(inputs)

    calibration.moments_of_text = measured
    for codec in codecs:
        began = time.perf_counter()
        LLM.prepare(model, codec=codec)
        send("made", f"Store, {codec}", time.perf_counter() - began)
    if headed and not head_of(model).exists():
        began = time.perf_counter()
        make_head(model, size)
        send("made", "head", time.perf_counter() - began)


def compile_copies(send: Send) -> None:
    """Compile what makes copies and residuals, on one small weight: half of what preparing a Store needs of a new machine."""
    import torch

    from understudy.codecs import codec
    from understudy.kernels.pack import block
    from understudy.quantizers import quantizer
    from understudy.quantizers.inputs import Inputs

    began = time.perf_counter()
    weight = (torch.randn(64, 128) * 0.02).to(torch.bfloat16)
    substitute = quantizer("int4").quantize(weight, Inputs.of(torch.randn(32, 128)))
    codec("delta").encode(block(weight), substitute)
    send("made", "kernels of copies", time.perf_counter() - began)


def compile_attention(send: Send) -> None:
    """Compile the processor's attention, the other half, on one small tree."""
    import torch

    from understudy.kernels.attention import AttentionSpec, attend
    from understudy.layer_states import FullState, LayerShape
    from understudy.tree import Nodes, TokenTree

    began = time.perf_counter()
    state = FullState(LayerShape(1, 64, 64), 1, 64, torch.bfloat16, "cpu")
    state.keys.zero_()
    state.values.zero_()
    nodes = Nodes.of(TokenTree.chain([1, 2, 3]), 0, 0)
    attend(torch.zeros(3, 1, 64, dtype=torch.bfloat16), state.keys, state.values, nodes, AttentionSpec(0.125, 0, 0.0))
    send("made", "kernels of attention", time.perf_counter() - began)


def make(folder: Path, model: Path, size: Size) -> None:
    import standin
    from understudy.demo import path

    if size.device == "fake":  # the demo model would take too long
        from tests.tiny import save

        save(folder / "source", "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=1)
        standin.make(folder / "source", model, standin.Widening(size.widen, NOISE))
    else:
        standin.make(path(), model, standin.Widening(size.widen, NOISE, device=size.device))


def make_head(model: Path, size: Size) -> None:
    import torch

    from understudy.heads.files import built, load, save
    from understudy.heads.held import Holding
    from widen_head import widened

    if size.device == "fake":
        from tests import trained
        from understudy.heads import TargetFacts

        head = built(trained.config("eagle", target=TargetFacts(64, 256))).requires_grad_(False)
    else:
        from understudy.demo import head_path

        head = load(head_path(), Holding(torch.float32))
    save(widened(head, size.widen).to(torch.bfloat16), head_of(model))
