"""The kernels compile to machine code for real GPUs, which needs Triton but no GPU; and what must not be fused is not."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
from understudy.kernels import gpu

RESIDUAL = {
    "data": "*u8", "codes": "*u8", "scales": "*bf16", "out": "*bf16", "table": "*i64", "stride": "i32", "groups": "i32",
}  # fmt: skip
TRAILING = {"data": "*u8", "out": "*fp16", "table": "*i64", "columns": "i32", "runs": "i32", "groups": "i32"}
SCALED = {"data": "*u8", "out": "*bf16", "table": "*i64", "columns": "i32", "runs": "i32"}
PRODUCT = {
    "x": "*bf16", "codes0": "*i32", "scales0": "*i32", "codes1": "*i32", "scales1": "*i32", "codes2": "*i32", "scales2": "*i32",
    "shifts": "*i32", "norm": "*fp32", "bias": "*fp32", "other": "*bf16", "out": "*bf16", "scratch": "*fp32", "counters": "*i32",
    "m": "i32", "count0": "i32", "count1": "i32", "count2": "i32", "rows0": "i32", "rows1": "i32", "rows2": "i32",
    "beside": "i32", "apart": "i32", "epsilon": "fp32",
}  # fmt: skip
LAYER = {
    "made": "*bf16", "cosines": "*bf16", "sines": "*bf16", "query_norm": "*fp32", "key_norm": "*fp32", "epsilon": "fp32",
    "value_epsilon": "fp32", "keys": "*bf16", "values": "*bf16", "rows": "*i64", "slots": "*i64", "positions": "*i64",
    "prefixes": "*i64", "tail": "*i64", "sinks": "*fp32", "out": "*bf16", "scratch": "*fp32", "counters": "*i32", "width": "i32",
    "places": "i32", "scaling": "fp32", "softcap": "fp32", "window": "i32",
}  # fmt: skip
HEADS = {
    "KV": 8, "GROUP": 4, "DIM": 128, "D": 128, "SIZE": 128, "S": 128, "NORM": False, "ANGLES": 128, "TURNED": 128, "ORDER": 0,
    "FIRST": 0, "WHOLE": 6144, "VALUES": True, "VALUE_NORM": False,
}  # fmt: skip
CHAINS = {name: kind for name, kind in LAYER.items() if name in (*list(LAYER)[:12], "places")}
LAYER_SIZES = HEADS | {
    "M": 16, "BLOCK": 64, "SHARES": 8, "WORTH": 128, "WINDOWED": True, "SINKS": False, "CAPPED": False, "HELD": False,
    "NARROW": True, "WIDE": False,
}  # fmt: skip
ONE_FOR_BOTH = LAYER_SIZES | {
    "DIM": 512, "D": 512, "SIZE": 512, "S": 512, "BLOCK": 16, "NORM": True, "VALUES": False, "VALUE_NORM": True, "WHOLE": 20480,
}  # fmt: skip
NORMED = LAYER_SIZES | {"NORM": True, "CAPPED": True, "ANGLES": 64, "TURNED": 64, "ORDER": 1, "SINKS": True}
LATENT = LAYER_SIZES | {
    "GROUP": 1, "KV": 16, "DIM": 192, "D": 256, "ANGLES": 64, "TURNED": 64, "FIRST": 128, "ORDER": 2, "WHOLE": 8192,
}  # fmt: skip
FINISHED = {
    "y": "*bf16", "other": "*bf16", "weight": "*fp32", "apart": "i32", "beside": "i32", "times": "fp32", "scale": "fp32",
    "epsilon": "fp32",
}  # fmt: skip
ATTENTION = {
    "query": "*bf16", "keys": "*bf16", "values": "*bf16", "out": "*bf16", "sinks": "*bf16", "rows": "*i64", "positions": "*i64",
    "prefixes": "*i64", "tail": "*i64", "width": "i32", "kv_heads": "i32", "places": "i32", "scaling": "fp32",
    "softcap": "fp32", "window": "i32",
}  # fmt: skip
EXACT = {
    "x": "*bf16", "blocks": "*bf16", "out": "*bf16", "count": "i32", "columns": "i32", "x_line": "i32", "out_line": "i32",
}  # fmt: skip
EXACT_ROUTED = {
    "x": "*bf16", "starts": "*i32", "blocks": "*bf16", "out": "*bf16", "first": "i32", "each": "i32", "columns": "i32",
    "x_line": "i32", "out_line": "i32",
}  # fmt: skip
ROUTER = {
    "x": "*bf16", "weights": "*bf16", "out": "*bf16", "count": "i32", "outputs": "i32", "columns": "i32", "x_line": "i32",
    "x_head": "i32",
}  # fmt: skip
EXPERTS = {
    "x": "*bf16", "experts": "*i32", "starts": "*i32", "codes": "*i32", "scales": "*i32", "shifts": "*i32", "out": "*bf16",
    "scratch": "*fp32", "counters": "*i32", "known": "i32", "each": "i32",
}  # fmt: skip
EXPERT_PAIRS = {
    "M": 8, "COLUMNS": 2048, "GROUP": 64, "STEP": 64, "ROUNDS": 4, "SHARES": 8, "PACKED": False, "STAGES": 3,
}  # fmt: skip
EXPERT_STEPS = EXPERT_PAIRS | {"M": 16, "SHARES": 2, "PACKED": True, "PARTS": 4, "BITS": 3, "WIDE": False}
PLACES = {"chosen": "*i64", "nodes": "*i64", "experts": "*i32", "starts": "*i32", "rows": "*i32", "count": "i32"}
ADDED = {
    "given": "*bf16", "rows": "*i32", "end": "*i32", "weights": "*bf16", "total": "*bf16", "nodes": "i32", "columns": "i32",
}  # fmt: skip
ROWS = {"HEIGHT": 64, "STEP": 64, "WHOLE": True, "WIDE": False}
FEW_ROWS = {"HEIGHT": 16, "STEP": 32, "WHOLE": False, "WIDE": True}
FLAGS = {
    "GROUP": 7, "M": 16, "TILES": 1, "T": 0, "INSIDE": False, "DIM": 128, "D": 128, "SIZE": 128, "S": 128, "BLOCK": 64,
    "WINDOWED": False, "CAPPED": False, "SINKS": False,
}  # fmt: skip
FLOATS = {name: kind.replace("bf16", "fp32") for name, kind in ATTENTION.items()}
WIDE = {"DIM": 256, "D": 256, "SIZE": 256, "S": 256, "BLOCK": 32, "WINDOWED": True, "CAPPED": True, "NARROW": False, "WIDE": True}
LONG = {"DIM": 256, "D": 256, "SIZE": 256, "S": 256, "NARROW": True, "WIDE": False}
LONGEST = WIDE | {"DIM": 512, "D": 512, "SIZE": 512, "S": 512, "BLOCK": 16}
SINKS = {"DIM": 192, "D": 256, "GROUP": 1, "SINKS": True, "WINDOWED": True, "NARROW": True, "WIDE": False}
# DeepSeek-V3's heads over latent states
STATES = {"DIM": 576, "D": 512, "SIZE": 512, "S": 512, "T": 64, "INSIDE": True, "BLOCK": 32, "NARROW": True, "WIDE": False}
MANY_HEADS = FLAGS | STATES | {"GROUP": 128, "TILES": 8}
SINGLE_STATES = {"BLOCK": 16, "NARROW": False, "WIDE": True}
KEPT = {
    "states": "*bf16", "turned": "*bf16", "cosines": "*bf16", "sines": "*bf16", "norm": "*fp32", "epsilon": "fp32", "keys": "*bf16",
    "rows": "*i64", "slots": "*i64", "state_line": "i32", "turned_line": "i32", "places": "i32",
}  # fmt: skip
KEPT_SIZES = {"RANK": 512, "R": 512, "REST": 64, "T": 64, "ANGLES": 64, "TURNED": 64, "ORDER": 2}
OVER_STATES = {
    "asked": "*bf16", "queries": "*bf16", "cosines": "*bf16", "sines": "*bf16", "keys": "*bf16", "rows": "*i64",
    "positions": "*i64", "prefixes": "*i64", "tail": "*i64", "sinks": "*fp32", "out": "*bf16", "scratch": "*fp32",
    "counters": "*i32", "width": "i32", "places": "i32", "whole": "i32", "scaling": "fp32", "softcap": "fp32", "window": "i32",
}  # fmt: skip
OVER_SIZES = STATES | {
    "HEADS": 128, "EACH": 192, "ANGLES": 64, "TURNED": 64, "ORDER": 2, "M": 16, "TILES": 8, "SHARES": 8, "WORTH": 128,
    "WINDOWED": False, "SINKS": False, "CAPPED": False,
}  # fmt: skip
EIGHT_WARPS = {"num_warps": 8, "num_stages": 2}
TILES = {"group": 64, "COLUMNS": 16, "LISTED": 32, "COPIED": 256}
EIGHTHS = {"group": 64, "COLUMNS": 16, "LISTED": 32, "COPIED": 256, "DENSE": 0, "HALF": 0.5 + 1 / 64}
UNFUSED_PAIR = {"num_warps": 2, "enable_fp_fusion": False}
TWO_WARPS = {"num_warps": 2, "maxnreg": 128, "enable_fp_fusion": False}
STEPS = {
    "M": 16, "COLUMNS": 4096, "GROUP": 64, "STEP": 64, "ROUNDS": 4, "PARTS": 4, "SHARES": 4, "BITS": 4, "MATRICES": 3,
    "GATED": 0, "NORM": True, "BIAS": True, "OTHER": 0, "STAGES": 3, "WIDE": False,
}  # fmt: skip
BOTH = {"MATRICES": 2, "GATED": 1}
ALONE = STEPS | {"MATRICES": 1, "NORM": False, "OTHER": 1}
PAIRS = {name: kind for name, kind in PRODUCT.items() if name != "shifts"}
PAIR_STEPS = {name: value for name, value in STEPS.items() if name not in ("M", "PARTS", "BITS", "WIDE")} | {"N": 8, "SHARES": 16}
ONE_WARP = {"num_stages": 3, "num_warps": 1}
EXACTLY = PRODUCT | {"x": "*fp32", "other": "*fp32", "out": "*fp32"}
STAGED = {"num_stages": 3}
HOPPER = {"target": 90}
UNFUSED = {"enable_fp_fusion": False}
WHOLE, REALS = "*i64", "*fp64"
LEVEL = {
    "candidates": WHOLE, "chances": REALS, "figures": WHOLE, "count": WHOLE, "most": WHOLE, "length": WHOLE, "slot": WHOLE,
    "straight": WHOLE, "cache_row": WHOLE,
    "node_chances": REALS, "tails": WHOLE, "taken": WHOLE, "taken_chances": REALS, "begun": WHOLE, "picked": WHOLE,
    "picked_chances": REALS, "tips": WHOLE, "tokens": WHOLE, "rows": WHOLE, "slots": WHOLE, "positions": WHOLE, "prefix": WHOLE,
    "tail": WHOLE, "widest": "i32", "held": "i32", "width": "i32",
}  # fmt: skip
LEVEL_SIZES = {
    "P": 2, "W": 64, "T": 512, "WIDEST": 64, "ROWS": 5, "WIDE": 8, "MOST_NODES": 320, "RANKS": 6, "FORCED": False, "GUESSED": False,
}  # fmt: skip
BEST = {
    "logits": "*bf16", "keys": WHOLE, "taken": WHOLE, "length": WHOLE, "temperature": REALS, "offset": WHOLE, "least": WHOLE,
    "held": "i32", "first": "i32", "vocabulary": "i32", "stride": "i32",
}  # fmt: skip
CHOICE = {
    "logits": "*bf16", "given": WHOLE, "least": WHOLE, "found": WHOLE, "count": "i32", "vocabulary": "i32", "stride": "i32",
}  # fmt: skip
FILTER = {
    "logits": "*bf16", "which": WHOLE, "temperature": REALS, "top_k": WHOLE, "top_p": REALS, "min_p": REALS, "lists": WHOLE,
    "sums": "*fp32", "count": "i32", "vocabulary": "i32", "stride": "i32",
}  # fmt: skip
CUT = FILTER | {"least": WHOLE}
OUTLINE_SIZES = {"P": 1, "CHUNK": 2048, "LISTED": 32, "CHUNKS": 75}
CUT_SIZES = {"P": 1, "LISTED": 32, "CHUNKS": 75, "WIDE": 128, "SIZE": 4096, "BLOCK": 4096, "TOKEN": 18}
SAMPLED = {"P": 1, "CHUNK": 2048, "SAMPLED": True, "FILTERED": False}
ADD = {
    "keys": WHOLE, "taken": WHOLE, "taken_chances": REALS, "begun": WHOLE, "node": WHOLE, "node_chances": REALS, "count": WHOLE,
    "figures": WHOLE, "remaining": WHOLE, "stops": WHOLE, "inside": REALS, "belief": REALS, "sharpness": REALS, "steepest": REALS,
    "held": "i32", "first": "i32", "places": "i32",
}  # fmt: skip
ADD_SIZES = {"P": 2, "KEYS": 450, "LANES": 512, "S": 16, "C": 8, "SHARP": 9, "STOPS": 8, "RANKS": 6}
AGREE, AGREE_SIZES = {"node": WHOLE, "node_chances": REALS, "count": WHOLE}, {"N": 64, "LANES": 16, "MOST_NODES": 320, "RANKS": 6}
RANK = {
    "node": WHOLE, "node_chances": REALS, "count": WHOLE, "most": WHOLE, "figures": WHOLE, "picked": WHOLE, "picked_chances": REALS,
    "tips": WHOLE, "rows": "i32",
}  # fmt: skip
RANK_SIZES = {"BLOCK": 128, "STEP": 32, "LIMIT": 64, "FORCED": False, "MOST_NODES": 320, "RANKS": 6}
OFFER = {
    "candidates": WHOLE, "chances": REALS, "figures": WHOLE, "node": WHOLE, "node_chances": REALS, "count": WHOLE, "picked": WHOLE,
    "picked_chances": REALS, "tips": WHOLE, "nodes": WHOLE, "rate": REALS, "break_even": REALS, "free": REALS, "cost": REALS,
    "share": REALS, "likely": REALS, "widest": "i32", "rows": "i32", "together": "i32",
}  # fmt: skip
OFFER_SIZES = {"L": 64, "R": 8, "FORCED": False, "LEVELS": 0, "MOST_NODES": 320, "RANKS": 6}
SINGLES, PATH = "*fp32", {"rows": WHOLE, "slots": WHOLE, "positions": WHOLE}
BRANCHES = PATH | {"prefixes": WHOLE, "tail": WHOLE}
WEIGH = dict.fromkeys(("query", "key", "decay", "keys", "decays", "products", "left", "whole"), SINGLES) | BRANCHES
WEIGH |= {"paths": WHOLE, "width": "i32", "places": "i32"}
WALK = dict.fromkeys(("query", "key", "value", "decay", "beta", "products", "left", "whole"), SINGLES) | PATH
WALK |= dict.fromkeys(("keys", "values", "decays", "states", "updates", "out"), SINGLES)
WALK |= {"paths": WHOLE, "count": "i32", "places": "i32", "fold_row": "i32", "fold_number": "i32"}
RULE_SIZES = {"KEY_HEADS": 16, "GROUP": 2, "SIZE": 128, "C": 128, "READS": 2, "SPAN": 128, "ALONE": False, "BY_CHANNEL": False}
WEIGH_SIZES = RULE_SIZES | {"PARTS": 4, "TILE": 32}
WALK_SIZES = RULE_SIZES | {"NUMBERS": 128, "BLOCK": 32, "STRETCH": 16}
# KDA: each channel of a key forgets at a speed of its own
CHANNELS = {"KEY_HEADS": 32, "GROUP": 1, "BY_CHANNEL": True}
# Mamba-2: one group of keys for all heads, and no delta
GROUPED = {"KEY_HEADS": 1, "GROUP": 64, "READS": 1}
TAPS = dict.fromkeys(("x", "weight", "bias", "inputs", "out"), "*bf16") | BRANCHES
TAPS |= {"width": "i32", "places": "i32", "line": "i32"}
TAP_SIZES = {"CHANNELS": 8192, "TAPS": 4, "BIAS": False, "STEP": 512}
DELTA = dict.fromkeys(("rates", "shifts", "query", "key", "value", "decay", "beta"), SINGLES) | BRANCHES
DELTA |= dict.fromkeys(("made", "weight", "inputs"), "*bf16") | dict.fromkeys(("channels", "betas", "decays_at"), WHOLE)
DELTA |= {"width": "i32", "places": "i32", "columns": "i32"}
DELTA_SIZES = {
    "KEY_HEADS": 16, "HEADS": 32, "SIZE": 128, "C": 128, "NUMBERS": 128, "V": 128, "CHANNELS": 8192, "TAPS": 4,
}  # fmt: skip
GATE = {
    "given": SINGLES, "made": "*bf16", "gates": WHOLE, "weight": SINGLES, "out": "*bf16", "epsilon": "fp32", "columns": "i32",
}  # fmt: skip
KERNELS: dict[str, tuple[str, str, dict[str, str], dict[str, Any], dict[str, int]]] = {
    "residual": ("residual", "_decode", RESIDUAL, TILES | {"BITS": 4, "DENSE": 5, "WIDER": 0}, TWO_WARPS),
    "residual of 3 bits": ("residual", "_decode", RESIDUAL, TILES | {"BITS": 3, "DENSE": 6, "WIDER": 48}, TWO_WARPS),
    "residual of 6 bits": ("residual", "_decode", RESIDUAL, TILES | {"BITS": 6, "DENSE": 4, "WIDER": 0}, TWO_WARPS),
    "residual of 8 bits": ("residual", "_decode", RESIDUAL, TILES | {"BITS": 8, "DENSE": 3, "WIDER": 0, "group": 128}, TWO_WARPS),
    "weights in float16": ("trailing", "_narrow", TRAILING, {"COLUMNS": 32, "DENSE": 5}, UNFUSED),
    "weights in FP8": ("eighths", "_decode", RESIDUAL, EIGHTHS | {"BITS": 4, "DENSE": 1}, UNFUSED_PAIR),
    "weights in FP8 beside 2 bits": ("eighths", "_decode", RESIDUAL, EIGHTHS | {"BITS": 2, "DENSE": 3}, UNFUSED_PAIR),
    "weights in FP8 beside 3 bits": ("eighths", "_decode", RESIDUAL, EIGHTHS | {"BITS": 3, "DENSE": 2}, UNFUSED_PAIR),
    "weights in FP8 beside 6 bits": ("eighths", "_decode", RESIDUAL, EIGHTHS | {"BITS": 6, "HALF": 0.5 + 1 / 32}, UNFUSED_PAIR),
    "weights in FP8 beside 8 bits": (
        "eighths", "_decode", RESIDUAL, EIGHTHS | {"BITS": 8, "HALF": 0.75, "group": 128}, UNFUSED_PAIR
    ),
    "weights in four bits": ("scaled_fours", "_decode", SCALED, {"COLUMNS": 32, "HALF": False}, UNFUSED),
    "weights in four bits in float16": (
        "scaled_fours", "_decode", SCALED | {"out": "*fp16"}, {"COLUMNS": 32, "HALF": True}, UNFUSED
    ),
    "exact product": ("exact_product", "_multiply_rows", EXACT, ROWS, {"num_stages": 3}),
    "exact product in float32": ("exact_product", "_multiply_rows", EXACT | {"x": "*fp32", "out": "*fp32"}, FEW_ROWS, {}),
    "exact product of experts": ("exact_product", "_multiply_routed", EXACT_ROUTED, ROWS, {"num_stages": 3}),
    "exact product of experts in float32": (
        "exact_product", "_multiply_routed", EXACT_ROUTED | {"x": "*fp32", "out": "*fp32"}, FEW_ROWS, {}
    ),
    "routers of experts": ("exact_product", "_multiply_whole", ROUTER, {"HEIGHT": 64, "STEP": 64, "WIDE": False}, STAGED),
    "routers of experts in float32": (
        "exact_product", "_multiply_whole", ROUTER | {"x": "*fp32", "weights": "*fp32", "out": "*fp32"},
        {"HEIGHT": 16, "STEP": 32, "WIDE": True}, STAGED,
    ),
    "rows of experts": ("expert_rows", "_places", PLACES, {"K": 8, "STEP": 1024}, UNFUSED),
    "sums of experts": ("expert_rows", "_add", ADDED, {"K": 6, "LANES": 8, "STEP": 1024}, UNFUSED),
    "experts of 4 bits": ("expert_product", "_multiply_pairs", EXPERTS, EXPERT_PAIRS, ONE_WARP),
    "experts of 4 bits with many rows": (
        "expert_product", "_multiply_pairs", EXPERTS, EXPERT_PAIRS | {"M": 16, "SHARES": 1, "PACKED": True}, ONE_WARP
    ),
    "experts of 3 bits": ("expert_product", "_multiply", EXPERTS, EXPERT_STEPS, STAGED),
    "experts of 4 bits in float32": (
        "expert_product", "_multiply", EXPERTS | {"x": "*fp32", "out": "*fp32"}, EXPERT_STEPS | {"BITS": 4, "SHARES": 1}, STAGED
    ),
    "nodes of a level": ("search_level", "begin", LEVEL, LEVEL_SIZES, UNFUSED),
    "nodes of a text's guesses": ("search_level", "begin", LEVEL, LEVEL_SIZES | {"GUESSED": True}, UNFUSED),
    "agreement with guesses": ("search_level", "agree", AGREE, AGREE_SIZES, UNFUSED | {"num_warps": 1}),
    "keys of chains": ("turned_heads", "put_all", CHAINS, HEADS, {"num_warps": 1}),
    "best children": ("search_level", "best", BEST, SAMPLED | {"SAMPLED": False, "RANKS": 6}, UNFUSED),
    "best children, sampled": ("search_level", "best", BEST, SAMPLED | {"RANKS": 6}, UNFUSED),
    "best children, filtered": ("search_level", "best", BEST, SAMPLED | {"FILTERED": True, "RANKS": 6}, UNFUSED),
    "outlines of a filter": ("filters", "outline", FILTER, OUTLINE_SIZES, UNFUSED),
    "cuts of a filter": ("filters", "cut", CUT, CUT_SIZES, UNFUSED | {"num_warps": 8}),
    "cuts of a filter in float32": ("filters", "cut", CUT | {"logits": "*fp32"}, CUT_SIZES, UNFUSED | {"num_warps": 8}),
    "chosen tokens": ("token_choice", "_best", CHOICE, SAMPLED | {"SAMPLED": False}, UNFUSED),
    "chosen tokens, sampled": ("token_choice", "_best", CHOICE, SAMPLED, UNFUSED),
    "chosen tokens, filtered": ("token_choice", "_best", CHOICE, SAMPLED | {"FILTERED": True}, UNFUSED),
    "children of a level": ("search_level", "add", ADD, ADD_SIZES, UNFUSED),
    "likeliest children": ("search_choice", "rank", RANK, RANK_SIZES, UNFUSED),
    "likeliest children of a shape": ("search_choice", "rank", RANK, RANK_SIZES | {"FORCED": True, "LIMIT": 6}, UNFUSED),
    "candidates of a level": ("search_choice", "offer", OFFER, OFFER_SIZES, UNFUSED),
    "candidates of a shape": ("search_choice", "offer", OFFER, OFFER_SIZES | {"FORCED": True, "LEVELS": 48}, UNFUSED),
    "products of 3 bits": ("coded_product", "multiply", PRODUCT, STEPS | {"BITS": 3}, STAGED),
    "products of 4 bits": ("four_bits", "multiply_pairs", PAIRS, PAIR_STEPS, ONE_WARP),
    "products of 4 bits and many rows": ("four_bits", "multiply_pairs", PAIRS, PAIR_STEPS | {"N": 16, "SHARES": 2}, ONE_WARP),
    "gated products on an A100": ("four_bits", "multiply_pairs", PAIRS, PAIR_STEPS | BOTH, ONE_WARP | {"target": 80}),
    "gated products on an H100": ("four_bits", "multiply_pairs", PAIRS, PAIR_STEPS | BOTH, ONE_WARP | HOPPER),
    "products gated by gelu": ("four_bits", "multiply_pairs", PAIRS, PAIR_STEPS | BOTH | {"GATED": 2}, ONE_WARP),
    "finished rows": ("finished_rows", "_finish_rows", FINISHED, {"COLUMNS": 5376, "C": 8192, "NORM": True, "ADDED": True}, {}),
    "products of 6 bits": ("coded_product", "multiply", PRODUCT, STEPS | {"BITS": 6}, STAGED),
    "product of 8 bits": ("coded_product", "multiply", PRODUCT, ALONE | {"BITS": 8, "GROUP": 4096, "SHARES": 1}, STAGED),
    "products in float32": ("coded_product", "multiply", EXACTLY, STEPS, STAGED),
    "draft layer": ("draft_layer", "_attend", LAYER, LAYER_SIZES, {"num_stages": 2}),
    "draft layer with norms, turned in part, and sinks": ("draft_layer", "_attend", LAYER, NORMED, {"num_stages": 2}),
    "draft layer of long keys that are values": ("draft_layer", "_attend", LAYER, ONE_FOR_BOTH, {"num_stages": 2}),
    "draft layer of long keys, turned at their ends": ("draft_layer", "_attend", LAYER, LATENT | {"BLOCK": 32}, {"num_stages": 2}),
    "draft layer with an earlier one's keys": (
        "draft_layer", "_attend", LAYER, LAYER_SIZES | {"HELD": True, "WHOLE": 4096}, {"num_stages": 2}
    ),
    "draft layer on an H100": ("draft_layer", "_attend", LAYER, LAYER_SIZES, {"num_stages": 2} | HOPPER),
    "keys of a recurrent path": ("rule_weights", "weigh", WEIGH, WEIGH_SIZES, UNFUSED),
    "keys of a recurrent path in a level": ("rule_weights", "weigh", WEIGH, WEIGH_SIZES | {"ALONE": True}, UNFUSED),
    "keys of a recurrent path of one group": ("rule_weights", "weigh", WEIGH, WEIGH_SIZES | GROUPED, UNFUSED),
    "keys of a recurrent path by channel": ("rule_weights", "weigh", WEIGH, WEIGH_SIZES | CHANNELS, UNFUSED),
    "walk over recurrent nodes by channel": ("rule_walk", "walk", WALK, WALK_SIZES | CHANNELS, UNFUSED),
    "walk over recurrent nodes": ("rule_walk", "walk", WALK, WALK_SIZES, UNFUSED),
    "walk over recurrent nodes of a level": ("rule_walk", "walk", WALK, WALK_SIZES | {"ALONE": True}, UNFUSED),
    "walk over recurrent nodes of one group": ("rule_walk", "walk", WALK, WALK_SIZES | GROUPED | {"NUMBERS": 64}, UNFUSED),
    "walk over recurrent nodes with long keys": ("rule_walk", "walk", WALK, WALK_SIZES | {"SIZE": 256, "C": 256}, UNFUSED),
    "what a recurrent level asks": ("delta_layer", "_ask", DELTA, DELTA_SIZES, {"enable_fp_fusion": True}),
    "gates of a recurrent level": (
        "delta_layer", "_gate", GATE, {"HEADS": 32, "NUMBERS": 128, "V": 128}, {"enable_fp_fusion": True}
    ),
    "short convolution": ("convolution", "_convolve", TAPS, TAP_SIZES, UNFUSED),
    "short convolution in float32": (
        "convolution", "_convolve", {name: kind.replace("bf16", "fp32") for name, kind in TAPS.items()}, TAP_SIZES | {"BIAS": True},
        UNFUSED,
    ),
    "states of a level": ("draft_states", "_keep", KEPT, KEPT_SIZES, {"num_warps": 4}),
    "draft layer over states": ("draft_states", "_attend_states", OVER_STATES, OVER_SIZES, EIGHT_WARPS),
    "attention over states": ("attention", "_attend", ATTENTION, MANY_HEADS, EIGHT_WARPS),
    "attention over states in float32": (
        "attention", "_attend", FLOATS, MANY_HEADS | SINGLE_STATES, {"num_warps": 8, "num_stages": 1}
    ),
    "attention": ("attention", "_attend", ATTENTION, FLAGS | {"NARROW": True, "WIDE": False}, {"num_stages": 2}),
    "attention with long keys": ("attention", "_attend", ATTENTION, FLAGS | LONG, {"num_stages": 2}),
    "attention with sinks and short values": ("attention", "_attend", ATTENTION, FLAGS | SINKS, {"num_stages": 2}),
    "attention with the longest keys": ("attention", "_attend", FLOATS, FLAGS | LONGEST, {"num_stages": 1}),
    "attention in float32": ("attention", "_attend", FLOATS, FLAGS | WIDE, {"num_stages": 1}),
}
SCRIPT = """
import importlib, json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
found = {}
for what, (module, name, signature, constants, options) in json.loads(sys.argv[1]).items():
    where = "" if module.startswith("gpu_") else "understudy.kernels.gpu."
    kernel = getattr(importlib.import_module(where + module), name)
    signature |= {name: "constexpr" for name in constants}
    target = GPUTarget("cuda", options.pop("target", int(sys.argv[2])), 32)
    # torch's tensors begin at 16 bytes, which a launch sees
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    try:
        made = compile(source, target=target, options=options)
        found[what] = {"cubin": len(made.asm["cubin"]), "shared": made.metadata.shared, "ptx": made.asm["ptx"]}
    except Exception as error:
        found[what] = {"error": repr(error)}
