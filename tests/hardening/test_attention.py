"""Checksums of attention: the same answers as torch's, what goes wrong in a product is seen and computed again."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import ModelError
from torchfault.hardening import Checksums, InvariantBits, checked_attention, detecting, detection, guards, harden
from torchfault.testing import check_hardening


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Around(nn.Module):
    """Self-attention alone."""

    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


def _hardened(**options):
    plain = nn.MultiheadAttention(8, 2, **options).eval().requires_grad_(False)
    return plain, harden(nn.ModuleDict({"attn": plain}), Checksums())["attn"]


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 5, "vdim": 3}], ids=str)
@pytest.mark.parametrize("average", [True, False])
def test_attention_in_products_gives_what_torch_gives(options, average):
    plain, safe = _hardened(**options)
    query, key, value = (torch.randn(4, 4, n) for n in (8, options.get("kdim", 8), options.get("vdim", 8)))
    for got, asked in zip(
        safe(query, key, value, average_attn_weights=average),
        plain(query, key, value, average_attn_weights=average),
        strict=True,
    ):
        assert torch.allclose(got, asked, atol=1e-6)
    assert safe(query, key, value, need_weights=False)[1] is None


@pytest.mark.parametrize("mask", ["causal", "each", "added"])
def test_masks_mean_what_they_mean_in_torch(mask):
    plain, safe = _hardened(batch_first=True)
    x, hidden = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    causal = torch.ones(5, 5).triu(1).bool()
    shaped = {"causal": causal, "each": causal.expand(6, 5, 5), "added": torch.randn(5, 5)}[mask]
    padding = hidden if mask != "added" else torch.zeros(3, 5).masked_fill(hidden, -torch.inf)
    options = {"attn_mask": shaped, "key_padding_mask": padding}
    assert torch.allclose(safe(x, x, x, **options)[0], plain(x, x, x, **options)[0], atol=1e-6)
    alone = {"attn_mask": shaped[:2] if mask == "each" else shaped, "key_padding_mask": padding[1]}
    assert torch.allclose(safe(x[1], x[1], x[1], **alone)[0], plain(x[1], x[1], x[1], **alone)[0], atol=1e-6)
    with pytest.raises(ModelError, match="give the mask too"):
        safe(x, x, x, is_causal=True)


@pytest.mark.parametrize("place", ["projected", "scored", "mixed"])
@pytest.mark.parametrize("value", [1e30, -90.0, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_wrong_row_is_found_and_computed_again(place, value, dtype):
    safe = harden(Around(batch_first=True).eval().requires_grad_(False), Checksums()).to(dtype)
    x = torch.randn(4, 6, 8, dtype=dtype)
    clean, product = safe(x), safe.attn.get_submodule(place)
    guard = next(iter(product._forward_hooks.values()))
    seen = []

    def strike(_module, args, output):
        struck = output.clone()
        struck[2].view(-1)[3] = value
        seen.append(guard.alarms(product, args, struck).tolist())
        return struck

    product.register_forward_hook(strike, prepend=True)
    assert torch.equal(safe(x), clean)
    assert seen[0] == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_alone_raises_no_alarm(dtype):
    safe = harden(Around(batch_first=True).eval().requires_grad_(False), Checksums()).to(dtype)
    for scale in (1e-3, 1.0, 30.0):
        assert not detecting(safe)(scale * torch.randn(500, 6, 8, dtype=dtype))["detected"].any()


def test_an_encoder_is_guarded_though_torch_has_a_faster_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(3, 5, 8)
    safe = harden(nn.Sequential(layer), Checksums(), InvariantBits())
    called = []
    safe[0].self_attn.scored.register_forward_hook(lambda *_: called.append(True))
    with torch.inference_mode():
        assert torch.allclose(safe(x), layer(x), atol=1e-5)
    assert called
    paths = [path for path, _, guard in guards(safe) if guard.place == "output"]
    assert {"0.self_attn.scored", "0.self_attn.out_proj", "0.linear1"} <= set(paths)


def test_faults_in_a_product_are_seen_by_the_engine():
    model = nn.Sequential(Around(batch_first=True), nn.Flatten(), nn.Linear(40, 4)).eval().requires_grad_(False)
    engine = Engine(detecting(harden(model, Checksums()), mend=False), Data(torch.randn(12, 5, 8)), executor="hooks")
    space = engine.space.select("*attn.scored*:output", bits=[30])
    found = detection(engine, space=space, trials=500)
    assert found.coverage.trials > 10
    assert found.coverage.value > 0.95
    assert found.false_alarms.value == 0


def test_attention_passes_the_suite():
    model = nn.Sequential(Around(batch_first=True), nn.Flatten(), nn.Linear(40, 4)).eval()
    check_hardening(Checksums(), model, Data(torch.randn(5, 5, 8)), tolerance=1e-6)


def test_what_adds_keys_of_its_own_is_refused():
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(ModelError, match="adds keys of its own"):
            harden(Around(**options), Checksums())


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": "bool"}, {"attn_mask": "float"}]
)
def test_the_function_gives_what_torch_gives(options):
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 3)
    if "attn_mask" in options:
        mask = torch.randn(5, 5)
        options = {"attn_mask": mask > -1 if options["attn_mask"] == "bool" else mask}
    asked = F.scaled_dot_product_attention(query, key, value, **options)
    assert torch.allclose(checked_attention(query, key, value, **options), asked, atol=1e-6)
    few = key[:, :2], value[:, :2]
    asked = F.scaled_dot_product_attention(query, *few, enable_gqa=True)
    assert torch.allclose(checked_attention(query, *few, enable_gqa=True), asked, atol=1e-6)
