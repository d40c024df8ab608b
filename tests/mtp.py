"""Tiny checkpoints with a layer for multi-token prediction, written as such are published, and what that layer computes, in plain
torch on whole texts."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tests.quantised import LEFT, as_published, compressed, settings
from tests.tiny import byte_tokenizer, stock
from understudy.heads import Places
from understudy.heads.files import built
from understudy.heads.formats.mtp import found
from understudy.heads.source import Bearer
from understudy.sources import layout_of
from understudy.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class PublishedMtp:
    """How a family's checkpoints name the tensors of their MTP layer, and what is peculiar to its decoder layers."""

    # What is changed in the family's config of tests.tiny.
    changes: Mapping[str, Any]
    # Before the names of the decoder layer's tensors.
    layer: str
    # Names of the norms of the embedding and of the hidden state, of the matrix that joins them, and of the last norm.
    norm_e: str
    norm_h: str
    join: str
    norm: str
    # The number of a layer of the same kind in the model.
    like: int
    # Norms of the layer: before and after attention, before and after the feed-forward network.
    norms: tuple[str, str, str, str]
    # Do its norms multiply by 1 + weight? Is its attention gated? Are pairs of its rope neighbours? The window of its attention.
    zero_centred: bool = False
    gated: bool = False
    neighbours: bool = False
    window: int = 0
    # Copies of the model's embedding and output head that the layer brings.
    copies: tuple[str, ...] = ()
    # Is it a mixture of experts? Then transformers' own layer says what it computes. Has each expert tensors of its own?
    mixture: bool = False
    apart: bool = False
    # What is said in its names for parts of transformers' names.
    says: Mapping[str, str] = field(default_factory=dict)
    # Is the norm behind it the model's own, and none of the layer's?
    norm_of_model: bool = False
    # Do further layers read the model's hidden states, and not what the layer before gave?
    reads_model: bool = False


def _together(norms: tuple[str, str, str, str], like: int, changes: Mapping[str, Any], **peculiar: Any) -> PublishedMtp:
    own = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")
    return PublishedMtp(changes, "mtp.layers.0.", *(f"mtp.{name}.weight" for name in own), like=like, norms=norms, **peculiar)


def _numbered(
    layer: str, norms: tuple[str, str, str, str], copies: tuple[str, ...] = (), neighbours: bool = True, **peculiar: Any
) -> PublishedMtp:  # fmt: skip
    own = ("enorm", "hnorm", "eh_proj", "shared_head.norm")
    return PublishedMtp(
        {"num_nextn_predict_layers": 1}, layer, *(f"{layer}{name}.weight" for name in own), like=1, norms=norms,
        neighbours=neighbours, copies=copies, **peculiar,
    )  # fmt: skip


