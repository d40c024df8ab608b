"""Small recurrent states for the copy that is proven (`shrink.py`): few heads and groups, short keys; a head keeps its size."""

from __future__ import annotations

from typing import Any

# numbers in a key, and groups, at most
KEY, GROUPS = 32, 2
# numbers of a hidden state, where nothing else fixes how many there are
CHANNELS = 96
# heads that share a group where nothing else fixes how many there are
SHARING = 3


def narrow_states(values: dict[str, Any], hidden: str) -> None:
    """Few heads of recurrent layers in the values of a config, whose hidden size is called `hidden` and may have shrunk."""
    for key in ("mamba_d_state", "ssm_state_size", "state_size"):
        if values.get(key):
            values[key] = min(values[key], KEY)
    if values.get("linear_num_key_heads") and values["linear_num_value_heads"] % values["linear_num_key_heads"] == 0:
        shared = values["linear_num_value_heads"] // values["linear_num_key_heads"]
        values["linear_num_key_heads"] = min(values["linear_num_key_heads"], GROUPS)
        values["linear_num_value_heads"] = values["linear_num_key_heads"] * shared
    if values.get("linear_num_heads"):
        values["linear_num_heads"] = min(values["linear_num_heads"], SHARING)
    if values.get("time_step_limit") and values.get("state_size"):
        values["n_groups"] = min(values["n_groups"], GROUPS)
        values["num_heads"] = min(values["num_heads"], values["n_groups"] * SHARING)
        values[hidden] = values["num_heads"] * values["head_dim"] // values["expand"]
    elif values.get("time_step_rank") and values.get("state_size"):
        values[hidden] = min(values[hidden], CHANNELS)
        values["intermediate_size"] = int(values["expand"] * values[hidden])
        values["time_step_rank"] = min(values["time_step_rank"], KEY)
    if values.get("n_mamba_heads"):
        # what its class works out is in its values all the same
        inner = int(values["mamba_expand"] * values[hidden])
        values |= {"mamba_headdim": inner // values["n_mamba_heads"], "attention_hidden_size": 2 * values[hidden]}
        values["mamba_ngroups"] = min(values["mamba_ngroups"], GROUPS)
    if values.get("lru_width"):
        values["lru_width"] = values[hidden]
    if values.get("mamba_num_heads"):
        values["n_groups"] = min(values["n_groups"], GROUPS)
        values["mamba_num_heads"] = min(values["mamba_num_heads"], values["n_groups"] * SHARING)
    elif values.get("mamba_n_heads"):
        values["mamba_n_groups"] = groups = min(values["mamba_n_groups"], GROUPS)
        if values.get("mamba_d_ssm") is not None:
            values["mamba_n_heads"] = min(values["mamba_n_heads"], groups * SHARING)
            values["mamba_d_ssm"] = values["mamba_n_heads"] * values["mamba_d_head"]
        else:
            _share_out(values, values["mamba_expand"] * values[hidden], groups)


def _share_out(values: dict[str, Any], inner: int, groups: int) -> None:
    """Heads of the size they had that `inner` numbers give, or of the largest below it that they can be shared out among."""
    sizes = range(min(values["mamba_d_head"], inner), 0, -1)
    size = next(size for size in sizes if inner % size == 0 and inner // size % groups == 0)
    values |= {"mamba_d_head": size, "mamba_n_heads": inner // size}
