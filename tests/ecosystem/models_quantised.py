"""Transformers that torchao quantised to MX and NVFP4, unmodified: their stored bytes are struck where they lie."""

import pytest
import torch
from torch import Tensor, nn

from tests.ecosystem.common import images, tokens
from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.reference import reference
from tests.support.stored_bytes import agree_with_bytes
from torchfault.campaign import Campaign, run
from torchfault.criteria import Top1Change
from torchfault.data import Data, leaves
from torchfault.engine import Engine
from torchfault.statistics import MaxTrials

transformers = pytest.importorskip("transformers")
flow = pytest.importorskip("torchao.prototype.mx_formats.inference_workflow")
quantization = pytest.importorskip("torchao.quantization")
mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def gpt2() -> tuple[nn.Module, Data]:
    """Return GPT-2 as it is: torchao takes its head, a linear layer, and leaves its own transposed ones."""
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config), Data({"input_ids": tokens(3, 6)})


def opt() -> tuple[nn.Module, Data]:
    """Return OPT, a decoder like GPT-2 whose layers are all linear ones."""
    config = transformers.OPTConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=64,
        max_position_embeddings=16, word_embed_proj_dim=32, use_cache=False,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config), Data({"input_ids": tokens(3, 6)})


def vit() -> tuple[nn.Module, Data]:
    """Return a vision transformer of four patches."""
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=32, **SIZES)
    return transformers.ViTForImageClassification(config), Data({"pixel_values": images(3, 16)})


def in_mx(element: torch.dtype) -> object:
    return flow.MXDynamicActivationMXWeightConfig(
        activation_dtype=element, weight_dtype=element, kernel_preference=mx.KernelPreference.EMULATED
    )


CONFIGS = {
    "mxfp8": in_mx(torch.float8_e4m3fn),
    "mxfp4": in_mx(torch.float4_e2m1fn_x2),
    "nvfp4": flow.NVFP4WeightOnlyConfig(),
}
MODELS = {"gpt2": gpt2, "opt": opt, "vit": vit}


def chosen(module: nn.Module, name: str) -> bool:
    """Tell which layers are quantised: not ViT's head, since torchao's MX takes no slice as an input."""
    return isinstance(module, nn.Linear) and name != "classifier"


def near(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=0.02, atol=0.02, equal_nan=True)


@pytest.mark.parametrize(("name", "how"), [("gpt2", "nvfp4"), ("opt", "mxfp8"), ("vit", "mxfp4"), ("vit", "nvfp4")])
def test_words_of_quantised_transformers_are_struck_where_they_lie(name: str, how: str) -> None:
    torch.manual_seed(0)
    model, data = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # else hardly any change reaches the output
    if how != "nvfp4":  # which torchao multiplies in bfloat16 alone
        model = model.bfloat16()
        data = Data({key: x.bfloat16() if x.is_floating_point() else x for key, x in data.inputs.items()})
    quantization.quantize_(model.eval(), CONFIGS[how], filter_fn=chosen)
    engine = Engine(model, data)
    packed = [site for site in engine.space.sites if f"{site.name.partition(':')[0]}:scale" in engine.space.names]
    assert len({site.name for site in packed}) >= 2
    assert agree_with_bytes(engine, packed[-4:], 6, near) >= 1  # most scales fill up tiles, and do nothing
    if how == "nvfp4":  # in float32; sums in bfloat16 differ by batch size
        others = engine.space.select([s.name for s in engine.space.sites if s not in packed and s.word == "float32"])
        drawn = random_trials(others, len(data), 12)
        assert_agree(collect(engine, drawn), leaves(reference(model, data, drawn)))
    scales = engine.space.select("*:scale")
    found = run(Campaign(engine, scales, criterion=Top1Change(axis=-1), stop=MaxTrials(24))).estimate()
    assert 0 <= found.low <= found.value <= found.high <= 1
