"""Tiny random checkpoints of every family, with a tokenizer of 256 bytes, as Hugging Face would store them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedTokenizerFast,
)

from understudy import LLM
from understudy.models.stock.towers import left_out

COMMON: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {
        "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32, "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma2": {
        "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    # other heads in global layers, whose keys are the values before norm and rope
    "gemma4_text": {
        "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 16,
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 10.0, "tie_word_embeddings": False,
    },
    # the last four layers read the keys of earlier ones; a table beside the embedding has rows for each layer
    "gemma4-e": {
        "model_type": "gemma4_text", "head_dim": 16, "global_head_dim": 32, "sliding_window": 16, "num_hidden_layers": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 4, "num_kv_shared_layers": 4, "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 24, "vocab_size_per_layer_input": 256, "tie_word_embeddings": False,
    },
    # the last two layers read the keys of earlier ones
    "gemma4_unified_text": {
        "head_dim": 32, "global_head_dim": 16, "sliding_window": 16, "attention_k_eq_v": True, "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
    },
    # four states in the place of one, activations that are mostly zeros, two layers that read the keys of earlier ones, and a table
    # beside the embedding that lacks some tokens
    "gemma3n_text": {
        "head_dim": 16, "sliding_window": 16, "num_hidden_layers": 6, "num_kv_shared_layers": 2, "laurel_rank": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 3, "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": 24, "vocab_size_per_layer_input": 240, "tie_word_embeddings": False,
        "final_logit_softcapping": 10.0,
    },
    "phi3": {"sliding_window": None},
    "glm4": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "olmo2": {},
    # three heads of values to each head of keys
    "qwen3_5_text": {
        "head_dim": 32, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
        "linear_key_head_dim": 16, "linear_value_head_dim": 24,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False,
    },
    # Mamba-2 with one group and several, with and without a bias of its convolution, its norm and attention in the same layer
    "bamba": {"mamba_n_heads": 8, "mamba_d_state": 24, "mamba_n_groups": 2, "attn_layer_indices": [1], "mamba_chunk_size": 16},
    "granitemoehybrid": {
        "mamba_n_heads": 4, "mamba_d_state": 16, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 160, "mamba_conv_bias": False,
        "logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.2,
    },
    "falcon_h1": {
        "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_ssm": 96, "mamba_d_state": 32, "mamba_n_groups": 2,
        "ssm_multipliers": [0.7, 1.2, 0.8, 1.1, 0.9], "mlp_multipliers": [0.8, 1.3], "key_multiplier": 0.6,
        "embedding_multiplier": 2.0, "lm_head_multiplier": 0.4, "ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.9,
        "attention_in_multiplier": 1.1, "attention_out_multiplier": 0.8,
    },
    "falcon_h1-normed": {
        "model_type": "falcon_h1", "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_ssm": 96, "mamba_d_state": 32,
        "mamba_rms_norm": True, "mamba_norm_before_gate": False,
    },
    # layers of a feed-forward network alone
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"], "head_dim": 16,
        "mamba_num_heads": 6, "mamba_head_dim": 16, "ssm_state_size": 20, "n_groups": 3,
    },
    # convolutions of queries, keys and values are stored apart
    "olmo_hybrid": {
        "num_hidden_layers": 4, "linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_key_head_dim": 16,
        "linear_value_head_dim": 32,
    },
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.2},
}  # fmt: skip
_SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_OWN_KEYS = {"num_key_value_heads": None}
_UNTIED = {"tie_word_embeddings": False}
_ALONE = {"without": ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")}
_LATENT = {"num_key_value_heads": 4, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
# an index of few heads, of which a text soon has more tokens than are looked at
_INDEX = {"index_topk": 12, "index_head_dim": 16, "index_n_heads": 32}
# Families that need no mechanism of their own, with what is unlike in them; one test runs each.
MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "cohere": {"logit_scale": 0.5, **_UNTIED},
    "cohere2": {"logit_scale": 0.5, **_SLIDING},
    "cohere_compass_text": {
        **_SLIDING, **_UNTIED,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 5e4} for kind in ("full_attention", "sliding_attention")},
    },
    "ernie4_5": {"head_dim": 16},
    "exaone4": {**_SLIDING, "sliding_window_pattern": 2},
    # attention that transformers computes in a way of its own: with a bias by position, or layers that look back a little
    "bloom": {"n_layer": 3, "n_head": 4, **_ALONE, **_UNTIED},
    "codegen": {"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "n_positions": 512, **_ALONE},
    "falcon": {"ffn_hidden_size": 160, "new_decoder_architecture": True, "num_kv_heads": 2, **_UNTIED},
    "falcon-multi": {"model_type": "falcon", "ffn_hidden_size": 160, "multi_query": True, **_OWN_KEYS, **_UNTIED},
    "gpt_neo": {
        "num_layers": 4, "num_heads": 4, "window_size": 12, "attention_types": [[["global", "local"], 2]],
        "without": ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    },
    "gpt_neox_japanese": {"intermediate_multiple_size": 2, **_OWN_KEYS, **_UNTIED},
    "gptj": {"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "n_positions": 512, **_ALONE},
    "mpt": {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 512, **_ALONE},
    "gemma": {"head_dim": 32, **_UNTIED},
    "glm": {"head_dim": 16},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 160, "num_key_value_heads": 1},
    # weights that are stored transposed
    "gpt2": {"n_inner": 160, **_OWN_KEYS},
    "gpt_neox": {"rotary_pct": 0.25, **_OWN_KEYS},
    # attention sinks
    "granite_swa": {"head_dim": 16, "attention_multiplier": 0.2, **_SLIDING},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    # each layer has its own number of heads
    "laguna": {
        "num_experts": 1, "num_experts_per_tok": 1, "mlp_layer_types": ["dense"] * 3, "head_dim": 16, **_SLIDING,
        "num_attention_heads_per_layer": [4, 2, 6],
    },
    # keys and values of unlike sizes, expanded from a latent state
    "minicpm3": {"q_lora_rank": 48, "kv_lora_rank": 40, "v_head_dim": 12, **_LATENT, **_UNTIED},
    "lfm3": {
        "head_dim": 16, "sliding_window": 12, "layer_types": ["conv", "full_attention", "sliding_attention"], **_UNTIED,
    },
    "ministral": {"head_dim": 16, **_SLIDING},
    "ministral3": {"head_dim": 16},
    "nemotron": {"head_dim": 16},
    "olmo": {"clip_qkv": 2.0},
    "olmo3": _SLIDING,
    "opt": {"ffn_dim": 160, "word_embed_proj_dim": 64, **_OWN_KEYS},
    "phi": {"partial_rotary_factor": 0.5},
    "seed_oss": {"head_dim": 16},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "stablelm": {"use_parallel_residual": True, "qk_layernorm": True},
    "starcoder2": {"sliding_window": 12},
    # no attention at all
    "falcon_mamba": {"state_size": 6, "time_step_rank": 8, **_ALONE, **_UNTIED},
    "mamba": {"state_size": 6, "time_step_rank": 8, **_ALONE, **_UNTIED},
    "mamba2": {"state_size": 24, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16, **_ALONE},
    # two blocks of attention that three layers share, with adapters of each use, before Mamba-2
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 5,
        "num_mem_blocks": 2, "n_mamba_heads": 4, "mamba_d_state": 16, "mamba_ngroups": 2, "use_shared_attention_adapter": True,
        "adapter_rank": 16, "use_mem_rope": True, "chunk_size": 16, "num_key_value_heads": 4,
    },
    # one number of state for each channel, in two of three layers; the third has a window
    "recurrent_gemma": {
        "attention_window_size": 16, "intermediate_size": 320, "logits_soft_cap": 10.0, "tie_word_embeddings": False,
    },
    "vaultgemma": {"head_dim": 32, "query_pre_attn_scalar": 32, **_SLIDING, **_UNTIED},
    "youtu": {"q_lora_rank": None, "kv_lora_rank": 40, "v_head_dim": 20, **_LATENT, **_UNTIED},
}  # fmt: skip
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LOCAL_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64}
_ROUTED_EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 4, "topk_group": 2}
_DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24}
_GROUPED_EXPERTS = {**_LOCAL_EXPERTS, "intermediate_size": 160, "moe_intermediate_size": 64, "n_group": 4, "topk_group": 2}
_CHANNELS = {"linear_num_heads": 3, "linear_head_dim": 16}
# Mixtures of experts, with what is unlike in them: routers, shared experts, dense layers, and the layers around.
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**_EXPERTS, "head_dim": 16, "norm_topk_prob": True},
    # a shared expert beside the others, and a dense layer between
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 96, "mlp_only_layers": [1], **_UNTIED},
    "mixtral": _LOCAL_EXPERTS,
    "olmoe": {**_EXPERTS, "intermediate_size": 64, "num_experts_per_tok": 3},
    # both of a layer's gates are one tensor of the checkpoint, as in the model
    "granitemoe": {**_LOCAL_EXPERTS, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    # a dense layer first, experts that are chosen in groups, and a latent state for keys and values
    "deepseek_v2": {
        **_ROUTED_EXPERTS, **_LATENT, "q_lora_rank": 48, "kv_lora_rank": 40, "v_head_dim": 12, "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy", "n_shared_experts": 2, "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {
        **_ROUTED_EXPERTS, **_LATENT, "q_lora_rank": None, "kv_lora_rank": 40, "v_head_dim": 16, "first_k_dense_replace": 1,
    },
    # an index chooses the tokens that a layer looks at; of the second, some layers take what one before them chose
    "deepseek_v32": {
        **_ROUTED_EXPERTS, **_LATENT, "q_lora_rank": 48, "kv_lora_rank": 40, "v_head_dim": 16, "first_k_dense_replace": 1, **_INDEX,
    },
    "glm_moe_dsa": {
        **_ROUTED_EXPERTS, **_LATENT, "q_lora_rank": 48, "kv_lora_rank": 40, "v_head_dim": 16, **_INDEX,
        "mlp_layer_types": ["dense", "sparse", "sparse"], "indexer_types": ["full", "shared", "full"],
    },
    "glm4_moe": {**_ROUTED_EXPERTS, "head_dim": 16, "use_qk_norm": True, "partial_rotary_factor": 0.5},
    "glm4_moe_lite": {
        **_ROUTED_EXPERTS, **_LATENT, "q_lora_rank": 48, "kv_lora_rank": 40, "v_head_dim": 16,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "ernie4_5_moe": {
        "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 64, "moe_num_shared_experts": 1, "moe_layer_end_index": 2,
        **_UNTIED,
    },
    # matrices that are stored transposed, with biases, and gates between what they gate
    "gpt_oss": {**_LOCAL_EXPERTS, "head_dim": 16, **_SLIDING},
    # an index chooses blocks of tokens, others for each head of keys
    "minimax_m3_vl_text": {
        **_LOCAL_EXPERTS, "head_dim": 16, "rotary_dim": 8, "dense_intermediate_size": 128, "shared_intermediate_size": 64,
        "mlp_layer_types": ["dense", "sparse", "sparse"], "layer_types": ["full_attention", *["minimax_m3_sparse"] * 2],
        "index_n_heads": 2, "index_head_dim": 16, "index_block_size": 6, "index_topk_blocks": 3,
    },
    "minimax_m2": {**_LOCAL_EXPERTS, "head_dim": 16, "rotary_dim": 8},
    "phimoe": {**_LOCAL_EXPERTS, "sliding_window": None},
    # a dense network and experts in every layer, with norms of their own
    "gemma4-moe": {
        "model_type": "gemma4_text", "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64,
        "head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0,
        "tie_word_embeddings": False,
    },
    "granitemoehybrid-experts": {
        **FAMILIES["granitemoehybrid"], **_LOCAL_EXPERTS, "model_type": "granitemoehybrid", "shared_intermediate_size": 96,
    },
    # experts without a gate
    "nemotron_h-experts": {
        **FAMILIES["nemotron_h"], **_ROUTED_EXPERTS, "model_type": "nemotron_h", "moe_shared_expert_intermediate_size": 96,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "moe"],
    },
    "qwen3_next": {**_EXPERTS, **_DELTA, "head_dim": 32, "shared_expert_intermediate_size": 96, "num_hidden_layers": 4, **_UNTIED},
    "qwen3_5_moe_text": {
        **_EXPERTS, **_DELTA, "head_dim": 32, "shared_expert_intermediate_size": 96, "num_hidden_layers": 4, **_UNTIED,
    },
    # four states in the place of one, an index of means over blocks, and tables of n-grams with a convolution beside delta nets
    "qwen4_exp_text": {
        **_EXPERTS, **_DELTA, "head_dim": 32, "shared_expert_intermediate_size": 96, "num_hidden_layers": 4, "hc_lowrank": 24,
        "layer_types": ["linear_attention", "full_attention"] * 2, "indexer_n_heads": 32, "indexer_kv_heads": 1,
        "indexer_head_dim": 16, "indexer_compress_ratio": 4, "indexer_budget": 12, "ple_layer_ids": [1, 3], "heads_per_ngram": 2,
        "ngram_vocab_size_base": 97, "split_ngram_parts": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, **_UNTIED,
    },
    # experts whose inputs are scaled, a dense layer, chunks, and a layer without a rope that scales queries by position
    "llama4_text": {
        **_LOCAL_EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 96, "head_dim": 16, "num_hidden_layers": 4,
        "moe_layers": [0, 2, 3], "no_rope_layers": [1, 0, 1, 1], "attention_chunk_size": 20, "floor_scale": 8,
    },
    # a decay for each channel of a key, a latent state without a rope, and a dense layer first
    "kimi_linear": {
        **_CHANNELS, **_LATENT, **_GROUPED_EXPERTS, "kv_lora_rank": 40, "v_head_dim": 12,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    # decays that are never below a bound, and a gate on each head of a latent state's attention
    "bailing_hybrid": {
        **_LATENT, **_GROUPED_EXPERTS, "qk_rope_head_dim": 16, "head_dim": 16, "kv_lora_rank": 40, "v_head_dim": 12,
        "first_k_dense_replace": 1, "layer_group_size": 2, "num_mtp_layers": 0,
    },
    # entries of long blocks and, chosen by an index, of short ones that overlap, beside a window; experts by a table of tokens;
    # three states side by side, and a projection in groups
    "deepseek_v4": {
        **_ROUTED_EXPERTS, "without": ("intermediate_size",), "num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 32,
        "q_lora_rank": 48, "o_lora_rank": 64,
        "o_groups": 2, "hc_mult": 3, "partial_rotary_factor": 0.25, "sliding_window": 12, "index_topk": 5, "index_head_dim": 16,
        "index_n_heads": 32, "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 7},
        "layer_types": [
            "heavily_compressed_attention", "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0,
        },
    },
    "dots1": {**_ROUTED_EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16},
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": 2, "head_dim": 16, "intermediate_size": 64},
    # values smaller than keys, and more heads of keys in layers with a window
    "mimo_v2_flash": {
        **_ROUTED_EXPERTS, **_SLIDING, "head_dim": 16, "v_head_dim": 12, "num_key_value_heads": 1,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    # Mamba, whose numbers forget each at its own speed, beside attention without a rope
    "jamba": {
        "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 64, "attn_layer_period": 3, "attn_layer_offset": 1,
        "mamba_d_state": 6, "mamba_dt_rank": 8, "num_hidden_layers": 4,
    },
    # tall weights of all experts, and sizes in parts of the config
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 512, "rope_theta": 5e5,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.5, "rope_theta": 5e5},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 8, "moe_top_k": 2},
        "without": (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings",
        ),
    },
    # experts that make queries, and what is made of attention
    "jetmoe": {
        **_LOCAL_EXPERTS, "kv_channels": 16, "num_key_value_heads": 4, "without": ("num_attention_heads",),
        "tie_word_embeddings": False,
    },
    # latent states of other sizes in layers with a window, which have heads of their own, and an index in the others
    "dots3_note_text": {
        **_ROUTED_EXPERTS, **_LATENT, "q_lora_rank": 48, "kv_lora_rank": 40, "v_head_dim": 16, "head_dim": 32, **_INDEX,
        "shared_experts_intermediate_size": 64, "sliding_window": 10, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 32, "swa_kv_lora_rank": 56, "swa_head_dim": 20, "swa_qk_nope_head_dim": 12, "swa_v_head_dim": 8,
        "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    # a state that each head forgets at its own speed, and factors of both halves of a layer
    "minimax": {
        **_LOCAL_EXPERTS, "head_dim": 16, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "block_size": 32, "linear_attn_alpha_factor": 1.5, "linear_attn_beta_factor": 0.7, "full_attn_alpha_factor": 1.2,
        "mlp_alpha_factor": 1.4, "mlp_beta_factor": 0.8, **_UNTIED,
    },
    # queries and keys that are convolved, values of the token before, a router with a state, and an expert that gives nothing
    "zaya": {
        **_EXPERTS, "num_experts_per_tok": 1, "head_dim": 16, "sliding_window": 12, "router_hidden_size": 32, "cca_time1": 3,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"], **_UNTIED,
    },
    # a bias by distance, four convolutions a layer, heads of their own in layers with a window, and shared experts in stacks
    "inkling_text": {
        **_ROUTED_EXPERTS, "head_dim": 16, "swa_head_dim": 24, "swa_num_attention_heads": 6, "swa_num_key_value_heads": 3,
        "d_rel": 8, "rel_extent": 20, "sliding_window_size": 12, "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
        "mlp_layer_types": ["dense", "sparse", "sparse"], "n_shared_experts": 2, "log_scaling_n_floor": 8,
        "unpadded_vocab_size": 250, "logits_mup_width_multiplier": 2.0, "route_scale": 2.0,
    },
    # two latent attentions, two networks and a mixture in each layer, of which some experts give back what they are given
    "longcat_flash": {
        **_LATENT, "num_layers": 2, "q_lora_rank": 48, "kv_lora_rank": 40, "v_head_dim": 12, "head_dim": 8, "ffn_hidden_size": 96,
        "n_routed_experts": 8, "zero_expert_num": 4, "moe_topk": 3, "expert_ffn_hidden_size": 64, "routed_scaling_factor": 1.5,
        "without": ("intermediate_size", "num_hidden_layers"),
    },
    "lfm2_moe": {
        **_EXPERTS, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1, "tie_word_embeddings": False,
    },
}  # fmt: skip
# Kinds of multimodal models, and the changes of the text model in each. It is one of the family `text`, or of the kind's own.
MIXED: dict[str, Any] = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def sections(*sizes: int, **others: Any) -> dict[str, Any]:
    """A rope with positions in three dimensions, which are one for a text."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sizes), **others}}


