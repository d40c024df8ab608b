"""Trains the demo model: a deep and narrow Llama that writes Python, from the standard library's own sources.

    python -m understudy.demo.train --output DIR --minutes 10

The learning rate follows processor time (a pause costs nothing) or `--epochs`, whichever is further along, and the
checkpoint kept is the one with the lowest loss on the held-out files. Writes an ordinary Hugging Face directory.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from transformers import LlamaForCausalLM

from understudy.demo.corpus import documents
from understudy.demo.shape import FURTHER, STAGES, Stage, configuration, deepen
from understudy.demo.text import batches, encode, train_tokenizer

MICRO_TOKENS = {"cpu": 2048, "cuda": 32768}


LONGEST = STAGES[-1].window
MEETING = ".meeting"
"""The file through which the processes find each other."""


@dataclass(frozen=True)
class TrainingRecipe:
    """The settings of a training, apart from the machine."""

    # Training ends after these minutes of processor time or these epochs, whichever is first.
    minutes: float
    epochs: int
    # Tokens of one update.
    batch_tokens: int
    # Peak learning rates of the blocks' matrices (Muon), and of embeddings and norms (AdamW).
    matrix_rate: float
    vector_rate: float
    weight_decay: float
    # Share of a module's additions to the residual stream that is dropped.
    dropout: float
    seed: int


@dataclass(frozen=True)
class Team:
    """The processes that train together, each on its share of a batch: one per core, which beats one on all cores."""

    rank: int
    size: int
    device: str

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size > 1:
            distributed.all_reduce(values)
            values /= self.size
        return values

    def say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)


def window_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross entropy of each token of [n, length] windows given those before it."""
    logits = model(input_ids=tokens, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, texts: Sequence[Tensor], window: int, team: Team) -> float:
    """Nats per token over about half of the held-out documents (the model card is measured on all)."""
    model.eval()
    stretch = max(MICRO_TOKENS[team.device], LONGEST)
    stream = torch.cat(list(texts)).to(team.device)
    parts = stream[: len(stream) // stretch * stretch].view(-1, stretch // window, window)[team.rank :: 2 * team.size]
    with torch.autocast(team.device, torch.bfloat16):
        losses = [window_loss(model, part) for part in parts]
    model.train()
    return float(team.mean(torch.stack(losses).mean()))


def dropped(share: float) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A forward hook that drops a share of what a module adds to the residual stream."""
    return lambda module, _, output: functional.dropout(output, share, module.training)


def optimizers_for(model: LlamaForCausalLM, recipe: TrainingRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms; `initial_lr` is the peak of each."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    embedding = [model.model.embed_tokens.weight]
    kinds: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(embedding + vectors, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    for optimizer in kinds:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return kinds


def rate(progress: float) -> float:
    """Share of the peak learning rate: a short warm-up, a plateau, then a straight line down."""
    return min(1.0, progress / 0.02, max(0.01, (1 - progress) / 0.6))


def step(
    model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], tokens: Tensor, scale: float, team: Team
) -> float:
    """One update from windows [n, length], a few at a time so that activations stay in the processor's caches."""
    parts = torch.split(tokens, max(1, MICRO_TOKENS[team.device] // tokens.shape[1]))
    total = torch.zeros((), device=team.device)
    for part in parts:
        with torch.autocast(team.device, torch.bfloat16):
            loss = window_loss(model, part.to(team.device)) * (len(part) / len(tokens))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    shared = team.mean(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, torch.split(shared, sizes), strict=True):
        gradient.copy_(part.view_as(gradient))
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(total)


def train(
    model: LlamaForCausalLM,
    texts: Sequence[Tensor],
    held_out: Sequence[Tensor],
    recipe: TrainingRecipe,
    team: Team,
    output: Path,
    stages: Sequence[Stage] = STAGES,
) -> dict[str, float]:
    """Runs the recipe, saves the best full-depth checkpoint to `output`, and returns what it took."""
    planned = recipe.epochs * sum(map(len, texts)) // recipe.batch_tokens
    windows = batches(texts, recipe.batch_tokens // LONGEST, LONGEST, torch.Generator().manual_seed(recipe.seed))
    if recipe.dropout:
        for block in model.model.layers:
            block.self_attn.o_proj.register_forward_hook(dropped(recipe.dropout))
            block.mlp.down_proj.register_forward_hook(dropped(recipe.dropout))
    best: dict[str, float] = {"held_out_loss": math.inf}
    start = time.process_time()
    seen = 0
    progress = 0.0
    next_report = 0.0
    stage = Stage(0, 0, 0)
    optimizers: list[torch.optim.Optimizer] = []
    for done, tokens in enumerate(windows):
        clock = torch.tensor((time.process_time() - start) / (60 * recipe.minutes), device=team.device)
        progress = max(float(team.mean(clock)), done / planned)
        current = [each for each in stages if each.start <= progress][-1]
        if current.layers != stage.layers:
            deepen(model.train(), current.layers)
            optimizers = optimizers_for(model, recipe)
        if current != stage:
            best["held_out_loss"] = math.inf
            stage = current
        if progress >= min(1.0, next_report):
            next_report = progress + 0.04
            measured = held_out_loss(model, held_out, stage.window, team)
            minutes = (time.process_time() - start) / 60
            team.say(f"{progress:6.1%}  step {done}  {minutes:.1f} min  {stage}  held out {measured:.4f}")
            if stage.layers == STAGES[-1].layers and measured < best["held_out_loss"]:
                best = {"held_out_loss": measured, "steps": done, "tokens": seen, "minutes": minutes}
                if team.rank == 0:
                    save(model, output)
        if progress >= 1:
            return best
        mine = tokens.chunk(team.size)[team.rank]
        loss = step(model, optimizers, mine.reshape(-1, stage.window), rate(progress), team)
        seen += tokens.numel()
        if done % 20 == 0:
            team.say(f"        step {done}  train {loss:.4f}")
    raise AssertionError("the windows never end")


def save(model: LlamaForCausalLM, output: Path) -> None:
    """The model in bf16 as an ordinary directory; training goes on in fp32."""
    state = {name: weight.detach().to(torch.bfloat16) for name, weight in model.named_parameters()}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(output, state_dict=state)


def work(
    rank: int, size: int, device: str, output: Path, corpus: Path | None, start: Path | None, recipe: TrainingRecipe
) -> None:
    """One process of the team, from corpus to trained model."""
    # One compiled block per window length and mode.
    torch._dynamo.config.recompile_limit = 64
    if size > 1:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{output / MEETING}", rank=rank, world_size=size)
    team = Team(rank, size, device)
    torch.manual_seed(recipe.seed)
    every = documents(corpus)
    learned = [document for document in every if not document.held_out]
    kept_apart = [document for document in every if document.held_out]
    tokenizer = train_tokenizer([document.text for document in learned])
    if rank == 0:
        tokenizer.save_pretrained(output)
        # The package has a limit, and half of this file would be spaces.
        saved = output / "tokenizer.json"
        saved.write_text(json.dumps(json.loads(saved.read_text()), ensure_ascii=False, separators=(",", ":")) + "\n")
    texts = encode(tokenizer, learned)
    held_out = encode(tokenizer, kept_apart)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{size} CPU cores"
    facts = {
        "python": platform.python_version(),
        "machine": machine,
        "files": len(learned),
        "bytes": sum(len(document.text.encode()) for document in learned),
        "corpus_tokens": sum(map(len, texts)),
        "held_out_files": [document.name for document in kept_apart],
        "held_out_tokens": sum(map(len, held_out)),
        "recipe": asdict(recipe),
    }
    team.say(json.dumps(facts))
    model = LlamaForCausalLM(configuration())
    stages: Sequence[Stage] = STAGES
    # A finished model is trained further at full depth from the first step.
    if start is not None:
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        stages = FURTHER
    model.to(torch.device(device))  # type: ignore[arg-type]
    reached = train(model, texts, held_out, recipe, team, output, stages)
    if start is not None:
        before = json.loads((start / "training.json").read_text())
        reached |= {name: reached[name] + before[name] for name in ("steps", "tokens", "minutes")}
        facts["earlier"] = [*before.get("earlier", []), before["recipe"]]
    if rank == 0:
        (output / "training.json").write_text(json.dumps(facts | reached, indent=1) + "\n")
    if size > 1:
        distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the demo model on the standard library's sources.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, help="a folder of Python sources (default: this Python's own)")
    parser.add_argument("--start", type=Path, help="a directory this script made: train that model further")
    parser.add_argument("--minutes", type=float, default=120.0, help="of processor time, in each process")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--matrix-rate", type=float, default=0.02, help="peak learning rate of Muon")
    parser.add_argument("--vector-rate", type=float, default=0.003, help="peak learning rate of AdamW")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.0, help="worth having beyond some ten epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = vars(parser.parse_args())
    device = given.pop("device")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    output = given.pop("output").resolve()
    corpus = given.pop("corpus")
    start = given.pop("start")
    output.mkdir(parents=True, exist_ok=True)
    (output / MEETING).unlink(missing_ok=True)
    size = len(os.sched_getaffinity(0)) if device == "cpu" else 1
    arguments = (size, device, output, corpus, start, TrainingRecipe(**given))
    if size == 1:
        work(0, *arguments)
    else:
        spawn(work, arguments, nprocs=size)  # type: ignore[no-untyped-call]
    (output / MEETING).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