_AROUND = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
_BEFORE = ("input_layernorm", "", "post_attention_layernorm", "")
_AFTER = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
MTP = {
    "qwen3_5_text": _together(_BEFORE, 3, {"mtp_num_hidden_layers": 1}, zero_centred=True, gated=True),
    "qwen3_5": _together(_BEFORE, 3, {"mtp_num_hidden_layers": 1}, zero_centred=True, gated=True),
    "exaone4_5": _together(_AFTER, 0, {}, window=16),
    "glm4": _numbered("model.layers.3.", _AROUND),
    "glm_ocr": _numbered("model.language_model.layers.3.", _AROUND, ("embed_tokens", "shared_head.head")),
    "qwen2": _numbered("model.layers.3.", _BEFORE, neighbours=False),
}
_MELLUM = {
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16, "sliding_window": 12,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"], "num_nextn_predict_layers": 1,
}  # fmt: skip
_OF_MIXTRAL = {".mlp.": ".block_sparse_moe.", ".gate_proj.": ".w1.", ".down_proj.": ".w2.", ".up_proj.": ".w3."}
_TABLES = ("embed_tokens", "shared_head.head")
# The same of layers that are mixtures of experts.
MTP_MIXTURES = {
    "qwen3_next": _together(_BEFORE, 3, {}, zero_centred=True, mixture=True, apart=True),
    "qwen3_5_moe_text": _together(_BEFORE, 3, {"mtp_num_hidden_layers": 1}, zero_centred=True, mixture=True),
    "qwen3_5_moe": _together(_BEFORE, 3, {"mtp_num_hidden_layers": 1}, zero_centred=True, mixture=True),
    "deepseek_v3": _numbered("model.layers.3.", _BEFORE, _TABLES, mixture=True, apart=True),
    "glm4_moe": _numbered("model.layers.3.", _BEFORE, _TABLES, mixture=True, apart=True),
    "glm4_moe_lite": _numbered("model.layers.3.", _BEFORE, mixture=True, apart=True),
    "minimax_m2": _numbered("model.layers.3.", _BEFORE, mixture=True, apart=True, says=_OF_MIXTRAL),
    # its layers of either kind have ropes of their own, and its config says of which kind this one is
    "mellum": _together(_BEFORE, 1, _MELLUM, mixture=True, apart=True, window=12),
}
_ERNIE = ("model.mtp_emb_norm.0.weight", "model.mtp_hidden_norm.0.weight", "model.mtp_linear_proj.0.weight", "model.norm.weight")
MTP_MIXTURES["ernie4_5_moe"] = PublishedMtp(
    {"num_nextn_predict_layers": 1}, "model.mtp_block.0.", *_ERNIE, like=0, norms=_BEFORE, mixture=True, apart=True,
    norm_of_model=True,
)  # fmt: skip
_MIMO = "model.mtp.layers.0."
MTP_MIXTURES["mimo_v2_flash"] = PublishedMtp(
    {}, _MIMO, *(f"{_MIMO}{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "final_layernorm")), like=0, norms=_BEFORE,
    mixture=True, apart=True, window=12, says={"post_attention_layernorm": "pre_mlp_layernorm"}, reads_model=True,
)  # fmt: skip
MTP |= MTP_MIXTURES
# Families of which checkpoints with several layers are tested, and how many they have.
SEVERAL = {"glm4": 3, "deepseek_v3": 2, "qwen3_next": 2, "mimo_v2_flash": 3}


def mtp_tensors(
    family: str, dtype: torch.dtype, model: Any, apart: bool | None = None, seed: int = 0
) -> dict[str, Tensor]:  # fmt: skip
    """Random tensors of the MTP layer of a checkpoint of `family`, by their published names; `model`: its stock model. `apart`:
    whether each expert has tensors of its own, if not as the family has it."""
    form = MTP[family]
    like = stock(family, seed=7 + seed, **form.changes).get_decoder()
    size = model.get_decoder().config.hidden_size
    torch.manual_seed(11 + seed)
    tensors = {f"{form.layer}{name}": tensor.detach() for name, tensor in like.layers[form.like].state_dict().items()}
    centre = 0.0 if form.zero_centred else 1.0
    tensors |= {name: torch.full((size,), centre) for name in (form.norm_e, form.norm_h, form.norm)}
    tensors[form.join] = torch.randn(size, 2 * size) * 0.15
    for name, tensor in tensors.items():
        if tensor.dim() == 1 and "bias" not in name:
            tensors[name] = tensor + torch.randn_like(tensor) * 0.2
    if form.norm_of_model:
        del tensors[form.norm]
    tables = {"embed_tokens": model.get_input_embeddings(), "shared_head.head": model.get_output_embeddings()}
    tensors |= {f"{form.layer}{name}.weight": tables[name].weight.detach() for name in form.copies}
    tensors = _apart(tensors) if (form.apart if apart is None else apart) else tensors
    return {_said(name, form.says): tensor.to(dtype).contiguous().clone() for name, tensor in tensors.items()}


def several_tensors(family: str, dtype: torch.dtype, model: Any) -> dict[str, Tensor]:
    """The same of as many layers as SEVERAL says."""
    made: dict[str, Tensor] = {}
    for layer in reversed(range(SEVERAL[family])):
        own = mtp_tensors(family, dtype, model, seed=5 * layer)
        made |= {name.replace(MTP[family].layer, prefix_of(family, layer), 1): tensor for name, tensor in own.items()}
    return made


def prefix_of(family: str, layer: int) -> str:
    """What stands before the names of layer number `layer`."""
    before, _, number = MTP[family].layer.removesuffix(".").rpartition(".")
    return f"{before}.{int(number) + layer}."


def _said(name: str, says: Mapping[str, str]) -> str:
    for theirs, own in says.items():
        name = name.replace(theirs, own)
    return name


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, but of those of all experts one for each expert, and two where its gate is one of them."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, found, kind = name.partition("experts.gate_up_proj" if name.endswith("gate_up_proj") else "experts.down_proj")
        if not found or kind:
            made[name] = tensor
            continue
        for expert, own in enumerate(tensor):
            parts = {"gate_proj": own[: len(own) // 2], "up_proj": own[len(own) // 2 :]}
            parts = parts if "gate" in found else {"down_proj": own}
            made |= {f"{before}experts.{expert}.{part}.weight": one for part, one in parts.items()}
    return made


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of a decoder layer, those of each expert put together."""
    made = {name: tensor for name, tensor in tensors.items() if not re.search(r"experts\.\d+\.", name)}
    if len(made) == len(tensors):
        return made
    one = next(name for name in tensors if name.endswith("experts.0.down_proj.weight")).partition("0.down_proj")[0]
    count = len(tensors) - len(made)
    parts = {kind: [tensors[f"{one}{n}.{kind}_proj.weight"] for n in range(count // 3)] for kind in ("gate", "up", "down")}
    both = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
    return {**made, f"{one}gate_up_proj": torch.stack(both), f"{one}down_proj": torch.stack(parts["down"])}


def publish_mtp(
    directory: Path, family: str, dtype: torch.dtype, tensors: Mapping[str, Tensor] | None = None, **changes: Any
) -> Any:
    """Write a checkpoint of `family` with an MTP layer, `tensors` or random ones, in a file of its own. Returns the stock model."""
    model = stock(family, dtype, **{**MTP[family].changes, **changes})
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    more = mtp_tensors(family, dtype, model) if tensors is None else dict(tensors)
    save_file(more, directory / "model-mtp.safetensors", {"format": "pt"})
    names = dict.fromkeys(load_file(directory / "model.safetensors"), "model.safetensors")
    index = {"metadata": {}, "weight_map": names | dict.fromkeys(more, "model-mtp.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def quantise_mtp(directory: Path, file: str, form: str) -> None:
    """Give the Linears in a `file` of the checkpoint in `directory` the `form` "fp8" (in blocks), "channels" (FP8, one scale a row)
    or "int4" or "asymmetric" of compressed-tensors, or "awq". What joins hidden states and embeddings stays as it is."""
    made: dict[str, Tensor] = {}
    left = *LEFT, "head", "eh_proj", ".fc."
    for name, tensor in load_file(directory / file).items():
        linear = name.endswith(".weight") and tensor.dim() == 2 and not any(word in name for word in left)
        made |= as_published(name, tensor, form) if linear else {name: tensor}
    save_file(made, directory / file, {"format": "pt"})
    place = directory / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    index["weight_map"] = {name: where for name, where in index["weight_map"].items() if where != file} | dict.fromkeys(made, file)
    place.write_text(json.dumps(index))
    config = json.loads((directory / "config.json").read_text())
    if form == "awq":
        config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    else:
        how = settings("fp8", (8, 8)) if form == "fp8" else compressed("fp8" if form == "channels" else form)
        config["quantization_config"] = how
    (directory / "config.json").write_text(json.dumps(config))


def fit_mtp(directory: Path, model: Any, texts: list[list[int]], steps: int = 60) -> None:
    """Fit the MTP layer of the checkpoint in `directory`, whose stock model is `model`, to greedy `texts` of one length, so that it
    guesses them. Only that layer's file changes."""
    checkpoint = Checkpoint.open(directory)
    layout = layout_of(checkpoint, directory.parent / "known")
    source = found(Bearer.foretold(checkpoint.name, model.config, checkpoint.tensors, layout))
    assert source is not None
    published = load_file(directory / "model-mtp.safetensors")
    head = built(source.config, "meta")
    shapes = {own: tensor.shape for own, tensor in head.state_dict().items()}
    there = published | load_file(directory / "model.safetensors")
    whole = {own: torch.cat([there[name].float() for name in names]) for own, names in source.tensors.items()}
    head.load_state_dict({own: tensor.view(shapes[own]) for own, tensor in whole.items()}, assign=True)
    for own, parameter in head.named_parameters():
        parameter.requires_grad_(source.tensors[own][0] in published)
    model, ids = model.float(), torch.tensor(texts)
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-2, None]
        embedded = model.get_input_embeddings()(ids)[:, 1:-1]
    count = ids.shape[1] - 2
    places = Places(torch.arange(count)[None].expand(len(ids), -1), torch.ones(count, count, dtype=torch.bool).tril())
    optimizer = torch.optim.Adam([each for each in head.parameters() if each.requires_grad], 4e-3)
    output = model.get_output_embeddings().weight.detach()
    for _ in range(steps):
        _loss(head, (hidden, embedded, places), (ids, output)).backward()
        optimizer.step()
        optimizer.zero_grad()
    fitted: dict[str, Tensor] = {}
    for own, tensor in head.state_dict().items():
        names = source.tensors[own]
        if names[0] not in published:
            continue
        rows = tensor.detach() if len(names) == 1 else tensor.detach().flatten(0, 1)
        fitted |= dict(zip(names, rows.split([len(published[name]) for name in names]), strict=True))
    fitted = {name: fitted.get(name, tensor).to(tensor.dtype).contiguous() for name, tensor in published.items()}
    save_file(fitted, directory / "model-mtp.safetensors", {"format": "pt"})


def _loss(head: Any, given: tuple[Tensor, Tensor, Places], ends: tuple[Tensor, Tensor]) -> Tensor:
    """How little each layer says what follows texts. `given`: hidden states [b, n, 1, hidden size], embeddings of the tokens after
    them, and their places; `ends`: tokens [b, n + 2], and the output head."""
    (hidden, embedded, places), (ids, output) = given, ends
    read, losses = hidden[:, :, 0], []
    for layer in range(head.config.layers):
        own = places.of_layer(0, torch.arange(read.shape[1]))
        out = head._given(layer, read, embedded[:, layer:], own)
        losses.append(F.cross_entropy((out @ output.T).flatten(0, 1), ids[:, 2 + layer :].flatten()))
        read = (out if head._chained else read)[:, :-1]
    return torch.stack(losses).sum()


def states(family: str, config: Any, tensors: Mapping[str, Tensor], hidden: Tensor, embedded: Tensor) -> Tensor:
    """The layer's states [n, hidden size] of a whole text, in float32.

    hidden [n, hidden size]: the model's last hidden states at the tokens before; embedded [n, hidden size]: of the tokens."""
    form = MTP[family]
    text = config.get_text_config(decoder=True)
    back = {own: theirs for theirs, own in form.says.items()}
    weights = {_said(name, back): tensor.float() for name, tensor in tensors.items()}
    inner = {name.removeprefix(form.layer): w for name, w in weights.items() if name.startswith(form.layer)}

    def norm(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        scaled = x * (x.pow(2).mean(-1, keepdim=True) + text.rms_norm_eps).rsqrt()
        return scaled * (1 + weight if form.zero_centred else weight)

    if form.mixture:
        x = torch.cat((norm(embedded, weights[form.norm_e]), norm(hidden, weights[form.norm_h])), -1) @ weights[form.join].T
        return norm(_stock_layer(family, _joined(inner), x), weights[form.norm])
    before, after, before_mlp, after_mlp = (inner.get(f"{name}.weight") for name in form.norms)
    x = torch.cat((norm(embedded, weights[form.norm_e]), norm(hidden, weights[form.norm_h])), -1) @ weights[form.join].T
    x = x + norm(_attended(form, text, inner, norm(x, before), norm), after)
    return norm(x + norm(_fed_forward(inner, norm(x, before_mlp)), after_mlp), weights[form.norm])


def states_of_several(
    family: str, config: Any, tensors: Mapping[str, Tensor], hidden: Tensor, embedded: Tensor, path: Tensor
) -> Tensor:  # fmt: skip
    """What each of several layers gives [1 + m, hidden size] after the last token of a text, and after m tokens of a `path` below,
    in float32; `hidden` and `embedded` as for `states`."""
    text, given, read = torch.cat((embedded, path)), [], hidden
    prefixes = tuple(prefix_of(family, layer) for layer in range(SEVERAL[family]))
    common = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
    for layer, prefix in enumerate(prefixes[: 1 + len(path)]):
        inside = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        own = {MTP[family].layer + name.removeprefix(prefix): tensor for name, tensor in inside.items()}
        out = states(family, config, {**common, **own}, read, text[layer : layer + len(hidden)])
        given.append(out[-1])
        read = hidden if MTP[family].reads_model else out
    return torch.stack(given)


@cache
def _stock_model(family: str) -> Any:
    """A stock headless model of `family` that computes in the plainest way."""
    decoder = stock(family, seed=7, **MTP[family].changes).get_decoder()
    decoder.config._attn_implementation = decoder.config._experts_implementation = "eager"
    return decoder


@torch.no_grad()
def _stock_layer(family: str, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the decoder layer of transformers gives for the text x [n, hidden size]."""
    decoder = _stock_model(family)
    layer = decoder.layers[MTP[family].like]
    names = layer.state_dict().keys()
    layer.load_state_dict({name: weights[name] for name in names})
    places = torch.arange(len(x))[None]
    ago = places[0][:, None] - places
    seen = (ago >= 0) & (ago < (MTP[family].window or len(x)))
    mask = torch.where(seen, 0.0, float("-inf"))[None, None]
    own = {"layer_type": "sliding_attention"} if family in ("mellum", "mimo_v2_flash") else {}
    rope = decoder.rotary_emb(x[None], places, **own)
    out: Tensor = layer(x[None], attention_mask=mask, position_ids=places, position_embeddings=rope)
    return out[0]


def _fed_forward(inner: Mapping[str, Tensor], x: Tensor) -> Tensor:
    if "mlp.gate_up_proj.weight" in inner:
        gate, up = (x @ inner["mlp.gate_up_proj.weight"].T).chunk(2, -1)
    else:
        gate, up = x @ inner["mlp.gate_proj.weight"].T, x @ inner["mlp.up_proj.weight"].T
    return (F.silu(gate) * up) @ inner["mlp.down_proj.weight"].T


def _attended(form: PublishedMtp, text: Any, inner: Mapping[str, Tensor], x: Tensor, norm: Any) -> Tensor:
    count, heads, kv_heads = len(x), text.num_attention_heads, text.num_key_value_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads

    def part(name: str, wide: int) -> Tensor:
        y = x @ inner[f"self_attn.{name}_proj.weight"].T + inner.get(f"self_attn.{name}_proj.bias", 0.0)
        return y.view(count, -1, wide)

    query, key, value = part("q", size * 2 if form.gated else size), part("k", size), part("v", size)
    query, gate = query.split(size, -1) if form.gated else (query, None)
    query, key = norm(query, inner.get("self_attn.q_norm.weight")), norm(key, inner.get("self_attn.k_norm.weight"))
    query, key = (_turned(each, text.rope_parameters, form.neighbours) for each in (query, key))
    key, value = (each.repeat_interleave(heads // kv_heads, 1) for each in (key, value))
    scores = torch.einsum("ihs,jhs->hij", query, key) * size**-0.5
    ago = torch.arange(count)[:, None] - torch.arange(count)
    seen = (ago >= 0) & (ago < (form.window or count))
    mixed = torch.einsum("hij,jhs->ihs", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)
    mixed = mixed if gate is None else mixed * gate.sigmoid()
    return mixed.reshape(count, -1) @ inner["self_attn.o_proj.weight"].T


def _turned(x: Tensor, rope: Mapping[str, Any], neighbours: bool) -> Tensor:
    """x [n, heads, size], rotated by positions 0 .. n - 1 in the first part of each head."""
    turned = int(x.shape[-1] * rope.get("partial_rotary_factor", 1.0))
    frequencies = rope["rope_theta"] ** -(torch.arange(0, turned, 2).float() / turned)
    angle = torch.arange(len(x)).float()[:, None, None] * frequencies
    first = x[..., 0:turned:2] if neighbours else x[..., : turned // 2]
    second = x[..., 1:turned:2] if neighbours else x[..., turned // 2 : turned]
    pair = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
    mixed = torch.stack(pair, -1).flatten(-2) if neighbours else torch.cat(pair, -1)
    return torch.cat((mixed, x[..., turned:]), -1)
