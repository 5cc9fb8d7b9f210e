"""Faults in parameters and buffers of every type that torch holds, sub-byte and packed ones included."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.torch_types import skip_without
from torchfault.adapters.represent import represent
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.errors import StorageError
from torchfault.faults import BitFlip
from torchfault.model.golden_words import golden_words
from torchfault.space import Fault
from torchfault.trials import strike

FLOATS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
RAW = [
    "float4_e2m1fn_x2",
    "int1",
    "uint3",
    "int4",
    "uint4",
]  # types that few of torch's kernels know: code reads their bytes
WHOLE = ["uint16", "uint32", "uint64", "int64"]
INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Scaled(nn.Module):
    """Numbers of some type, which scale what comes in, as bytes or as they are."""

    def __init__(self, name: str, *, parameter: bool) -> None:
        super().__init__()
        dtype = getattr(torch, name)
        self.raw = name in RAW
        if self.raw:
            words = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.uint8).view(dtype)
        else:
            words = torch.tensor([1.0, 2.0, 0.5, 4.0, 1.0, 2.0]).to(dtype)
        if parameter and dtype.is_floating_point:
            self.scale = nn.Parameter(words, requires_grad=False)
        else:
            self.register_buffer("scale", words)

    def forward(self, x: Tensor) -> Tensor:
        held = self.scale.view(torch.uint8) if self.raw else self.scale
        return x * held.to(torch.float32)


@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize("name", [*FLOATS, *WHOLE, *RAW])
def test_every_flip_is_what_editing_the_bytes_by_hand_does(name, executor):
    skip_without(name)
    model, data = Scaled(name, parameter=True).eval(), Data(INPUTS)
    engine = Engine(model, data, executor="auto" if executor == "graph" else executor, buffers=True)
    space = engine.space.select("scale")
    site = space.sites[0]
    assert (site.word, site.elements) == (name, 6)
    before = model.scale.detach().view(torch.uint8).clone()
    index = np.arange(len(space))
    trials = strike(space, space.locate(index), model=BitFlip(), rng=np.random.default_rng(0), inputs=index % 4)
    found = torch.empty(len(space), 6)
    for lanes in engine.run(trials):
        found[torch.from_numpy(lanes.trial)] = lanes.outputs
    size = before.numel() // 6
    for i in range(len(space)):
        element, bit = divmod(i, site.width)
        words = before.clone()
        words[element * size + bit // 8] ^= 1 << bit % 8
        held = words if model.raw else words.view(model.scale.dtype)
        expected = INPUTS[i % 4] * held.to(torch.float32)
        assert torch.equal(found[i].nan_to_num(7.5), expected.nan_to_num(7.5))
        with torch.no_grad(), inject(model, Fault("scale", element, bit)):
            assert torch.equal(model.scale.detach().view(torch.uint8), words)
    assert torch.equal(model.scale.detach().view(torch.uint8), before)
    seen = golden_words(model, data, space)["scale"]
    assert np.array_equal(seen.reshape(-1).view(np.uint8), before.numpy())


@pytest.mark.parametrize("name", ["float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3fn[nan]"])
def test_weights_are_kept_in_these_types(name):
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    twin = represent(layer, name)
    assert (twin.weight - layer.weight).abs().max() < 0.05
    with torch.no_grad(), inject(twin, Fault("weight", (1, 2), bit=7)):
        assert twin.weight[1, 2] == -represent(layer, name).weight[1, 2]
    layer.weight.data[0, 0] = 1e6
    with pytest.raises(StorageError, match="into infinity or NaN; choose a format of a wider range"):
        represent(layer, name)


@pytest.mark.parametrize(("name", "why"), [("float8_e8m0fnu", "no signs"), ("float4_e2m1fn_x2", "two numbers")])
def test_a_type_that_keeps_no_single_numbers_is_no_storage_of_weights(name, why):
    skip_without(name)
    with pytest.raises(StorageError, match=why):
        represent(nn.Linear(3, 2), name)