WRAPPERS: dict[str, dict[str, Any]] = {
    "qwen3_5": {"text": "qwen3_5_text"},
    "gemma3": {"text": "gemma3_text"},
    "gemma4": {"text": "gemma4-e"},
    "gemma4_unified": {"text": "gemma4_unified_text"},
    # its vision tower is another library's
    "gemma3n": {"text": "gemma3n_text"},
    "gemma3n-tied": {"model_type": "gemma3n", "text": "gemma3n_text", "tie_word_embeddings": True},
    "mistral3": {"text": "mistral"},
    "mistral3-ministral3": {"model_type": "mistral3", "text": "ministral3", "head_dim": 16},
    "mistral3-mistral4": {
        **_ROUTED_EXPERTS, **_LATENT, "model_type": "mistral3", "text": "mistral4", "q_lora_rank": 48, "kv_lora_rank": 40,
        "v_head_dim": 16, "first_k_dense_replace": 1,
    },
    "muse_glimmer": {"head_dim": 16, **MIXED},
    "llava": {"text": "llama"},
    "llava_next": {"text": "mistral"},
    "qwen2_5_vl": sections(2, 3, 3),
    "qwen3_vl": {"head_dim": 16, **sections(3, 3, 2, mrope_interleaved=True)},
    "glm4v": sections(2, 1, 1, partial_rotary_factor=0.5),
    "glm_ocr": sections(2, 1, 1, partial_rotary_factor=0.5),
    "cohere2_vision": MIXED,
    "exaone4_5": MIXED,
    "internvl": {"text": "qwen2"},
    "idefics3": {"text": "llama"},
    "voxtral": {"text": "llama"},
    "qwen2_audio": {"text": "qwen2"},
    "lfm2_vl": {"text": "lfm2"},
    "qwen3_5_moe": {"text": "qwen3_5_moe_text"},
    "qwen4_exp": {"text": "qwen4_exp_text"},
    "llama4": {"text": "llama4_text"},
    # four states in the place of one, KDA, and an index that learns what each token of a block counts, whose choice two layers take
    "glm5_next": {
        **_ROUTED_EXPERTS, **_LATENT, **_CHANNELS, "qk_rope_head_dim": 0, "q_lora_rank": 48, "kv_lora_rank": 40, "v_head_dim": 16,
        **_INDEX, "index_kpool": 4, "num_hidden_layers": 5, "mlp_layer_types": ["dense", *["sparse"] * 4],
        "layer_types": ["linear_attention", *["indexed_attention"] * 2, "linear_attention", "indexed_attention"],
        "indexer_types": ["full", "full", "shared", "full", "full"],
    },
    # a whole language model within
    "nemotron_h_omni": {"text": "nemotron_h-experts"},
    "glm4v_moe": {**_ROUTED_EXPERTS, "head_dim": 16, **sections(2, 1, 1, partial_rotary_factor=0.5)},
    # Linears that are stored in two tensors; it is published with sparse attention
    "minimax_m3_vl-full": {
        "model_type": "minimax_m3_vl", **_LOCAL_EXPERTS, "head_dim": 16, "rotary_dim": 8, "dense_intermediate_size": 128,
        "shared_intermediate_size": 64, "mlp_layer_types": ["dense", "sparse", "sparse"], "layer_types": ["full_attention"] * 3,
    },
    # stacks of matrices that are published apart, other numbers of heads in layers with a window, and limits of what gates give
    "step3p7": {
        **_ROUTED_EXPERTS, "head_dim": 16, "num_sliding_attention_heads": 6, "share_expert_dim": 96, "hidden_act": "silu",
        **_SLIDING, "mlp_layer_types": ["dense", "sparse", "sparse"], "moe_router_scaling_factor": 2.0,
        "swiglu_limits": [0, 0.5, 0], "swiglu_limits_shared": [0, 0, 0.7],
    },
    # experts of its own for images, stored among those for texts; routers that are stored transposed
    "ernie4_5_vl_moe": {
        "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": [64, 128], "moe_num_shared_experts": 1, "head_dim": 16,
        **sections(3, 3, 2), "tie_word_embeddings": False,
    },
    # those that write in models which also speak
    "qwen2_5_omni_thinker": {**sections(2, 3, 3), "beside": {"vision_start_token_id": 251}},
    "qwen3_omni_moe_thinker": {
        **_EXPERTS, "head_dim": 16, **sections(3, 3, 2, mrope_interleaved=True), "beside": {"vision_start_token_id": 251},
    },
    # a norm behind each expert, experts of another width, gates on residuals, and layers without a rope
    "muse_spark": {
        **_LOCAL_EXPERTS, "head_dim": 16, "moe_hidden_size": 128, "intermediate_size": 160, "moe_intermediate_size": 64, **MIXED,
        "mlp_layer_types": ["dense", "sparse", "sparse"], "final_logit_softcapping": 5.0, "output_multiplier": 0.5,
        "layer_rope_theta": [1e4, 0, 1e4], "qk_scale_factor": 2.0,
        "beside": {"audio_config": {
            "hidden_sizes": [16, 32], "depths": [1, 1], "patch_sizes": [16, 6], "num_hidden_layers": 2, "out_hidden_size": 64,
        }},
    },
    # gates that are stored row by row between what they gate
    "inkling_mm_model": {"text": "inkling_text", "beside": {"vision_config": {"num_hidden_layers": 4, "patch_size": 4}}},
    "qwen3_vl_moe": {**_EXPERTS, "head_dim": 16, **sections(3, 3, 2, mrope_interleaved=True)},
}  # fmt: skip
# Sizes of the other parts of a multimodal model, by the names that their configs may have.
OTHER_PARTS: dict[str, int] = {
    "hidden_size": 32, "embed_dim": 32, "hidden_dim": 32, "d_model": 32, "intermediate_size": 64, "encoder_ffn_dim": 64,
    "num_hidden_layers": 2, "num_layers": 2, "depth": 2, "encoder_layers": 2, "num_attention_heads": 2, "num_heads": 2,
    "num_key_value_heads": 2, "encoder_attention_heads": 2, "head_dim": 16, "image_size": 32, "out_hidden_size": 64,
    "projection_dim": 64, "output_dim": 64, "num_position_embeddings": 64,
    "projector_hidden_size": 64, "alignment_intermediate_size": 64,
}  # fmt: skip


