"""Recurrent layers and embeddings of torch.ao: packed words, each struck as if it were packed anew by hand."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_hooks import draw
from tests.support.agreement import assert_agree, collect
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.model.blind_spots import unseen
from torchfault.model.discover import find
from torchfault.model.memory import homes
from torchfault.space import Fault
from torchfault.testing.rules import equal

ao = pytest.importorskip("torch.ao.quantization")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Recurrent(nn.Module):
    """A recurrent layer over sequences (N, 4, 3), and a linear one on its last step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(3, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Stepped(nn.Module):
    """A cell in a loop over sequences (N, 4, 3)."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Words(nn.Module):
    """An embedding of tokens (N, 4), and a bag of them."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.bag, self.head = nn.Embedding(7, 4), nn.EmbeddingBag(7, 4, mode="sum"), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        bags = self.bag(ids.reshape(-1), torch.arange(0, ids.numel(), ids.shape[1]))
        return self.head(torch.cat([self.token(ids).sum(1), bags], 1))


def dynamic(model: nn.Module, *kinds: type[nn.Module], dtype: torch.dtype = torch.qint8) -> nn.Module:
    return ao.quantize_dynamic(model.eval(), set(kinds), dtype=dtype)


def embeddings(*, bits: int = 8) -> nn.Module:
    model = Words().eval()
    model.token.qconfig = ao.float_qparams_weight_only_qconfig
    four = ao.float_qparams_weight_only_qconfig_4bit
    model.bag.qconfig = four if bits == 4 else ao.float_qparams_weight_only_qconfig
    return ao.convert(ao.prepare(model))


MODELS = {
    "lstm": lambda: dynamic(Recurrent(nn.LSTM), nn.LSTM),
    "gru": lambda: dynamic(Recurrent(nn.GRU), nn.GRU),
    "lstm of halves": lambda: dynamic(Recurrent(nn.LSTM), nn.LSTM, nn.Linear, dtype=torch.float16),
    "lstm cell": lambda: dynamic(Stepped(nn.LSTMCell), nn.LSTMCell),
    "gru cell": lambda: dynamic(Stepped(nn.GRUCell), nn.GRUCell),
    "embeddings": embeddings,
    "embeddings of four bits": lambda: embeddings(bits=4),
}


def built(name: str) -> tuple[nn.Module, Data]:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(4)
        ids, x = torch.randint(0, 7, (5, 4)), torch.randn(5, 4, 3)
        return MODELS[name](), Data(ids if "embedding" in name else x)


@pytest.mark.parametrize("name", MODELS)
def test_every_lane_is_what_injection_gives_and_the_model_comes_back(name: str, rng: np.random.Generator) -> None:
    model, data = built(name)
    engine = Engine(model, data, executor="hooks")
    stored = [site for site in engine.space.sites if not site.is_activation]
    before = [words.clone() for home in homes(model) for words in home.words.values()]
    with torch.no_grad():
        golden = model(data.inputs)
    trials = draw(engine.space.select([site.name for site in stored]), 2 * len(stored), len(data), rng)
    faulty = collect(engine, trials)
    expected = []
    for i, which in enumerate(trials.inputs):
        with torch.no_grad(), inject(model, trials.take(np.array([i]))):
            expected.append(model(data.inputs[which : which + 1]))
    assert_agree(faulty, [torch.cat(expected)])
    with torch.no_grad():
        assert torch.equal(model(data.inputs), golden)
    after = [words for home in homes(model) for words in home.words.values()]
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_sites_are_the_words_that_a_layer_packs() -> None:
    model, data = built("lstm")
    sites = {site.name: (site.word, site.kind, site.shape) for site in find(model, data).space.sites}
    for end in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        width = 3 if "l0" in end else 10
        assert sites[f"rnn.weight_ih{end}"] == ("int8", "weight", (20, width))
        assert sites[f"rnn.weight_hh{end}"] == ("int8", "weight", (20, 5))
        for which in ("ih", "hh"):
            assert sites[f"rnn.weight_{which}{end}:scale"] == ("float32", "scale", ())
            assert sites[f"rnn.weight_{which}{end}:zero_point"] == ("int8", "zero_point", ())
            assert sites[f"rnn.bias_{which}{end}"] == ("float32", "bias", (20,))
    assert {"rnn:input", "rnn:output", "head.weight"} <= sites.keys()
    model, data = built("embeddings of four bits")
    sites = {site.name: (site.word, site.kind, site.shape) for site in find(model, data).space.sites}
    assert sites["token.weight"] == ("uint8", "weight", (7, 4))
    assert sites["bag.weight"] == ("uint4", "weight", (7, 4))
    assert sites["bag.weight:scale"] == ("float16", "scale", (7,))
    assert sites["bag.weight:zero_point"] == ("float32", "zero_point", (7,))
    model, data = built("lstm of halves")
    sites = {site.name: site.word for site in find(model, data).space.sites}
    assert (sites["rnn.weight_hh_l1"], sites["rnn.bias_hh_l1"], sites["head.weight"]) == (
        "float16",
        "float32",
        "float16",
    )


def torch_weight(weight: Tensor, codes: Tensor, scale: float) -> Tensor:
    """Return a per-tensor weight of other codes and another scale."""
    return torch._make_per_tensor_quantized_tensor(codes, scale, weight.q_zero_point())


@pytest.mark.parametrize("part", ["", ":scale", "bias"])
def test_a_recurrent_weight_is_struck_as_if_it_were_packed_by_hand(part: str) -> None:
    model, data = built("gru")
    site, bit = ("rnn.bias_hh_l1", 29) if part == "bias" else (f"rnn.weight_hh_l1{part}", 6 if part == "" else 23)
    element = () if part == ":scale" else 3 if part == "bias" else (3, 2)
    with torch.no_grad():
        golden = model(data.inputs)
        with inject(model, Fault(site, element, bit)):
            mine = model(data.inputs)
        weights = model.rnn._weight_bias()  # torch's own way out, and its way in
        weight, bias = weights["weight"]["weight_hh_l1"], weights["bias"]["bias_hh_l1"].clone()
        codes, scale = weight.int_repr(), weight.q_scale()
        if part == "":
            codes[3, 2] ^= 64
        elif part == ":scale":
            scale = float((torch.tensor(scale).view(torch.int32) ^ 1 << 23).view(torch.float32))
        else:
            bias[3] = (bias[3].view(torch.int32) ^ 1 << 29).view(torch.float32)
        weights["weight"]["weight_hh_l1"] = torch_weight(weight, codes, scale)
        weights["bias"]["bias_hh_l1"] = bias
        model.rnn.set_weight_bias(weights["weight"] | weights["bias"])
        theirs = model(data.inputs)
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, golden)


