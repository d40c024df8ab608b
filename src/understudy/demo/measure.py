"""How good a demo model is, and how well its 4-bit copy agrees with it; writes the model card.

python -m understudy.demo.measure DIR [--corpus FOLDER]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from understudy.demo import PROMPT
from understudy.demo.corpus import documents

WINDOW = 1024
GROUP = 64
PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Report:
    """Figures of a model and its 4-bit copy on the held-out files, and on texts that the model wrote from their beginnings."""

    # Tokens of the held-out files.
    tokens: int
    # Mean cross entropy in nats, of a token and of a byte.
    loss_per_token: float
    loss_per_byte: float
    # Nats per token of the 4-bit copy.
    loss_of_copy: float
    # Share of the tokens at which model and copy choose the same one.
    agreement: float
    # Share of the tokens at which the model chooses the true one.
    accuracy: float
    # Tokens that the model wrote, and the share of them that the copy would choose too.
    written: int
    agreement_written: float


def rounded(weight: Tensor, bits: int = 4) -> Tensor:
    """A matrix rounded to the nearest of 2**bits evenly spaced values in each group of 64 inputs, and back."""
    # [rows, groups, 64]
    groups = weight.float().reshape(len(weight), -1, GROUP)
    low = groups.amin(-1, keepdim=True)
    high = groups.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-10)
    codes = ((groups - low) / scale).round()
    values: Tensor = (codes * scale + low).reshape(weight.shape)
    return values.to(weight.dtype)


def replace_linears(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Changes the weight of every Linear in place, the head's too, but no embeddings, even where the head is tied to them."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(change(module.weight.detach()), requires_grad=False)


@torch.no_grad()
def choices(model: nn.Module, windows: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest next token at every place of [n, length] windows, and the loss of the one that came."""
    chosen, losses = [], []
    for window in windows:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        chosen.append(logits.argmax(-1))
        losses.append(functional.cross_entropy(logits, window[1:], reduction="none"))
    return torch.stack(chosen), torch.stack(losses)


def windows_of(tokenizer: Any, texts: Sequence[str], window: int = WINDOW) -> Tensor:
    """The documents, each ended, as [n, window] tokens."""
    tokens = [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    return torch.tensor(tokens[: len(tokens) // window * window]).view(-1, window)


@torch.no_grad()
def continuations(model: Any, windows: Tensor, new_tokens: int = 128) -> Tensor:
    """What the model writes greedily after the first tokens of each window: [n, PROMPT_TOKENS + new_tokens]."""
    starts = windows[:, :PROMPT_TOKENS]
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    written: Tensor = model.generate(starts, attention_mask=torch.ones_like(starts), **options)
    return written


def measure(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> Report:
    """The figures of the card. The model is its 4-bit copy afterwards."""
    windows = windows_of(tokenizer, texts)
    exact, losses = choices(model, windows)
    written = continuations(model, windows)
    replace_linears(model, rounded)
    copied, losses_of_copy = choices(model, windows)
    followed = choices(model, written)[0][:, PROMPT_TOKENS - 1 :] == written[:, PROMPT_TOKENS:]
    tokens_per_byte = sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts) / sum(len(t.encode()) for t in texts)
    return Report(
        tokens=windows.numel(),
        loss_per_token=float(losses.mean()),
        loss_per_byte=float(losses.mean()) * tokens_per_byte,
        loss_of_copy=float(losses_of_copy.mean()),
        agreement=float((exact == copied).double().mean()),
        accuracy=float((exact == windows[:, 1:]).double().mean()),
        written=followed.numel(),
        agreement_written=float(followed.double().mean()),
    )


def sample(model: Any, tokenizer: Any, prompt: str, new_tokens: int = 160) -> str:
    """The greedy continuation of a prompt."""
    tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
    written = model.generate(tokens, max_new_tokens=new_tokens, do_sample=False)
    return str(tokenizer.decode(written[0, tokens.shape[1] :]))


def card(facts: dict[str, Any], report: Report, text: str) -> str:
    """The model card: corpus, training, figures and a sample."""
    recipe = facts["recipe"]
    runs = [*facts.get("earlier", []), recipe]
    rates = ", then ".join(f"peak rates {run['matrix_rate']} and {run['vector_rate']}" for run in runs)
    return f"""# The demo model

A Llama-architecture causal model of 9.2 million parameters (16 layers, hidden size 256, 4 query heads and 1 key head of 64,
feed-forward 448, 4096 tokens, tied embeddings; bf16) that writes Python. It is there to show and to test Understudy with
text that has meaning, not to be useful. `python -m understudy.demo.train` makes it.

- **Corpus**: {facts["files"]} files of Python {facts["python"]}'s standard library, {facts["bytes"] / 1e6:.1f} MB,
  {facts["corpus_tokens"] / 1e6:.2f} million tokens; no tests, no generated tables, no third-party packages. Its licence is the
  Python Software Foundation License.
- **Kept apart**: {len(facts["held_out_files"])} files ({facts["held_out_tokens"]} tokens) chosen by a hash of their paths:
  {", ".join(f"`{name}`" for name in facts["held_out_files"])}.
- **Training**: {facts["steps"]} steps, {facts["tokens"] / 1e6:.1f} million tokens ({facts["tokens"] / facts["corpus_tokens"]:.1f}
  times through the corpus) in {facts["minutes"]:.0f} minutes of processor time on each of {facts["machine"]}; batches of
  {recipe["batch_tokens"]} tokens, Muon for matrices and AdamW for embeddings and norms ({rates}), depth grown from 4 to 16 layers,
  windows from 256 to 1024 tokens. The checkpoint with the lowest held-out loss was kept. That is little training: at
  temperature 0 it soon repeats itself, and beyond some 1024 tokens its text decays.
- **Held-out loss**: {report.loss_per_token:.3f} nats per token, {report.loss_per_byte:.3f} per byte
  ({report.accuracy:.1%} of next tokens guessed; windows of {WINDOW} tokens).
- **Its 4-bit copy** (every Linear rounded to nearest, groups of {GROUP}) chooses the same token at
  {report.agreement_written:.1%} of {report.written} places of what the model writes greedily from held-out beginnings of
  {PROMPT_TOKENS} tokens, and at {report.agreement:.1%} of {report.tokens} places of the held-out files (where its own loss is
  {report.loss_of_copy:.3f}).

A greedy continuation of the default prompt:

```python
{PROMPT}{text.replace("<|endoftext|>", "").rstrip()}
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures a trained demo model and writes its card.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, help="a folder of Python sources (default: this Python's own)")
    given = parser.parse_args()
    facts = json.loads((given.model / "training.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    texts = [document.text for document in documents(given.corpus) if document.held_out]
    text = sample(model, tokenizer, PROMPT)
    report = measure(model, tokenizer, texts)
    print(report)
    (given.model / "CARD.md").write_text(card(facts, report, text))


if __name__ == "__main__":
    main()