def wrapper(kind: str, **changes: Any) -> Any:
    """The config of a tiny multimodal model; `changes` are those of its text model, `beside` those of its own values."""
    own = {**WRAPPERS.get(kind, {}), **changes}
    beside = own.pop("beside", {})
    base = CONFIG_MAPPING[own.pop("model_type", kind)]()
    text = base.get_text_config(decoder=True)
    parts: dict[str, Any] = {}
    tied: dict[str, bool] = {}
    for name in base.sub_configs:
        part = getattr(base, name, None)
        if part is text:
            family = own.pop("text", None)
            values = {**COMMON, **FAMILIES.get(family, MIXTURES.get(family, {})), **own}
            parts[name] = {"model_type": family or text.model_type} | values
            tied = {key: value for key, value in values.items() if key == "tie_word_embeddings"}
        elif part is not None:
            known = {name: value for name, value in part.to_dict().items() if name != "layer_types"}
            names = {part.attribute_map.get(size, size): value for size, value in OTHER_PARTS.items()}
            parts[name] = known | {size: value for size, value in names.items() if isinstance(known.get(size), int)}
    known = {name: value for name, value in base.to_dict().items() if name not in (*parts, "model_type", "transformers_version")}
    return type(base)(**{**known, **{name: size for name, size in OTHER_PARTS.items() if name in known}, **tied, **parts, **beside})


