"""Models that torchao quantised to blocks with a scale, unmodified: their stored bytes are struck where they lie."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.stored_bytes import agree_with_bytes
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.model.discover import find
from torchfault.space import Fault
from torchfault.words import word

mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
flow = pytest.importorskip("torchao.prototype.mx_formats.inference_workflow")
quantization = pytest.importorskip("torchao.quantization")
pytestmark = pytest.mark.filterwarnings("ignore")  # both libraries warn that parts of torch will go one day

EMULATED = mx.KernelPreference.EMULATED
INPUTS = torch.randn(6, 10, generator=torch.Generator().manual_seed(2)).bfloat16()


class Attention(nn.Module):
    """A block of a transformer as in GPT-2: attention and two layers, each beside a shortcut."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attend(self.first(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Network(nn.Module):
    """A small transformer that classifies ten numbers, five tokens or patches of two."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(2, 32), Attention(), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x.unflatten(1, (5, 2)))).mean(1))


def large(module: nn.Module, _: str) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % 32 == 0


def quantised(config: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Network().bfloat16().eval()
    quantization.quantize_(model, config, filter_fn=large)
    return model


def near(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=0.02, atol=0.02, equal_nan=True)


def in_mx(element: torch.dtype) -> object:
    return flow.MXDynamicActivationMXWeightConfig(
        activation_dtype=element, weight_dtype=element, kernel_preference=EMULATED
    )


CONFIGS = {
    "mxfp8 e4m3": (in_mx(torch.float8_e4m3fn), "float8_e4m3fn", "float8_e8m0fnu"),
    "mxfp8 e5m2": (in_mx(torch.float8_e5m2), "float8_e5m2", "float8_e8m0fnu"),
    "mxfp4": (in_mx(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2", "float8_e8m0fnu"),
    "nvfp4": (flow.NVFP4WeightOnlyConfig(), "float4_e2m1fn_x2", "float8_e4m3fn"),
}


@pytest.mark.parametrize("executor", ["auto", "hooks"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_lane_is_what_editing_the_bytes_by_hand_gives(name, executor):
    config, element, scale = CONFIGS[name]
    model, data = quantised(config), Data(INPUTS)
    engine = Engine(model, data, executor=executor)
    assert executor == "hooks" or (engine.executor, engine.fallback) == ("graph", None)
    sites = {site.name: site for site in engine.space.sites if site.name.startswith("block.up.weight")}
    per_tensor = {"block.up.weight:per_tensor_scale": ("float32", "scale")} if name == "nvfp4" else {}
    expected = {"block.up.weight": (element, "weight"), "block.up.weight:scale": (scale, "scale"), **per_tensor}
    assert {name: (site.word, site.kind) for name, site in sites.items()} == expected
    # Scales are stored in tiles, which are larger than these layers.
    assert agree_with_bytes(engine, list(sites.values()), 16, near) > 5


@pytest.mark.parametrize(("element", "name"), [(mx.DTYPE_FP6_E3M2, "e3m2fn"), (mx.DTYPE_FP6_E2M3, "e2m3fn")])
def test_codes_of_six_bits_are_words_of_six_bits(element, name):
    layer = nn.Linear(32, 4, bias=False).bfloat16()
    how = mx.QuantizeTensorToMXKwargs(elem_dtype=element)  # of what the layer reads
    kept = mx.MXTensor.to_mx(layer.weight.detach(), element, 32, act_quant_kwargs=how)
    layer.weight = nn.Parameter(kept, requires_grad=False)
    site = find(nn.Sequential(layer).eval(), torch.zeros(3, 32).bfloat16()).space.site("0.weight")
    assert (site.word, site.width) == (name, 6)
    before = kept.qdata.clone()
    with inject(layer, Fault("weight", (2, 5), bit=5)):
        assert kept.dequantize(torch.float32)[2, 5] == -keep_of(kept, before)[2, 5]
    assert torch.equal(kept.qdata, before)
    with pytest.raises(Exception, match="bit 6 is outside"):
        inject(layer, Fault("weight", (2, 5), bit=6)).__enter__()
    assert word(name).width == 6


def keep_of(kept: "mx.MXTensor", codes: Tensor) -> Tensor:
    """Return what the tensor stands for with these *codes*."""
    return mx.to_dtype(codes, kept.scale, kept.elem_dtype, 32, torch.float32)