print(json.dumps(found))
"""
TARGET = 89
# bytes of shared memory that a block has on consumers' GPUs
SHARED = 99 << 10


# Where Triton keeps what it compiled, under names made of all sources, sizes and options that it was made of.
KEPT = Path(__file__).parent / "__pycache__" / "triton"
# Kernels that are kept: beyond these, all are dropped, since most are of sources that are gone.
MOST_KEPT = 400
# Of the kernels that servers' GPUs are asked for too, one for each function: that every form of it compiles is seen for TARGET.
FOR_SERVERS = (
    *("nodes of a level", "best children", "children of a level", "likeliest children", "candidates of a level"),
    *("best children, filtered", "outlines of a filter", "cuts of a filter", "chosen tokens, filtered", "agreement with guesses"),
    *("weights in FP8", "weights in four bits", "weights in float16"),
    *("states of a level", "draft layer over states", "attention over states"),
    *("keys of a recurrent path", "walk over recurrent nodes", "what a recurrent level asks", "gates of a recurrent level"),
    *("short convolution", "exact product", "exact product of experts", "routers of experts", "rows of experts", "sums of experts"),
    *("experts of 4 bits", "experts of 3 bits"),
)


def made_of(kernels: dict[str, Any], target: int) -> dict[str, dict[str, Any]]:
    """What came of `kernels`, compiled in a process where Triton is not interpreted: one for all, as its imports take long."""
    if KEPT.exists() and len(list(KEPT.iterdir())) > MOST_KEPT:
        shutil.rmtree(KEPT)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(KEPT)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", SCRIPT, json.dumps(kernels), str(target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    return made_of(KERNELS, TARGET)


def instructions(ptx: str) -> Counter[str]:
    """How often each instruction is in the code."""
    words = [line.split()[0] for line in ptx.splitlines() if line.strip()]
    return Counter(word.rstrip(";") for word in words)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_compiles(kernel: str, compiled: dict[str, dict[str, Any]]) -> None:
    made = compiled[kernel]
    assert "error" not in made, made["error"]
    assert made["cubin"] > 0 and made["shared"] <= SHARED, made["shared"]
    found = instructions(made["ptx"])
    assert found.total() > 100
    if kernel.startswith(("gated products", "experts of 4 bits")) and "float32" not in kernel:
        copies = re.findall(r"cp\.async\.c[ag]\.\S+ [^;]*\], (0x\w+)", made["ptx"])
        assert len(copies) > 20 and "0x4" not in copies, "codes are loaded 16 bytes at once, not word by word"
    if "recurrent" in kernel or "convolution" in kernel:
        # but for the products of matrices, whose sums run in one order whatever stands beside
        level = "walk" in kernel or kernel.endswith("recurrent level") or kernel.startswith("what a recurrent")
        assert level or not any("fma" in word and "f32" in word for word in found), found
    if kernel.startswith("weights in"):
        # ends of bins and weights are rounded after each step, as on the CPU
        assert not any("ftz" in word or "fma" in word or "approx" in word for word in found), found
        assert any(word.startswith("div.rn.f32") for word in found) or "FP8" not in kernel
    if kernel.startswith("residual"):
        assert not any("ftz" in word for word in found), "subnormal numbers must not become zeros"
        # two rounded once for each row of a lane, after products that are exact; nothing else may be fused
        assert found["fma.rn.f32"] == 32 and not any("fma" in word and word != "fma.rn.f32" for word in found)
        assert any(word.startswith("mul.") and "f32" in word for word in found)


@pytest.mark.parametrize("target", [80, 90])
def test_each_function_compiles_for_gpus_of_servers(target: int) -> None:
    functions = {KERNELS[name][:2] for name in FOR_SERVERS}
    modules = {module for module, _ in functions}
    assert functions == {(module, name) for module, name, *_ in KERNELS.values() if module in modules}
    made = made_of({name: KERNELS[name] for name in FOR_SERVERS}, target)
    assert all(made[name].get("cubin", 0) > 0 for name in FOR_SERVERS), made


def test_every_launch_says_whether_products_and_sums_are_fused() -> None:
    """Bits depend on it, and what Triton does where nothing is said is not the same in all its versions."""
    found = 0
    for file in Path(gpu.__file__).parent.glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            # as in kernel[grid](...)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript):
                found += 1
                said = [word.arg for word in call.keywords]
                assert "enable_fp_fusion" in said, f"{file.name}:{call.lineno}"
    assert found >= 10
