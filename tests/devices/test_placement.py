"""No tensor is on the wrong side: the whole way of a token with a device that only looks like "cuda"."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fake_device import FakeDevice
from tests.placement import Placement
from tests.tiny import save
from understudy import LLM, SamplingParams, devices
from understudy.codecs import Encoded
from understudy.devices import DEVICES
from understudy.drafters.search import SearchDrafter
from understudy.quantizers import Linear

pytest.importorskip("triton")


class LooksLikeCuda(FakeDevice):
    def __init__(self, placement: Placement, **options: Any):
        super().__init__(**options)
        self.placement, self.where = placement, "cuda"

    def arena(self, nbytes: int) -> Tensor:
        return self.placement.put(torch.full((nbytes,), 0xFF, dtype=torch.uint8))

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, nodes: Any, spec: Any) -> Tensor:
        with self.placement.kernel(query, keys, values, nodes.rows, nodes.positions, nodes.prefix):
            out = super().attend(query, keys, values, nodes, spec)
        return self.placement.put(out)

    def draft_product(self, quantizer: Any, tensors: Any, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        multiply = super().draft_product(quantizer, tensors, shape, dtype)
        if not self.triton or "codes" not in tensors:
            return multiply

        def checked(x: Tensor) -> Tensor:
            with self.placement.kernel(x, *tensors.values()):
                out = multiply(x)
            return self.placement.put(out)

        return checked

    def search_kernels(self) -> None:
        """Torch's operations search: where tensors of the kernels lie, they are told by the search that they replace."""

    def _sound(self, products: str, dtype: torch.dtype, off: Any) -> bool:
        tensors = next(each for each in off.args if isinstance(each, dict))
        with self.placement.kernel(*tensors.values()):
            return super()._sound(products, dtype, off)

    def decode(self, decoder: Any, part: Encoded, out: Tensor | None = None) -> Tensor:
        if decoder.name == "raw":
            return super().decode(decoder, part, out)
        with self.placement.kernel(part.data, *part.substitute.values(), out):
            return super().decode(decoder, part, out)


def test_the_imitation_refuses_what_a_gpu_would() -> None:
    with Placement() as placement:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.device.type == "cuda" and here.device.type == "cpu" and (there + there).device.type == "cuda"
        assert (there * 2).cpu().device.type == "cpu" and here.to("cuda").device.type == "cuda"
        assert there[torch.tensor([0, 1])].device.type == "cuda" and (there * torch.tensor(2.0)).device.type == "cuda"
        for wrong in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here[there.long()],
            lambda: there.numpy(),
        ):
            with pytest.raises(AssertionError):
                wrong()
        assert placement.crossings == 2


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2", {"codec": "raw", "triton": False}),
        ("gemma3_text", {"codec": "raw", "triton": False}),
        ("gemma4-e", {"codec": "raw", "triton": False}),
        ("llama", {"codec": "delta", "memory": "870MiB", "rows": 1, "resident": "auto"}),
        ("qwen2", {"method": "ngram", "quantizer": "int8", "triton": False}),
    ],
)
def test_every_tensor_is_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, options: dict[str, Any]
) -> None:
    layers_of_each = {"gemma3_text": 2, "gemma4-e": 4}.get(family, 1)
    changes = {"num_hidden_layers": layers_of_each} | ({"num_kv_shared_layers": 2} if layers_of_each == 4 else {})
    kinds = ["sliding_attention", "full_attention"] * (layers_of_each // 2)
    layers = {"layer_types": kinds} if kinds else {}
    save(tmp_path / "model", family, torch.bfloat16, hidden_size=64, intermediate_size=96, **changes, **layers)
    triton = options.get("triton", True)
    options = {name: value for name, value in options.items() if name != "triton"}
    asked = {"memory": "2GiB", "resident": "none", "context": 64, "rows": 2, "device": "fake", **options}
    params = [
        SamplingParams(max_new_tokens=4, ignore_eos=True),
        SamplingParams(max_new_tokens=3, temperature=0.8, top_p=0.9, seed=1),
    ]
    monkeypatch.setitem(DEVICES, "fake", "")
    monkeypatch.setattr(SearchDrafter, "warm", lambda self: None)  # the interpreter is slow
    if triton:
        # It asks a real GPU how many programs run at once.
        monkeypatch.setattr("understudy.kernels.gpu.draft_product.running", lambda device, each: 1)
    with Placement() as placement:
        monkeypatch.setattr(devices, "find", lambda *_: lambda: LooksLikeCuda(placement, triton=triton))
        with LLM(tmp_path / "model", **asked) as llm:
            prompts = [[5, 99, 5, 12, 80, 5, 99, 5], [5, 99, 5, 12]]
            done = llm.generate(prompts if not triton else prompts[1:], params if not triton else params[:1])
            assert placement.there(llm.model.cache.layers[0].keys)
            drafts = options.get("method") != "ngram"
            assert placement.there(llm.model.module.get_input_embeddings().weight)
            if drafts:
                search = llm.engine.drafter.search
                assert search.replayed + search.captured > 0 if triton else search.tensors is not None
                assert placement.there(search.tensors.state.memory) and not placement.there(search.given.memory)
    assert placement.crossings > 10 and len(done[0].token_ids) == 4