def values_of(family: str, **changes: Any) -> dict[str, Any]:
    """The values of the config of a tiny model of `family`; `changes` of them."""
    values = {"model_type": family, **COMMON, **(FAMILIES | MORE_FAMILIES | MIXTURES).get(family, {}), **changes}
    for name in values.pop("without", ()):
        del values[name]
    return values


def stock(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """The transformers model; weights large enough that logits are not all alike. A multimodal one for a kind of wrapper."""
    torch.manual_seed(seed)
    if family in WRAPPERS:
        with left_out():
            model = AutoModelForMultimodalLM.from_config(wrapper(family, **changes), dtype=dtype).eval()
    else:
        config = AutoConfig.for_model(**values_of(family, **changes))
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15 if "embed" not in name else 1.0)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif name.endswith("sinks"):
                parameter.normal_(0, 2)
            # recurrent states remember for long
            elif name.endswith("A_log"):
                parameter.normal_(-5, 1)
        # what some routers add to the scores of their experts before they choose
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias", "moe_statics")):
                buffer.normal_(0, 0.1)
            # which experts a token goes to, where a table says so
            elif name.endswith("tid2eid"):
                buffer.copy_(torch.rand(len(buffer), config.n_routed_experts).argsort(dim=1)[:, : buffer.shape[1]])
            # what blocks multiply all by that they give
            elif name.endswith("layer_scalar"):
                buffer.fill_(0.75)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def save(directory: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Write the checkpoint and return the stock model."""
    model = stock(family, dtype, **changes)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return model


def opened(model: Path, **options: Any) -> LLM:
    """A checkpoint as an LLM for short texts, one at a time, that streams every exact weight; `options` say otherwise."""
    return LLM(model, **{"resident": "none", "memory": "1GiB", "context": 256, "rows": 1, **options})


def publish(directory: Path, kind: str, dtype: torch.dtype = torch.bfloat16, size: str = "1GB", **changes: Any) -> Any:
    """Write a multimodal checkpoint as such are published: in shards of `size`, with tensors of a head that guesses tokens (mtp) in
    a shard of their own, and the settings of an image processor. Returns the stock model."""
    model = stock(kind, dtype, **changes)
    model.save_pretrained(directory, max_shard_size=size)
    byte_tokenizer().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "NoSuchImageProcessor"}))
    more = {"mtp.fc.weight": torch.randn(64, 128).to(dtype), "mtp.norm.weight": torch.ones(64, dtype=dtype)}
    if kind.startswith("gemma3n"):
        # of the tower that is another library's, and of a layer that reads another's keys
        more["model.vision_tower.timm_model.conv_stem.conv.weight"] = torch.randn(8, 3, 3, 3).to(dtype)
        more["model.language_model.layers.5.self_attn.k_proj.weight"] = torch.randn(32, 64).to(dtype)
        more["model.language_model.layers.5.self_attn.k_norm.weight"] = torch.ones(16, dtype=dtype)
    save_file(more, directory / "model-mtp.safetensors", {"format": "pt"})
    index = directory / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
    else:
        names = load_file(directory / "model.safetensors")
        content = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    content["weight_map"] |= dict.fromkeys(more, "model-mtp.safetensors")
    index.write_text(json.dumps(content))
    return model


def publish_omni(directory: Path, kind: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Write a model that also speaks, as such are published: what writes in it beside what speaks. Returns the stock model that
    writes."""
    model = publish(directory, f"{kind}_thinker", dtype)
    (directory / "model.safetensors.index.json").unlink()
    (directory / "model-mtp.safetensors").unlink()
    tensors = {f"thinker.{name}": tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    tensors |= {f"talker.model.layers.{n}.mlp.up_proj.weight": torch.randn(8, 16).to(dtype) for n in range(2)}
    tensors["code2wav.decoder.0.conv.weight"] = torch.randn(4, 2, 3).to(dtype)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    place = directory / "config.json"
    whole = {"model_type": kind, "architectures": ["SpeakingModel"], "thinker_config": json.loads(place.read_text())}
    place.write_text(json.dumps(whole))
    return model


def generated(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy ids of transformers' own generate."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None)
    return out[0, len(prompt) :].tolist()
