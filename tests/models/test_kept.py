"""What is not streamed is exact in both views, in the type in which transformers holds it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests import fake_device
from tests.fake_device import FakeDevice
from tests.tiny import byte_tokenizer, generated, stock
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.errors import CheckpointError
from understudy.models import kept
from understudy.models.stock import structure
from understudy.models.stock.stored_tensors import stored_buffers
from understudy.models.streamed import StreamedLinear, attention_name


class SameForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T if self.bias is None else x @ self.weight.T + self.bias


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class Stumbling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(-1, 3, 1_000))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_is_what_computes_as_one(bias: bool) -> None:
    plain = [nn.Linear(300, 200, bias=bias), SameForward(300, 200, bias=bias)]
    assert all(map(kept.is_linear, plain))
    assert not any(kept.is_linear(kind(300, 200, bias=bias)) for kind in (Scaled, Pair, Stumbling))
    assert not kept.is_linear(nn.Identity())
    bare = SameForward(300, 200, bias=bias, device="meta")
    weight = bare.weight
    assert kept.is_linear(bare) and bare.weight is weight and bare.out_features == 200, "what is tried is a copy"


def test_what_decides_does_not_stream() -> None:
    assert kept.streams(nn.Linear(512, 64), False) and kept.streams(nn.Linear(64, 32), False)
    assert not kept.streams(nn.Linear(512, 63), False), "a gate with fewer outputs than a block"
    assert not kept.streams(nn.Linear(4, 16), False), "coefficients, of which there is no block"
    assert not kept.streams(nn.Linear(512, 64), True), "transformers holds it in float32"
    assert not kept.streams(Scaled(512, 64), False)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((10_000_000,), True), ((8192, 1, 4), True), ((8192, 16), True), ((2, 8, 8), False), ((4096, 2048), False), ((1, 9), True)],
)
def test_small_weights_may_be_kept_and_stacks_of_matrices_may_not(shape: tuple[int, ...], fits: bool) -> None:
    assert kept.may_be_kept(nn.Parameter(torch.empty(shape, device="meta"))) is fits


class Gated(nn.Module):
    """In the place of a block's output projection: it with a gate, a scale, a router of its own class and a stored buffer."""

    def __init__(self, down: nn.Linear) -> None:
        super().__init__()
        self.down = down
        self.gate = nn.Linear(down.in_features, 2)
        self.router = Scaled(down.in_features, 3, bias=False)
        self.table = nn.Parameter(torch.empty(down.out_features, 1, 4))
        self.register_buffer("layer_scalar", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x) * self.gate(x).sigmoid().sum(-1, keepdim=True) * self.layer_scalar
        return (y + self.table.sum((1, 2)) * self.router(x).softmax(-1)[..., :1]).to(x.dtype)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llamas are built with a `Gated` in each block; `table` and `layer_scalar` are held in float32."""
    from transformers.models.llama import modeling_llama

    original = modeling_llama.LlamaMLP.__init__

    def init(self: Any, config: Any) -> None:
        original(self, config)
        self.down_proj = Gated(self.down_proj)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "__init__", init)
    monkeypatch.setattr(modeling_llama.LlamaPreTrainedModel, "_keep_in_fp32_modules_strict", ["layer_scalar", "table"])


def saved(directory: Path, dtype: torch.dtype) -> Any:
    model = stock("llama", dtype)
    for name, tensor in model.state_dict().items():
        if name.endswith("layer_scalar"):
            tensor.fill_(1.37)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_each_is_held_in_the_type_in_which_transformers_holds_it(gated: None, tmp_path: Path, dtype: torch.dtype) -> None:
    saved(tmp_path, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).state_dict()
    name = str(dtype).removeprefix("torch.")
    with LLM(tmp_path, dtype=name, resident="none", memory="1GiB", context=128) as llm:
        module = llm.model.module
        ours = {**dict(module.named_parameters()), **{n: module.get_buffer(n) for n in stored_buffers(module)}}
        streamed = {f"{path}.weight" for path, m in module.named_modules() if isinstance(m, StreamedLinear)}
        kinds = {type(m) for m in module.modules()}
    compared = {name for name, tensor in ours.items() if name in theirs and "embed_tokens" not in name}
    assert compared | streamed | {"model.embed_tokens.weight"} == set(theirs)
    assert sum("gate.weight" in name or "router" in name or "layer_scalar" in name or "table" in name for name in compared) == 12
    for name in compared:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name
    assert {Scaled, nn.Linear} <= kinds


@pytest.mark.parametrize("device", ["cpu", "fake"])
def test_a_model_with_weights_that_are_kept_is_exact(
    gated: None, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_device, "open_fake", partial(FakeDevice, triton=False))
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    prompt, params = [17, 45, 45, 200, 3], SamplingParams(max_new_tokens=24, ignore_eos=True)
    options: dict[str, Any] = {"resident": "none", "memory": "1GiB", "device": device, "codec": "raw"}
    expected = generated(saved(tmp_path / "single", torch.float32), prompt, 24)
    with LLM(tmp_path / "single", **options, context=128) as llm:
        assert llm.generate(prompt, params)[0].token_ids == expected
    saved(tmp_path / "half", torch.bfloat16)
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path / "half", method=method, **options, context=128) as llm:
            done = llm.generate(prompt, params)[0]
            texts.append(done.token_ids)
    assert texts[0] == texts[1] and done.stats.accepted > 0 and done.stats.bytes_streamed > 0


def test_a_convolution_that_the_stock_code_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    original = modeling_llama.LlamaMLP.__init__

    def init(self: Any, config: Any) -> None:
        original(self, config)
        self.act_fn = nn.Conv1d(160, 160, 4, groups=160, padding=3)
        self.act_fn.forward = lambda x: x  # type: ignore[method-assign]

    monkeypatch.setattr(modeling_llama.LlamaMLP, "__init__", init)
    model = structure.skeleton(stock("llama").config, torch.float32, attention_name())
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.act_fn is a convolution over neighbouring tokens"):
        structure.trace(model, structure.streamed_linears(model))
