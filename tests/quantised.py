"""Tiny checkpoints in the form in which quantised models are published: FP8 in blocks or with one scale, and MXFP4."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

from tests.tiny import MIXTURES, save
from understudy.weights.packed import Packed
from understudy.weights.shards import TensorInfo

# What stays in bfloat16: tables, heads, norms and routers.
LEFT = ("embed", "lm_head", "norm", "mlp.gate.", "moe.gate.", "router")
LARGEST = 448.0
# A mixture whose matrices have whole blocks of 32.
GPT_OSS = {**MIXTURES["gpt_oss"], "hidden_size": 64, "intermediate_size": 64}


def to_fp8(weight: Tensor, block: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix, whose last blocks may be cut off; None: one scale for all."""
    rows, columns = weight.shape
    high, wide = block or (rows, columns)
    scales = torch.empty(-(-rows // high), -(-columns // wide))
    codes = torch.empty(rows, columns)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            own = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
            scales[i, j] = weight[own].float().abs().max().clamp(min=1e-12) / LARGEST
            codes[own] = weight[own].float() / scales[i, j]
    return codes.to(torch.float8_e4m3fn), scales if block else scales.view(())


def to_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., n / 32, 16], two a byte, and the exponent of each block of 32 numbers."""
    blocks = weight.float().unflatten(-1, (-1, 32))
    scales = (blocks.abs().amax(-1).clamp(min=1e-12).log2().floor() - 2 + 127).clamp(1, 254).to(torch.uint8)
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    scaled = blocks / torch.exp2(scales.float() - 127)[..., None]
    codes = (scaled.abs()[..., None] - values).abs().argmin(-1).to(torch.uint8) | (scaled < 0).to(torch.uint8) << 3
    return codes[..., ::2] | codes[..., 1::2] << 4, scales


def to_int4(weight: Tensor, group: int = 32) -> tuple[Tensor, Tensor]:
    """Codes, eight in an int32, and bfloat16 scales of each row's groups, as compressed-tensors packs them."""
    groups = weight.float().unflatten(-1, (-1, group))
    scales = (groups.abs().amax(-1).clamp(min=1e-6) / 7.5).to(torch.bfloat16)
    codes = (groups / scales.float()[..., None]).round().clamp(-8, 7).add(8).to(torch.uint8).flatten(-2)
    return (codes[..., ::2] | codes[..., 1::2] << 4).contiguous().view(torch.int32), scales


def to_asymmetric(weight: Tensor, group: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales as `to_int4` has them, of codes less their zero points; and these, eight rows in an int32."""
    codes, zeros, scales = asymmetric(weight, group, torch.bfloat16)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).contiguous().view(torch.int32)
    more = torch.zeros(-len(zeros) % 8, zeros.shape[1], dtype=torch.uint8)
    return packed, scales, words(torch.cat((zeros, more)).T.contiguous(), range(8)).T.contiguous()


def asymmetric(weight: Tensor, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [rows, columns], and zero points and scales [rows, groups] of this type."""
    groups = weight.float().unflatten(-1, (-1, group))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low).clamp(min=1e-3) / 15).to(dtype)
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    return codes.to(torch.uint8).flatten(-2), zeros.to(torch.uint8), scales


