"""The exact half of gpu_check: each kernel against the CPU's, transfers under a slow reader, plain and drafted text.

Every check returns what was wrong; nothing if all is well."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, starmap
from pathlib import Path
from typing import Any

import torch

from understudy import LLM, SamplingParams
from understudy.codecs import Encoded, codec
from understudy.devices import open_device
from understudy.kernels import attention as by_cpu
from understudy.kernels.attention import AttentionSpec
from understudy.kernels.pack import block
from understudy.layer_states import FullState, LayerShape
from understudy.quantizers import quantizer
from understudy.sampling import draws, joined, perturb
from understudy.tiers import Extent, ReadSettings, Streaming
from understudy.tiers.route import FixedRoute
from understudy.tree import Nodes, TokenTree

MIB = 1 << 20
# What is unlike in tiny models: sizes that have codes; and how many of their blocks run as stock ones on a GPU (0 of the others).
SIZES: dict[str, dict[str, Any]] = {
    "phi3": {"intermediate_size": 256},
    "gpt_oss": {"num_hidden_layers": 3},
    "gemma4_text": {"num_hidden_layers": 4},
    "gemma4-e": {"num_hidden_layers": 8, "hidden_size_per_layer_input": 32},
    "qwen3_5_text": {"num_hidden_layers": 4, "linear_value_head_dim": 32},
    "kimi_linear": {"num_hidden_layers": 3},
    "bamba": {"num_hidden_layers": 3},
    "youtu": {"kv_lora_rank": 64, "q_lora_rank": 64, "v_head_dim": 16},
}
# Blocks that run as they are in levels: attention with a gate, and recurrent layers of other kinds than the gated delta rule.
STOCK = {"qwen3_5_text": 1, "kimi_linear": 3, "bamba": 3}
# Groups of texts of the built-in model that are compared, where there is time.
MOST_WAVES = 4


@dataclass(frozen=True)
class Checked:
    """A check: what was compared, what was wrong (empty: nothing), and the seconds it took."""

    what: str
    trouble: str
    seconds: float


def exactness(device_name: str, seconds: float, group: str) -> Iterator[Checked]:
    """The checks of `group`, one of `gpu_work.EXACT_GROUPS`; texts of the built-in model are as many as there is time for. Most of
    the time goes to compiling kernels, one after another, so groups are for processes side by side."""
    torch.manual_seed(0)
    began = time.perf_counter()
    small = device_name == "fake"
    if group == "kernels":
        yield from starmap(timed, of_kernels(device_name, small))
    elif group == "demo":
        compared = Compared()
        texts = timed("", lambda: demo(device_name, began + seconds - time.perf_counter(), compared))
        model = "tiny" if small else "demo"
        yield replace(texts, what=f"{model} model: {compared.texts} drafted texts, {compared.tokens} tokens, are the plain ones")
    else:
        # The interpreter takes seconds to decode what the kernels' own check has decoded already.
        stored = "raw" if small else "delta"
        yield timed(f"tiny {group}: drafted text is plain text", partial(tiny, device_name, group, stored))
        if group == "llama":
            yield timed("graph against eager: same tree, same text", lambda: graphs(device_name))
            yield timed("drafts beside passes: plain text", lambda: ahead(device_name))


def of_kernels(device_name: str, small: bool) -> list[tuple[str, Callable[[], str]]]:
    """Each kernel and the ring by themselves."""
    device = open_device(device_name)
    return [
        ("weights through the ring, slow reader", lambda: transfers(device, small)),
        ("attention: error, and bits in a tree and alone", lambda: attention(device, small)),
        ("tokens after many nodes and after each alone", lambda: choices(device, small)),
        ("4-bit products against float64", lambda: products(device, small)),
        ("residuals decoded to the CPU's bits", lambda: residuals(device, small)),
    ]


def timed(what: str, check: Callable[[], str]) -> Checked:
    began = time.perf_counter()
    trouble = check()
    return Checked(what, trouble, time.perf_counter() - began)


def residuals(device: Any, small: bool) -> str:
    from tests.codecs.test_delta import TENSORS

    delta, maker = codec("delta"), quantizer("int4")
    side = 96 if small else 2048
    weights = {**TENSORS, "usual": (torch.distributions.StudentT(4.0).sample((side, side)) * 0.02).to(torch.bfloat16)}
    wrong = []
    for name, weight in weights.items():
        blocks, substitute = block(weight), maker.quantize(weight)
        data = delta.encode(blocks, substitute).to(device.where)
        there = {key: tensor.to(device.where) for key, tensor in substitute.items()}
        out = torch.full_like(blocks, torch.nan, device=device.where)
        found = device.decode(delta, Encoded(data, *blocks.shape[:2], weight.dtype, there), out).cpu()
        differ = int((found.view(torch.int16) != blocks.view(torch.int16)).sum())
        wrong += [f"{name}: {differ} of {blocks.numel()}"] if differ else []
    return "; ".join([*wrong, *together(device, blocks, substitute)])


def together(device: Any, blocks: torch.Tensor, substitute: Any) -> list[str]:
    """Parts of different sizes with gaps between them, decoded in one launch."""
    delta, maker, cuts = codec("delta"), quantizer("int4"), [0, 1, len(blocks) // 2 + 1, len(blocks)]
    pieces, starts, counts = [], [], []
    for first, last in pairwise(dict.fromkeys(cuts)):
        pieces += [torch.zeros(192, dtype=torch.uint8)]
        starts.append(sum(map(len, pieces)))
        counts.append(last - first)
        pieces.append(delta.encode(blocks[first:last], maker.cut(substitute, first, last - first)))
    there = {key: tensor.to(device.where) for key, tensor in substitute.items()}
    out, places = torch.full_like(blocks, torch.nan, device=device.where), delta.places(starts, counts, device.where)
    data = torch.cat(pieces).to(device.where)
    found = device.decode(delta, Encoded(data, *blocks.shape[:2], torch.bfloat16, there, places), out).cpu()
    differ = int((found.view(torch.int16) != blocks.view(torch.int16)).sum())
    return [f"parts together: {differ} of {blocks.numel()}"] if differ else []


def choices(device: Any, small: bool) -> str:
    """Tokens after many nodes are those after each alone, and their scores are the best."""
    chooser, count = device.token_chooser(), 4 if small else 70
    logits = torch.randn(count, 300 if small else 50_000).to(torch.bfloat16)
    keeping: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_k": 40, "min_p": 0.02}]
    params = [SamplingParams(temperature=0.6 * (row % 2), seed=row // 2, **keeping[row % 3]) for row in range(count)]
    positions = torch.arange(count) // 3
    drawn = [draws(params[row], positions[row : row + 1]) for row in range(count)]
    there = logits.to(device.where)
    found = chooser(there, joined(drawn))
    alone = torch.cat([chooser(there[row : row + 1], drawn[row]) for row in range(count)])
    scores = torch.cat([perturb(logits[row : row + 1], params[row], positions[row : row + 1]) for row in range(count)])
    behind = (scores.amax(1) - scores.gather(1, found[:, None])[:, 0]) / scores.amax(1)
    trouble = [] if torch.equal(found, alone) else [f"{int((found != alone).sum())} of {count} differ alone"]
    return "; ".join(trouble + ([] if behind.max() < 1e-5 else [f"one is {float(behind.max()):.1e} behind the best"]))


def products(device: Any, small: bool) -> str:
    shape, maker = (96, 128) if small else (3584, 3584), quantizer("int4")
    tensors = maker.quantize(torch.randn(shape) * 0.05)
    exact = maker.dequantize(tensors, shape).double()
    there = {key: tensor.to(device.where) for key, tensor in tensors.items()}
    multiply, worst = device.draft_product(maker, there, shape, torch.bfloat16), 0.0
    for rows in (1, 6, 16, 33, 64):
        x = torch.randn(rows, shape[1]).to(torch.bfloat16)
        wanted = x.double() @ exact.T
        found = multiply(x.to(device.where)).cpu().double()
        worst = max(worst, float((found - wanted).norm() / wanted.norm()))
    return "" if worst < 4e-3 else f"relative error {worst:.1e}"


def attention(device: Any, small: bool) -> str:
    parents = [-1, *(max(0, i - 1 - i % 3) for i in range(1, 12 if small else 90))]
    tree, length = TokenTree.of([0] * len(parents), parents), 70 if small else 700
    trouble = []
    for dtype, heads, dim, window, cap in ((torch.bfloat16, 7, 128, 0, 0.0), (torch.float32, 2, 64, 60, 20.0)):
        state = FullState(LayerShape(2, dim, dim), 2, 1024, dtype, "cpu")
        state.keys.normal_()
        state.values.normal_()
        nodes, query = Nodes.of(tree, 1, length), torch.randn(len(tree), 2 * heads, dim).to(dtype)
        spec = AttentionSpec(dim**-0.5, window, cap)
        wanted = by_cpu.attend(query, state.keys, state.values, nodes, spec)
        slabs = state.keys.to(device.where), state.values.to(device.where)
        found = device.attend(query.to(device.where), *slabs, nodes.to(device.where), spec).cpu()
        error = float((found.float() - wanted.float()).norm() / wanted.float().norm())
        trouble += (
            [f"{dtype}: relative error {error:.1e}"] if error > (8e-3 if dtype == torch.bfloat16 else 1e-5) else []
        )
        for node in range(0, len(tree), 7):
            part = slice(node, node + 1)
            alone = device.attend(query[part].to(device.where), *slabs, nodes[part].to(device.where), spec).cpu()
            trouble += [] if torch.equal(alone, found[part]) else [f"{dtype}: node {node} differs alone"]
    return "; ".join(trouble)


def transfers(device: Any, small: bool) -> str:
    part, count = (4096, 6) if small else (8 * MIB, 24)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.bin"
        file.write_bytes(os.urandom(part * count))
        content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).view(count, part).to(device.where)
        extents = [Extent(file, i * part, part) for i in range(count)]
        # every other part comes from disk each time
        held = range(0, count, 2)
        read = ReadSettings(block=4 * MIB, threads=2)
        streaming = Streaming(extents, FixedRoute(range(count)), read, lambda index, data: None, held)
        ring, wrong = device.ring(streaming, 3 * part), 0
        for _ in range(3 * count):
            slot = ring.next()
            if device.where == "cuda":
                torch.cuda._sleep(1_000_000)
            wrong += (slot.data != content[slot.index]).any().int()
            slot.release()
        device.finish()
        wrong, note = int(wrong), ring.tier.note
        ring.close()
    return "; ".join(filter(None, [f"{wrong} parts were wrong" if wrong else "", note]))


def tiny(device_name: str, family: str, codec: str) -> str:
    """Plain and drafted text of a tiny random model, greedy and sampled; its blocks must run in fewer steps in levels."""
    from tests.tiny import save

    fake = device_name == "fake"
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1} if fake else {"hidden_size": 256}
    tokens = 3 if fake else 96
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save(model, family, torch.bfloat16, **{**shape, **SIZES.get(family, {})})
        options = {"memory": "1GiB", "resident": "none", "context": 256, "rows": 2, "device": device_name}
        prompts = [[5, 99, 5, 12, 80, 5, 99, 5], [*range(40, 90)] * 3][: 1 if fake else 2]
        asked = [SamplingParams(max_new_tokens=tokens, ignore_eos=True, temperature=t, seed=3) for t in (0.0, 0.8)]
        return flips(model, codec, prompts, asked, options, STOCK.get(family, 0))


@dataclass
class Compared:
    """How much was compared so far."""

    texts: int = 0
    tokens: int = 0


def demo(device_name: str, seconds: float, compared: Compared) -> str:
    """The built-in model (simulated: a tiny one) continues texts, as many together as a tile has rows, greedy and sampled in turn,
    until `seconds` are over or `MOST_WAVES` are done: not one token may differ."""
    import gpu_measure
    from tests.tiny import save
    from understudy.demo import path as demo_model
    from understudy.models.stock.configuration import tokenizer_of

    fake = device_name == "fake"
    began = time.perf_counter()
    tokens, rows, waves = (3, 2, 2) if fake else (192, 32, MOST_WAVES)
    options = {"memory": "2GiB", "resident": "none", "context": 32 + tokens, "rows": rows, "device": device_name, "codec": "raw"}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as models:
        model = Path(folder) / "model" if fake else None
        if model is not None:
            save(model, "llama", torch.bfloat16, hidden_size=64, intermediate_size=96, num_hidden_layers=1)
        text = list(range(200)) if fake else gpu_measure.prompt(tokenizer_of(demo_model()), 32 + 9 * rows * waves)
        plainly, drafting = (models.enter_context(LLM(model, method=by, **options)) for by in ("none", method_of(device_name)))
        for wave in range(waves):
            prompts = [text[9 * i : 9 * i + 32] for i in range(rows * wave, rows * (wave + 1))]
            params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, temperature=0.7 * (wave % 2), seed=wave)
            plain = [done.token_ids for done in plainly.generate(prompts, params)]
            wrong += parted(drafting, prompts, plain, params)
            compared.texts += rows
            compared.tokens += rows * tokens
            taken = time.perf_counter() - began
            if taken + taken / (wave + 1) > seconds:
                break
    return said(wrong, compared.texts)


def flips(
    model: Path | None, codec: str, prompts: list[list[int]], asked: list[SamplingParams], options: dict[str, Any], stock: int
) -> str:
    """Where drafted texts are not the plain ones, and where more than `stock` blocks run as they are."""
    wrong: list[str] = []
    with LLM(model, method="none", codec="raw", **options) as llm:
        plain = [[c.token_ids for c in llm.generate(prompts, params)] for params in asked]
    with LLM(model, codec=codec, method=method_of(options["device"]), **options) as llm:
        for params, texts in zip(asked, plain, strict=True):
            wrong += parted(llm, prompts, texts, params)
        fused, layers = llm.model.fused, llm.model.config.num_hidden_layers
    slow = [] if fused.blocks + fused.attentions + stock >= layers else [f"{fused} of {layers} blocks run in fewer steps"]
    return "; ".join(filter(None, [said(wrong, len(asked) * len(prompts)), *slow]))


def parted(llm: Any, prompts: list[list[int]], plain: list[list[int]], params: SamplingParams) -> list[str]:
    """Where the texts that `llm` drafts are not the plain ones."""
    drafted = [done.token_ids for done in llm.generate(prompts, params)]
    return [
        flip(llm, prompt, text, other) for prompt, text, other in zip(prompts, plain, drafted, strict=True) if text != other
    ]


def method_of(device_name: str) -> str:
    """Who drafts: what is usual; on a simulated device, where a level takes seconds, small trees."""
    return "substitute:width=2,depth=2" if device_name == "fake" else "substitute"


def said(wrong: list[str], texts: int) -> str:
    return "; ".join([f"{len(wrong)} of {texts} texts", *wrong[:4]]) if wrong else ""


def graphs(device_name: str) -> str:
    """The same requests with draft levels as graphs, and op by op; trees of one forced shape, and the texts."""
    from tests.tiny import save

    fake, found, trouble = device_name == "fake", [], []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1} if fake else {"hidden_size": 256}
        save(model, "llama", torch.bfloat16, **shape)
        options = {"memory": "2GiB", "resident": "none", "context": 256, "rows": 2, "device": device_name, "codec": "raw"}
        method = "substitute:width=2,depth=3" if fake else "substitute:width=6,depth=8"
        params = [SamplingParams(max_new_tokens=4 if fake else 64, ignore_eos=True, temperature=t, seed=3) for t in (0.0, 0.8)]
        for recording in (True, False):
            with LLM(model, method=method, **options) as llm:
                drafter, trees = llm.engine.drafter, []
                drafter.search.recording &= recording
                draft = drafter.draft

                def noting(sequences: Any, draft: Any = draft, trees: Any = trees) -> Any:
                    grown = draft(sequences)
                    trees.extend((tree.tokens.tolist(), tree.parents.tolist()) for tree in grown)
                    return grown

                drafter.draft = noting
                texts = [llm.generate([[5, 99, 5, 12, 80, 5, 99, 5]], p)[0].token_ids for p in params]
                replayed = drafter.search.replayed
                found.append((trees, texts))
                if recording and not (drafter.search.recording and replayed):
                    trouble.append("; ".join(llm.model.plan.notes) or "no level was a graph")
    same = [one == other for one, other in zip(*found, strict=True)]
    return "; ".join(trouble + [f"{what} differ" for what, alike in zip(("trees", "texts"), same, strict=True) if not alike])


def ahead(device_name: str) -> str:
    """Texts with a draft ahead of every pass, which must have been made."""
    from tests.tiny import save

    fake, levels = device_name == "fake", 0
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1} if fake else {"hidden_size": 256}
        save(model, "llama", torch.bfloat16, **shape)
        options = {"memory": "2GiB", "resident": "none", "context": 512, "rows": 1, "device": device_name, "codec": "raw"}
        params = [SamplingParams(max_new_tokens=8 if fake else 128, ignore_eos=True, temperature=t, seed=3) for t in (0.0, 0.8)]
        prompts, wrong = [[5, 99, 5, 12, 80, 5, 99, 5]], []
        with LLM(model, method="none", **options) as llm:
            plain = [[done.token_ids for done in llm.generate(prompts, each)] for each in params]
        with LLM(model, method="substitute:ahead=on", **options) as llm:
            for each, texts in zip(params, plain, strict=True):
                done = llm.generate(prompts, each)
                levels += done[0].stats.ahead_levels
                if [completion.token_ids for completion in done] != texts:
                    wrong.append(f"at T={each.temperature} the text is another")
    return "; ".join(wrong if levels else [*wrong, "no level was run beside a pass"])


def flip(llm: Any, prompt: list[int], plain: list[int], drafted: list[int]) -> str:
    """Where two texts part, and by how much the exact model preferred its first choice to its second there."""
    at = next(
        (i for i, (a, b) in enumerate(zip(plain, drafted, strict=False)) if a != b), min(len(plain), len(drafted))
    )
    llm.model.cache.rewind(0, 0)
    llm.engine.kept.clear()
    chain = Nodes.of(TokenTree.chain([*prompt, *plain[:at]]), 0, 0)
    with torch.inference_mode():
        logits = llm.model.target(chain, torch.tensor([len(chain) - 1]))
        first, second = logits[0].float().topk(2).values.tolist()
    return f"token {at} differs ({plain[at : at + 1]}, drafted {drafted[at : at + 1]}); margin {first - second:.3g} of {first:.3g}"