@pytest.mark.parametrize("bits", [8, 4])
def test_an_embedding_is_struck_in_its_code(bits: int) -> None:
    model, data = built("embeddings" if bits == 8 else "embeddings of four bits")
    weight, ids = model.bag._packed_params._weight(), torch.tensor([2])
    scale, zero = weight.q_per_channel_scales()[2], weight.q_per_channel_zero_points()[2]
    offsets = torch.tensor([0])
    with torch.no_grad():
        golden = model.bag(ids, offsets)
        with inject(model, Fault("bag.weight", (2, 1), bits - 1), space=find(model, data)):
            mine = model.bag(ids, offsets)
            model(data.inputs)
        expected, code = golden.clone(), int((golden[0, 1] / scale + zero).round())
        expected[0, 1] = ((code ^ 1 << bits - 1) - zero) * scale
    torch.testing.assert_close(mine, expected, rtol=1e-6 if bits == 8 else 1e-3, atol=1e-6)  # of four bits: halves
    assert not torch.equal(mine, golden)
    assert torch.equal(model.bag(ids, offsets), golden)


class Functional(nn.Module):
    """A network without modules: its weights are arguments of functions."""

    def __init__(self, *, images: bool) -> None:
        super().__init__()
        self.filters, self.weight = nn.Parameter(torch.randn(2, 1, 3, 3)), nn.Parameter(torch.randn(3, 8))
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.filters, None, (1, 1), (0, 0), (1, 1), 1).flatten(1) if self.images else x
        return nn.functional.linear(x, self.weight)


def functions(*, images: bool) -> tuple[nn.Module, Data]:
    from torch.ao.quantization import quantize_fx

    torch.manual_seed(2)
    x = torch.randn(6, 1, 4, 4) if images else torch.randn(6, 8)
    observed = quantize_fx.prepare_fx(Functional(images=images).eval(), ao.get_default_qconfig_mapping("x86"), (x,))
    observed(x)
    return quantize_fx.convert_fx(observed), Data(x)


def test_the_packed_weight_of_a_function_is_struck() -> None:
    model, data = functions(images=False)
    (home,) = homes(model)
    name = next(iter(home.words))
    assert name.endswith(".weight")
    assert unseen(model) == {}
    with torch.no_grad():
        golden = model(data.inputs)
        with inject(model, Fault(name, (1, 2), 7)):
            mine = model(data.inputs)
        assert torch.equal(model(data.inputs), golden)
    assert not torch.equal(mine[:, 1], golden[:, 1])
    assert torch.equal(mine[:, [0, 2]], golden[:, [0, 2]])


def test_what_has_no_sites_is_told() -> None:
    model, data = functions(images=True)
    with pytest.warns(UserWarning, match=r"no sites, so no fault lands there: '.*': GraphModule holds a packed Conv2d"):
        engine = Engine(model, data)
    assert len(engine.unseen) == 1
    turned = nn.Module()
    turned.weight = nn.Parameter(torch.eye(4).to_sparse_csc(), requires_grad=False)
    assert unseen(turned) == {"weight": "torch.float32 (torch.sparse_csc) has no word format"}
    for known in MODELS:
        assert unseen(built(known)[0]) == {}