def words(codes: Tensor, order: Iterable[int]) -> Tensor:
    """Codes [n, m] as int32 [n, m / 8]: of eight neighbours, the one that `order` names first is in the lowest bits."""
    found = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for place, number in enumerate(order):
        found |= codes[:, number::8].to(torch.int64) << 4 * place
    return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32)


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def to_awq(weight: Tensor, group: int = 32, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The tensors of a matrix as AWQ has them."""
    codes, zeros, scales = asymmetric(weight, group, dtype)
    columns = codes.T.contiguous(), zeros.T.contiguous()
    return {"qweight": words(columns[0], AWQ_ORDER), "qzeros": words(columns[1], AWQ_ORDER), "scales": scales.T.contiguous()}


def to_gptq(
    weight: Tensor, group: int = 32, dtype: torch.dtype = torch.float16, *, less: int = 1, symmetric: bool = False,
    order: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a matrix as GPTQ has them, with zero points that are `less` than they are. `order`: that in which columns are
    put in groups; None: as they stand, without a tensor that says so."""
    columns = weight.shape[1]
    own = weight if order is None else weight[:, order]
    codes, zeros, scales = asymmetric(own, group, dtype)
    if symmetric:
        scales = (own.float().unflatten(-1, (-1, group)).abs().amax(-1).clamp(min=1e-3) / 7.5).to(dtype)
        steps = own.float().unflatten(-1, (-1, group)) / scales.float()[..., None]
        codes, zeros = (steps.round().clamp(-8, 7) + 8).to(torch.uint8).flatten(-2), torch.full_like(zeros, 8)
    # a zero point of 0 cannot be published as less
    zeros = zeros.clamp(min=less)
    made = {"qzeros": words(zeros.T.contiguous() - less, range(8)), "scales": scales.T.contiguous()}
    if order is not None:
        places = torch.empty_like(order)
        places[order] = torch.arange(columns)
        codes, made["g_idx"] = codes[:, places], (places // group).to(torch.int32)
    made["qweight"] = words(codes, range(8)).T.contiguous()
    return made


def code_at(word: Tensor, place: int) -> int:
    """The code in the bits from 4 * `place` on of a word."""
    return int(word) >> 4 * place & 15


def reference(made: dict[str, Tensor], method: str, dtype: torch.dtype, less: int = 0) -> Tensor:
    """The weight that these tensors stand for, number by number: what transformers multiplies by without kernels of its own."""
    groups, outputs = made["scales"].shape
    scales = made["scales"].to(torch.float16)
    awq = method == "awq"
    inputs = len(made["qweight"]) * (1 if awq else 8)
    zeros = [int(word) & 0xFFFFFFFF for word in made["qzeros"].flatten()]
    zeros = torch.tensor([(word + less * 0x11111111) & 0xFFFFFFFF for word in zeros]).view(made["qzeros"].shape)
    numbers = torch.empty(outputs, inputs, dtype=torch.int8)
    for o in range(outputs):
        at = AWQ_ORDER.index(o % 8) if awq else o % 8
        for i in range(inputs):
            group = int(made["g_idx"][i]) if "g_idx" in made else i * groups // inputs
            code = code_at(made["qweight"][i, o // 8], at) if awq else code_at(made["qweight"][i // 8, o], i % 8)
            numbers[o, i] = code - code_at(zeros[group, o // 8], at)
    each = made["g_idx"].long() if "g_idx" in made else torch.arange(inputs) * groups // inputs
    return numbers * scales.to(dtype).T[:, each] if awq else (numbers * scales.T[:, each]).to(dtype)


def publish_words(directory: Path, family: str, method: str, dtype: torch.dtype = torch.float16, **options: Any) -> None:
    """Write a checkpoint of this family with its Linears as `method` has them, "awq" or "gptq"; options: those of `to_gptq`, and as
    `changes` what is other in its config."""
    save(directory, family, dtype, **options.pop("changes", {}))
    made: dict[str, Tensor] = {}
    scattered = options.pop("scattered", False)
    for name, tensor in load_file(directory / "model.safetensors").items():
        if not name.endswith(".weight") or tensor.dim() != 2 or any(word in name for word in LEFT):
            made[name] = tensor
            continue
        if scattered:
            options["order"] = torch.randperm(tensor.shape[1], generator=torch.Generator().manual_seed(len(made)))
        own = to_awq(tensor, dtype=dtype) if method == "awq" else to_gptq(tensor, dtype=dtype, **options)
        made |= {f"{name.removesuffix('weight')}{end}": each for end, each in own.items()}
    config = {"quant_method": method, "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    if method == "gptq":
        config = {"quant_method": method, "bits": 4, "group_size": 32, "desc_act": scattered, "sym": bool(options.get("symmetric"))}
        config["checkpoint_format"] = "gptq" if options.get("less", 1) else "gptq_v2"
    rewrite(directory, made, config)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**values, "dtype": str(dtype).removeprefix("torch.")}))


def compressed(kind: str) -> dict[str, Any]:
    """The `quantization_config` of compressed-tensors in FP8, one scale a row, or in codes of four bits, one for 32 columns."""
    weights: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "channel"}
    if kind == "int4":
        weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    how = "pack-quantized" if kind == "int4" else "float-quantized"
    if kind == "asymmetric":
        return {**compressed("int4"), "config_groups": {"group_0": _asymmetric(compressed("int4")["config_groups"]["group_0"])}}
    weights |= {"symmetric": True, "dynamic": False, "observer": "minmax"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": how, "config_groups": {"group_0": group}, "ignore": ["lm_head"],
        "quantization_status": "compressed", "kv_cache_scheme": None,
    }  # fmt: skip


def _asymmetric(group: dict[str, Any]) -> dict[str, Any]:
    return {**group, "weights": {**group["weights"], "symmetric": False}}


def settings(form: str, block: tuple[int, int] | None) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint in this form."""
    if form == "mxfp4":
        return {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": block and list(block)}


def publish_fp8(directory: Path, family: str, block: tuple[int, int] | None = (32, 32), **changes: Any) -> None:
    """Write a checkpoint of this family with its Linears in FP8; per tensor, activations have scales too."""
    save(directory, family, torch.bfloat16, **changes)
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        made[name] = tensor
        if name.endswith(".weight") and tensor.dim() in (2, 3) and not any(word in name for word in LEFT):
            matrices = [to_fp8(matrix, block) for matrix in tensor.view(-1, *tensor.shape[-2:])]
            made[name], made[f"{name}_scale_inv"] = (torch.stack(part) for part in zip(*matrices, strict=True))
            if tensor.dim() == 2:
                made[name], made[f"{name}_scale_inv"] = (made[each][0] for each in (name, f"{name}_scale_inv"))
            if block is None:
                made[f"{name.removesuffix('.weight')}.activation_scale"] = torch.tensor(0.5)
    rewrite(directory, made, settings("fp8", block))


def publish_deepseek_v4(directory: Path, block: tuple[int, int] = (8, 8), **changes: Any) -> None:
    """Write a DeepSeek-V4 as it is published: experts in MXFP4, two codes a byte, other Linears in FP8 in blocks, with exponents
    for scales, and what compresses keys in bfloat16."""
    save(directory, "deepseek_v4", torch.bfloat16, **changes)
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        path = name.removesuffix(".weight")
        if ".experts." in name:
            codes, scales = to_mxfp4(tensor)
            made |= {name: codes.flatten(-2).view(torch.int8), f"{path}.scale": scales.view(torch.float8_e8m0fnu)}
        elif path.endswith(("wq_a", "wq_b", "attn.wkv", "wo_a", "wo_b", "w1", "w2", "w3")):
            _, scales = to_fp8(tensor, block)
            powers = scales.log2().ceil().exp2()
            whole = powers.repeat_interleave(block[0], 0)[: len(tensor)].repeat_interleave(block[1], 1)[:, : tensor.shape[1]]
            codes = (tensor.float() / whole).to(torch.float8_e4m3fn)
            made |= {name: codes, f"{path}.scale": powers.to(torch.float8_e8m0fnu)}
        else:
            made[name] = tensor
    rewrite(directory, made, {**settings("fp8", block), "expert_dtype": "fp4", "scale_fmt": "ue8m0"})


def as_published(name: str, weight: Tensor, form: str) -> dict[str, Tensor]:
    """The tensors of a matrix `weight` in FP8 in blocks ("fp8"), or as compressed-tensors has FP8 ("channels"), "int4", or codes of
    four bits with zero points ("asymmetric"), or as AWQ has it."""
    if form == "fp8":
        codes, scales = to_fp8(weight, (8, 8))
        return {name: codes, f"{name}_scale_inv": scales}
    if form == "channels":
        codes, scales = to_fp8(weight, (1, weight.shape[1]))
        return {name: codes, f"{name}_scale": scales.to(torch.bfloat16)}
    if form == "awq":
        return {f"{name.removesuffix('weight')}{end}": each for end, each in to_awq(weight).items()}
    more: dict[str, Tensor] = {}
    if form == "asymmetric":
        codes, scales, more[f"{name}_zero_point"] = to_asymmetric(weight)
    else:
        codes, scales = to_int4(weight)
    return {f"{name}_packed": codes, f"{name}_scale": scales, f"{name}_shape": torch.tensor(weight.shape), **more}


def publish_compressed(directory: Path, family: str, kind: str, **changes: Any) -> None:
    """Write a checkpoint of this family with its Linears as compressed-tensors stores them, in "fp8", "int4" or "asymmetric"."""
    save(directory, family, torch.bfloat16, **changes)
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if not name.endswith(".weight") or tensor.dim() != 2 or any(word in name for word in LEFT):
            made[name] = tensor
        else:
            made |= as_published(name, tensor, "channels" if kind == "fp8" else kind)
    rewrite(directory, made, compressed(kind))


def publish_mxfp4(directory: Path, **changes: Any) -> None:
    """Write a gpt-oss as it is published."""
    save(directory, "gpt_oss", torch.bfloat16, **{**GPT_OSS, **changes})
    made: dict[str, Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            made[f"{name}_blocks"], made[f"{name}_scales"] = to_mxfp4(tensor.transpose(1, 2).contiguous())
        else:
            made[name] = tensor
    rewrite(directory, made, settings("mxfp4", None))


def rewrite(directory: Path, made: dict[str, Tensor], quantization: dict[str, Any] | None = None) -> None:
    """Write other tensors into a checkpoint of one file, and how they are quantised into its config."""
    save_file(made, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config))


def dequantised(directory: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """What transformers makes of such a checkpoint: in bfloat16, and the same weights in float32 where `dtype` says so."""
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    kinds = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config, "compressed-tensors": CompressedTensorsConfig}
    kind = kinds[config["quant_method"]]
    told = {name: value for name, value in config.items() if name not in ("quant_method", "fmt")}
    model = AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=kind(**told, dequantize=True), dtype=torch.bfloat16
    )
    return as_usual(model).to(dtype).eval()


def as_usual(model: Any) -> Any:
    """A dequantised model as one that knows nothing of it, which may take another type."""
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    return plain


def packed(codes: Tensor, scales: Tensor, block: tuple[int, int]) -> Packed:
    """How `codes` and `scales` are published, in no file."""
    infos = [TensorInfo("w", tensor.dtype, tuple(tensor.shape), Path(), 0, tensor.nbytes) for tensor in (codes, scales)]
    return Packed(infos[0], infos[1], block)
