"""What the processes of `gpu_check` do. Each imports what it needs only when it runs: the process that begins them all needs
none of it, and must not open the GPU."""

import os
from typing import Any

from gpu_child import Send

# What `gpu_exact` checks side by side: kernels, texts of the built-in model, and of tiny models of other families.
EXACT_GROUPS = ("kernels", "demo", "llama", "gemma3_text", "qwen2")
# Where nothing but exactness is asked for: families whose blocks are built in other ways.
FURTHER_GROUPS = (
    *("qwen3", "phi3", "gemma4_text", "gemma4-e", "youtu", "glm4", "gpt_oss", "qwen3_moe", "qwen3_5_text", "kimi_linear", "bamba"),
)
EXACT_THREADS = 2


def describe(send: Send, device: str) -> None:
    """Send what this machine is, and why its GPU cannot be used, if so: whether it says that there is one, and its own words."""
    import torch
    import transformers

    from understudy.errors import first_line

    there = torch.cuda.is_available()
    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__, "processors": os.cpu_count()}
    trouble = ""
    if device == "cuda":
        try:
            torch.zeros(1, device="cuda")
        except (RuntimeError, AssertionError) as error:
            trouble = first_line(error)
        else:
            properties = torch.cuda.get_device_properties(0)
            found |= {"gpu": properties.name, "gpu_bytes": properties.total_memory}
    send(found, there, trouble)


def prepare(send: Send, *given: Any) -> None:
    import gpu_place

    gpu_place.prepare(send, *given)


def compile_copies(send: Send) -> None:
    import gpu_place

    gpu_place.compile_copies(send)


def compile_attention(send: Send) -> None:
    import gpu_place

    gpu_place.compile_attention(send)


def exact(send: Send, *given: Any) -> None:
    import torch

    import gpu_exact

    # What it computes beside the GPU is little, and other processes need the processors.
    torch.set_num_threads(min(EXACT_THREADS, torch.get_num_threads()))
    for checked in gpu_exact.exactness(*given):
        send("checked", checked.what, checked.trouble, checked.seconds)


def measure(send: Send, *given: Any) -> None:
    import gpu_measure

    gpu_measure.measure(send, *given)
