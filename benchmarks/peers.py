"""Other ways to run the same checkpoint, on the same prompts, under the same memory cap, to compare with.

    python benchmarks/peers.py accelerate MODEL --memory 3.5GB --new-tokens 8 --json out.json
    python benchmarks/peers.py transformers MODEL --new-tokens 128 --json out.json

`accelerate` keeps every decoder layer on disk and the rest in memory; `transformers` holds the whole model in memory
and gives the exact tokens that every method must reproduce. Both decode greedily with the model's own forward and cache,
each in a process of its own, whose figures come back as JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import capped
import prompts

DTYPES = ("bfloat16", "float32", "float16")


def load(model: str, mode: str, dtype: str, offload: str) -> Any:
    """A stock model: wholly in memory, or with its decoder layers left on disk."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = getattr(torch, dtype)
    if mode == "transformers":
        return AutoModelForCausalLM.from_pretrained(model, dtype=wanted).eval()
    layers = AutoConfig.from_pretrained(model).num_hidden_layers
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{layer}": "disk" for layer in range(layers)}
    options = {"dtype": wanted, "device_map": places, "offload_folder": offload}
    return AutoModelForCausalLM.from_pretrained(model, **options).eval()


def decode(model: Any, prompt: list[int], new_tokens: int, device: str = "cpu") -> dict[str, Any]:
    """Greedy tokens with their times; the first is timed apart, since it includes the prompt."""
    import torch

    tokens, cache, generated = torch.tensor([prompt], device=device), None, []
    start = time.monotonic()
    first = start
    with torch.inference_mode():
        for number in range(new_tokens):
            out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, tokens = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            generated.append(int(tokens))
            if number == 0:
                first = time.monotonic()
    seconds = time.monotonic() - first
    rate = (new_tokens - 1) / seconds if new_tokens > 1 else None
    return {"token_ids": generated, "ttft_seconds": first - start, "decode_seconds": seconds, "tokens_per_second": rate}


def work(given: argparse.Namespace) -> dict[str, Any]:
    """What the process of one mode does: load, decode each prompt, report."""
    import torch
    from transformers import AutoTokenizer

    if given.threads:
        torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    with tempfile.TemporaryDirectory(dir=given.offload_folder) as offload:
        start = time.monotonic()
        model = load(given.model, given.mode, given.dtype, offload)
        load_seconds = time.monotonic() - start
        results = []
        for prompt in prompts.prompts(tokenizer, given.prompt_tokens, given.prompts):
            results.append({"prompt_ids": prompt} | decode(model, prompt, given.new_tokens))
            print(f"{given.mode}: {results[-1]['tokens_per_second']} tokens/s", file=sys.stderr)
    decoded, seconds = given.new_tokens - 1, [result["decode_seconds"] for result in results]
    return {
        "mode": given.mode,
        "model": given.model,
        "dtype": given.dtype,
        "load_seconds": load_seconds,
        "tokens_per_second": decoded * len(results) / sum(seconds) if decoded else None,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "results": results,
    }


def launch(given: argparse.Namespace) -> dict[str, Any]:
    """Runs one mode in its own process, under the cap where one is given."""
    options = [arg for arg in sys.argv[1:] if arg != "--worker"]
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", *options]
    if given.memory is None:
        if given.cold and not capped.drop_page_cache():
            print("peers: not permitted to drop the page cache", file=sys.stderr)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"peers: {given.mode} ended with status {done.returncode}")
        return dict(json.loads(done.stdout.splitlines()[-1]))
    result = capped.run(command, given.memory, timeout=given.timeout, cold=given.cold)
    if result.returncode:
        why = "was killed at its memory limit" if result.killed_for_memory else f"ended with status {result.returncode}"
        raise SystemExit(f"peers: {given.mode} {why}; the kernel counted {result.peak_bytes / 1e9:.2f} GB at most")
    kernel = {
        "memory_limit_bytes": result.limit_bytes,
        "peak_memory_bytes": result.peak_bytes,
        "peak_anonymous_bytes": result.peak_anonymous_bytes,
        "page_cache_dropped": result.page_cache_dropped,
    }
    return dict(json.loads(result.output.splitlines()[-1])) | kernel


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs a checkpoint by other means, for comparison.")
    parser.add_argument("mode", choices=("accelerate", "transformers"))
    parser.add_argument("model")
    parser.add_argument("--memory", type=capped.size, help="cap on the process's memory, like 3.5GB (default: none)")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=1, help="how many of the benchmark prompts")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--offload-folder", type=Path, help="where accelerate may write (default: the system's choice)")
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--warm", dest="cold", action="store_false", help="leave the page cache as it is")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.new_tokens < 1 or not 1 <= given.prompts <= len(prompts.TEXTS):
        parser.error(f"--new-tokens must be at least 1, --prompts 1 to {len(prompts.TEXTS)}")
    return given


def main() -> None:
    given = arguments()
    figures = work(given) if given.worker else launch(given)
    print(json.dumps(figures))
    if given.json and not given.worker:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
