"""The planner's table for well-known shapes on budgets from 4 to 48 GB, as docs/plan.md has it; only configs are needed.

    python benchmarks/plans.py > table.md

For a machine with a disk of 3.5 GB/s and memory of 60 GB/s, and a chat of 20 turns of 64 tokens asked and 192 answered."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

BUDGETS = (4, 6, 8, 12, 16, 24, 32, 48)
CHAT = "turns=20,prompt=64,reply=192"
MACHINE = "cpu:memory=64GB,disk=3.5GB/s,bandwidth=60GB/s"
# How cells say what is given up.
SAID = {
    "--bits mixed:bits=3.5": "3.5 bits", "--bits 3": "3 bits", "--bits 2": "2 bits", "--head-bits 4": "head 4 bits",
    "--method none --codec raw": "none", "--method none": "none",
}  # fmt: skip
SPILL = "--spill 1024"


def usual(kind: str, sizes: tuple[int, int, int, int, int, int]) -> dict[str, Any]:
    """The config of a dense model: hidden and intermediate size, layers, heads, heads of keys, vocabulary."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    return {
        "model_type": kind, **dict(zip(names, sizes, strict=True)), "max_position_embeddings": 32768, "dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip


def said(options: str) -> str:
    """What the options of a step give up, in a few words."""
    rest = options.removeprefix(SPILL).strip()
    words = ["spill"] if rest != options else []
    return ", ".join([*words, *([SAID.get(rest, rest)] if rest else [])])


HYBRID: dict[str, Any] = {
    "model_type": "qwen3_5_text", "dtype": "bfloat16", "vocab_size": 248320, "hidden_size": 5120, "intermediate_size": 17408,
    "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256, "linear_num_key_heads": 16,
    "linear_num_value_heads": 48, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16, "max_position_embeddings": 262144,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "Vicuna 7B": usual("llama", (4096, 11008, 32, 32, 32, 32000)),
    "Qwen2.5 7B": usual("qwen2", (3584, 18944, 28, 28, 4, 152064)),
    "Qwen2.5 14B": usual("qwen2", (5120, 13824, 48, 40, 8, 152064)),
    "Qwen3.6 27B (hybrid)": HYBRID,
    "Qwen2.5 32B": usual("qwen2", (5120, 27648, 64, 40, 8, 152064)),
    "Llama 3 70B": usual("llama", (8192, 28672, 80, 64, 8, 128256)),
}


def row(config: dict[str, Any]) -> list[str]:
    """The cells of one shape: the lower bound, the budget from which speed is kept, and what each budget gives."""
    from understudy.concessions import Planner, chosen_step, plan_chat
    from understudy.drawable import drawable
    from understudy.errors import UsageError
    from understudy.options import MORE, Options
    from understudy.plan.conversation import Conversation
    from understudy.plan.other_machine import OtherMachine
    from understudy.plan.rounds import Arithmetic

    other = OtherMachine.parse(MACHINE)
    talk = Conversation.parse(CHAT, "--chat")
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(config))
        first = Options.of({"context": talk.tokens, "rows": 1}, os.environ)
        # The layers are traced once for all budgets.
        model = drawable(place, first, other, config_alone=True)
        first = model.options
        reading = Arithmetic.of_bandwidth(other.bandwidth)
        planner = Planner(talk, reading, model.drawn, model.in_budget, changeable=True)

        # Steps and their smallest budgets are the same for all budgets.
        roomy = plan_chat(planner, replace(first, memory=BUDGETS[-1] * 10**9), "context")

        def cell(budget: int) -> str:
            try:
                chosen = chosen_step(planner, first, roomy.steps, roomy.keeping, ("context", budget * 10**9))
            except UsageError:
                return "-"
            # More bits than usual are chosen by the plan itself.
            how = "6 bits" if not chosen.options and chosen.plan.copy.startswith(MORE) else said(chosen.options)
            speed = chosen.expected.tokens_per_second
            return (f"{speed:.1f}" if speed >= 1 else f"{speed:.2f}") + (f" ({how})" if how else "")

        bound, keeping = roomy.lower_bound.budget_bytes, roomy.keeping
        kept = f"{keeping.budget_bytes / 1e9:.1f} GB" if keeping is not None else "-"
        return [f"{bound / 1e9:.1f} GB", kept, *map(cell, BUDGETS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", help="only those with this in their names", default="")
    wanted = parser.parse_args().shapes
    heads = ["shape", "lower bound", "96% of speed from", *(f"{budget} GB" for budget in BUDGETS)]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for name, config in SHAPES.items():
        if wanted not in name:
            continue
        print("| " + " | ".join([name, *row(config)]) + " |", flush=True)


if __name__ == "__main__":
    main()
