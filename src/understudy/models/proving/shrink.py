"""A small copy of a model's config: every switch as it is, a few layers of each kind, few heads, a short vocabulary.

The size of a head stays, so that ropes, their tables and attention scales stay what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..stock.layer_shapes import layers_read
from ..stock.wrapper import is_wrapper, switches, text_config, with_text
from .shrink_states import narrow_states
from .shrink_tables import narrow_tables

VOCABULARY = 211
# Tokens of it that a table beside the embedding lacks where it lacked some before.
LACKING = 16
MOST_POSITIONS = 256
WINDOW = 6
ORIGINAL_POSITIONS = 16
SOFTCAP = 2.0
INNER = 240
# Heads of an index at least: with few, many tokens have a score of nought, and transformers takes any of them.
INDEX_HEADS = 32
# Blocks of tokens that an index chooses, and tokens of a block.
# Tokens of a block that is compressed to one key at most.
COMPRESSED = 6
INDEX_BLOCKS = {"index_topk_blocks": 2, "index_block_size": 3}
MOST_KINDS = 8

# How many experts a layer has, and how many of them a token goes to, under the names that configs have for it.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN_EXPERTS = ("num_experts_per_tok", "top_k", "moe_top_k", "moe_k", "moe_topk", "num_selected_experts")
# Experts beside those, which shrink as they do.
_FURTHER_EXPERTS = ("zero_expert_num",)
# Experts of a copy, for each that a token goes to, at least.
SPARE = 4
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "kv_n_heads")
# Values that name or describe a model and never change what it computes.
DESCRIBING = (
    "transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype", "id2label", "label2id", "num_labels",
    "task_specific_params", "problem_type", "auto_map", "use_cache",
)  # fmt: skip
_FEED_FORWARD = re.compile(r"intermediate|ffn|inner|mlp_dim|d_ff|moe_hidden")
_WINDOWED = re.compile(r"window(_size)?$|attention_chunk_size$|floor_scale$|n_floor$|index_topk$|rel_extent$")
_REPEATED = re.compile(r"pattern|interval|every|period|freq")
# Lists of the layers that are of one kind.
_CHOSEN = re.compile(r"_(indices|idxs)$|^moe_layers$|layer_ids$")
# Those of them that count layers from one.
_FROM_ONE = re.compile(r"^ple_layer_ids$")
# Ropes whose tables depend on these positions, or that change with the length of the text.
_KEEP_POSITIONS = ("longrope", "llama3", "dynamic")


def values_of(config: Any) -> dict[str, Any]:
    """The values of `config` by their own names, without what only describes the model."""
    return {key: value for key, value in switches(config).items() if key not in DESCRIBING}


def shrunk(config: Any, few_layers: bool = True, narrow: bool = True) -> Any:
    """A small copy of a transformers `config`. Raises what its class raises for values that do not fit each other: then one with
    all its layers, or as wide as it is, may do. A wrapper stays as it is around a small text model."""
    if is_wrapper(config):
        return with_text(config, shrunk(text_config(config), few_layers, narrow))
    values = values_of(config)
    values.pop("model_type", None)
    names = dict(config.attribute_map)
    vocabulary = names.get("vocab_size", "vocab_size")
    _cut_vocabulary(values, vocabulary)
    _shorten(values, names)
    if few_layers:
        _cut_layers(values, names.get("num_hidden_layers", "num_hidden_layers"), layers_read(config))
    for part in (values, *_parts(values)):
        _cut_experts(part)
    narrow_tables(values)
    if narrow:
        _narrow(values, names)
        narrow_states(values, names.get("hidden_size", "hidden_size"))
    return type(config)(**values)


def _cut_vocabulary(values: dict[str, Any], name: str) -> None:
    """A short vocabulary. Its last token stays the last one; a pad token outside is left out, as no embedding takes it."""
    old = values[name]
    new = min(old, VOCABULARY)

    def moved(token: Any) -> Any:
        if isinstance(token, list):
            return [moved(each) for each in token]
        if not isinstance(token, int) or not -old <= token < old:
            return token
        # A negative one counts from the end, as an embedding takes it.
        place = token % old
        return new - 1 if place == old - 1 else place % (new - 1)

    pad = values.get("pad_token_id")
    if isinstance(pad, int) and not -old <= pad < old:
        values["pad_token_id"] = None
    values |= {key: moved(value) for key, value in values.items() if key.endswith("token_id")}
    # Tables of further embeddings have as many rows, or lack some of the last.
    tables = {key: value for key, value in values.items() if key.startswith("vocab_size") and _positive(value)}
    values |= {key: min(value, new if value >= old else new - LACKING) for key, value in tables.items()}
    values[name] = new


def _shorten(values: dict[str, Any], names: dict[str, str]) -> None:
    """Windows and position limits of a few tokens, so that a short text goes beyond them; caps that a small score reaches."""
    ropes = [rope for rope in _ropes(values) if rope.get("rope_type", rope.get("type", "default")) != "default"]
    limit = names.get("max_position_embeddings", "max_position_embeddings")
    if not ropes and _positive(values.get(limit)):
        values[limit] = min(values[limit], MOST_POSITIONS)
    for rope in ropes:
        original = rope.get("original_max_position_embeddings")
        if isinstance(original, int) and original > 0 and rope.get("rope_type", rope.get("type")) not in _KEEP_POSITIONS:
            rope["original_max_position_embeddings"] = min(original, ORIGINAL_POSITIONS)
    for key, value in values.items():
        if _WINDOWED.search(key) and _positive(value):
            values[key] = min(value, WINDOW)
        elif "softcap" in key and isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            values[key] = min(float(value), SOFTCAP)
        elif key == "index_n_heads" and _positive(value) and _positive(values.get("index_topk")):
            values[key] = max(value, INDEX_HEADS)
        elif key == "compress_rates" and value:
            values[key] = {kind: min(rate, COMPRESSED) for kind, rate in value.items()}
        elif key in INDEX_BLOCKS and _positive(value):
            values[key] = min(value, INDEX_BLOCKS[key])


def _ropes(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rope settings in `values`: one, or one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = values.get(name)
        if isinstance(found, dict):
            yield from (part for part in (found, *found.values()) if isinstance(part, dict))


def _cut_layers(values: dict[str, Any], name: str, reads: Sequence[int | None]) -> None:
    """As few layers as hold each kind that the lists with an entry for each layer tell apart, and two at least.

    Layers whose keys others read are a kind, and those that read them (`reads`: each layer's source, None for itself)."""
    count = len(reads)
    chosen = [key for key, value in values.items() if isinstance(value, list) and _CHOSEN.search(key)]
    lists = [key for key, value in values.items() if isinstance(value, list) and len(value) == count and key not in chosen]
    lists = [key for key in lists if not key.endswith("token_id")]
    own = _own_values(values)
    told_apart = [*(values[key] for key in lists)]
    # by list: the number of the first layer
    first = {key: int(_FROM_ONE.search(key) is not None) for key in chosen}
    told_apart += [[i + first[key] in values[key] for i in range(count)] for key in chosen]
    if own:
        told_apart.append([own.get(i) for i in range(count)])
    if any(source is not None for source in reads):
        told_apart.append(["own" if source is None else "read" for source in reads])
        told_apart.append([i in reads for i in range(count)])
    if blocks := values.get("num_mem_blocks"):
        # of layers that share blocks: which block, and whether it was used before
        shares = ["hybrid" in str(kind) for kind in values["layers_block_type"]]
        uses = [sum(shares[:i]) for i in range(count)]
        told_apart.append([(use % blocks, use >= blocks) if own else None for own, use in zip(shares, uses, strict=True)])
    if told_apart:
        kinds = list(zip(*(map(str, told) for told in told_apart), strict=True))
        kept = sorted({kinds.index(kind) for kind in kinds})[:MOST_KINDS]
        kept += [i for i in range(count) if i not in kept][: max(0, 2 - len(kept))]
        kept.sort()
        for key in lists:
            values[key] = [values[key][i] for i in kept]
        for key in chosen:
            values[key] = [place + first[key] for place, i in enumerate(kept) if i + first[key] in values[key]]
        if own:
            values["per_layer_config"] = {place: own[i] for place, i in enumerate(kept) if i in own}
        if values.get("num_kv_shared_layers"):
            values["num_kv_shared_layers"] = sum(reads[i] is not None for i in kept)
        kept_count = len(kept)
    else:
        repeated = [value for key, value in values.items() if _REPEATED.search(key) and _positive(value) and value < MOST_KINDS]
        # kinds of layers that follow each other again and again
        repeated += [len(value) - 1 for key, value in values.items() if key == "block_types" and value]
        kept_count = min(count, max([1, *repeated]) + 1)
    # some classes count a list themselves, or blocks of several layers
    if name in values:
        values[name] = kept_count
    elif _positive(values.get("num_layers")) and count % values["num_layers"] == 0:
        values["num_layers"] = min(values["num_layers"], kept_count)


def _parts(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of parts that some configs have for attention and for networks."""
    found = [part for name, part in values.items() if name.endswith("_config") and isinstance(part, dict)]
    return [part for part in found if all(isinstance(key, str) for key in part)]


def _cut_experts(values: dict[str, Any]) -> None:
    """Half as many experts as long as there are plenty, so that those that are chosen in groups are still in as many groups."""
    chosen = max((values[key] for key in _CHOSEN_EXPERTS if _positive(values.get(key))), default=MOST_KINDS)
    for key in _EXPERTS:
        while _positive(values.get(key)) and values[key] % 2 == 0 and values[key] // 2 >= SPARE * chosen:
            values[key] //= 2
            values |= {further: max(values[further] // 2, 1) for further in _FURTHER_EXPERTS if _positive(values.get(further))}


def _own_values(values: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """By layer: the values that are its own, where layers have some."""
    return {int(layer): own for layer, own in (values.get("per_layer_config") or {}).items()}


def _narrow(values: dict[str, Any], names: dict[str, str]) -> None:
    """Few heads, in the same relation to the heads of keys; the hidden size shrinks with their number."""
    heads_name, hidden_name = (names.get(name, name) for name in ("num_attention_heads", "hidden_size"))
    if heads_name not in values:
        return
    heads, hidden = values[heads_name], values[hidden_name]
    kv_name = next((key for key in KV_HEADS if _positive(values.get(key))), None)
    kv_heads = heads if kv_name is None else values[kv_name]
    few_kv, few = _few_heads(heads, kv_heads)
    own_values = _own_values(values).values()
    if few >= heads:
        return
    for own in own_values:
        if kv_name in own and own.get(heads_name) == own[kv_name]:
            # as many of both, and other ones than most layers have
            own[heads_name] = own[kv_name] = few_kv if own[kv_name] == kv_heads else max(few_kv - 1, 1)
        elif heads_name in own:
            own[heads_name] = _few_own(own[heads_name] // kv_heads, heads // kv_heads, few_kv)
        own |= {key: _least(value) for key, value in own.items() if _FEED_FORWARD.search(key)}
        if kv_name in own and own.get(heads_name) != own[kv_name]:
            own[kv_name] = _few_of(own[kv_name] * few_kv // kv_heads, own.get(heads_name, few))
    narrow = hidden * few // heads
    values[heads_name] = few
    if kv_name is not None:
        values[kv_name] = few_kv
    if _positive(values.get("index_topk_blocks")):
        # each head of keys has one of the index
        values["index_n_heads"] = few_kv
    for part in _parts(values):
        part |= {key: few_kv for key in KV_HEADS if _positive(part.get(key))}
        part |= {key: _least(value) for key, value in part.items() if _FEED_FORWARD.search(key)}
    for key, value in values.items():
        if key == hidden_name or (key in ("word_embed_proj_dim", "embedding_size") and value == hidden):
            values[key] = narrow
        elif _FEED_FORWARD.search(key):
            values[key] = _least(value)


def _few_heads(heads: int, kv_heads: int) -> tuple[int, int]:
    """A small number of heads of keys, and of heads that shares them as before: alone, in twos or in threes."""
    if heads == kv_heads:
        few = 4 if heads & (heads - 1) == 0 else 3
        return few, few
    group = max(heads // kv_heads, 1)
    return min(kv_heads, 2), min(kv_heads, 2) * (group if group < 3 else 2 + group % 2)


def _few_own(group: int, usual: int, kv_heads: int) -> int:
    """Heads of a layer that has its own number, of which `group` share one of so many heads of keys where `usual` do in others."""
    few = group if group < 3 else 2 + group % 2
    others = usual if usual < 3 else 2 + usual % 2
    return kv_heads * max(few + (few == others and group != usual), 1)


def _few_of(count: int, heads: int) -> int:
    """About `count` heads of keys for `heads` heads: each serves as many."""
    return next(fewer for fewer in range(max(count, 1), 0, -1) if heads % fewer == 0)


def _least(value: Any) -> Any:
    """An inner size, or a list of them, of INNER at most."""
    if isinstance(value, list):
        return [_least(each) for each in value]
    return min(value, INNER) if _positive(value) else value


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
