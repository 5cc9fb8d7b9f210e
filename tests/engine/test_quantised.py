"""Networks as they are deployed: torch's quantised layers, torchao's tensors, fake quantisation, sparse parameters."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.engine.test_hooks import close, draw, outputs
from tests.support.agreement import collect, random_trials
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.errors import StorageError
from torchfault.faults import BitFlip, Value
from torchfault.model.discover import find
from torchfault.model.memory import homes
from torchfault.model.opaque.trace import trace
from torchfault.space import Fault
from torchfault.testing.rules import equal

torchao = pytest.importorskip("torchao.quantization")
ao = pytest.importorskip("torch.ao.quantization")

# Both libraries warn that parts of torch will go one day.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 32), nn.ReLU(), nn.Linear(32, 4))
        return nn.Sequential(*layers).eval()


def static() -> nn.Module:
    model = nn.Sequential(ao.QuantStub(), *network(), ao.DeQuantStub()).eval()
    model.qconfig = ao.get_default_qconfig("x86")
    prepared = ao.prepare(model)
    prepared(noise(16, 2, 6, 6))
    return ao.convert(prepared)


def graph_mode() -> nn.Module:
    from torch.ao.quantization import quantize_fx

    images = noise(16, 2, 6, 6)
    prepared = quantize_fx.prepare_fx(network(), ao.get_default_qconfig_mapping("x86"), (images,))
    prepared(images)
    return quantize_fx.convert_fx(prepared)


def dynamic() -> nn.Module:
    return ao.quantize_dynamic(network(), {nn.Linear})


def aware() -> nn.Module:
    model = nn.Sequential(ao.QuantStub(), *network(), ao.DeQuantStub()).train()
    model.qconfig = ao.get_default_qat_qconfig("x86")
    prepared = ao.prepare_qat(model)
    prepared(noise(16, 2, 6, 6))
    return prepared.eval().apply(ao.disable_observer)


def folded() -> nn.Module:
    """Return a network under quantisation-aware training whose layers have a batch norm in them."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        dense = (nn.Flatten(), nn.Linear(4 * 16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *dense)
        model = nn.Sequential(ao.QuantStub(), *layers, ao.DeQuantStub()).train()
        model.qconfig = ao.get_default_qat_qconfig("x86")
        prepared = ao.prepare_qat(ao.fuse_modules_qat(model, [["1", "2", "3"], ["5", "6"]]))
        for _ in range(3):  # statistics of its own, and ranges
            prepared(3 * noise(16, 2, 6, 6) + 1)
    return prepared.eval().apply(ao.disable_observer)


def converted(config) -> nn.Module:
    model = network()
    torchao.quantize_(model, config)
    return model


MODELS = {
    "static": static,
    "graph mode": graph_mode,
    "dynamic": dynamic,
    "aware": aware,
    "folded": folded,
    "torchao int8 weights": lambda: converted(torchao.Int8WeightOnlyConfig()),
    "torchao int8 dynamic": lambda: converted(torchao.Int8DynamicActivationInt8WeightConfig()),
    "torchao int4": lambda: converted(torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4)),
    "torchao float8": lambda: converted(torchao.Float8WeightOnlyConfig()),
}
DATA = Data(noise(6, 2, 6, 6))


# What no graph can hold: scales of activations found batch by batch, and weights that are rounded before each use.
UNDER_HOOKS = {
    "dynamic": "mixes the inputs of a batch",
    "aware": "no module alone reads a weight",
    "folded": "torch.fx cannot follow",
}


@pytest.mark.parametrize("executor", ["auto", "hooks"])
@pytest.mark.parametrize("name", MODELS)
def test_every_lane_is_what_injection_gives_and_the_model_comes_back(name, executor, rng):
    model = MODELS[name]()
    engine = Engine(model, DATA, executor=executor)
    if executor == "auto":
        assert engine.executor == ("hooks" if name in UNDER_HOOKS else "graph")
        assert UNDER_HOOKS.get(name, "") in (engine.fallback or "")
    before = [words.clone() for home in homes(model) for words in home.words.values()]
    with torch.no_grad():
        golden = model(DATA.inputs)
    trials, found = draw(engine.space, 2 * len(engine.space.sites), len(DATA), rng), find(model, DATA)
    _, faulty = outputs(engine, trials)
    for i in range(len(trials)):
        which = int(trials.inputs[i])
        with torch.no_grad(), inject(model, trials.take(np.array([i])), space=found):
            expected = model(DATA.inputs[which : which + 1])
        assert close(faulty[0][i : i + 1], expected).all()
    with torch.no_grad():
        assert torch.equal(model(DATA.inputs), golden)
    after = [words for home in homes(model) for words in home.words.values()]
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_sites_of_a_static_network_are_its_stored_words():
    sites = {site.name: site for site in find(static(), DATA).space.sites}
    words = {name: (site.word, site.kind, site.shape) for name, site in sites.items() if site.module == "4"}
    assert words == {
        "4.weight": ("int8", "weight", (32, 64)),
        "4.weight:scale": ("float32", "scale", (32,)),
        "4.weight:zero_point": ("int8", "zero_point", (32,)),
        "4.bias": ("float32", "bias", (32,)),
        "4.scale": ("float32", "scale", ()),
        "4.zero_point": ("uint8", "zero_point", ()),
        "4:input": ("uint8", "input", (64,)),
        "4:output": ("uint8", "output", (32,)),
    }
    assert list(sites).index("4.weight") < list(sites).index("4:input")


@pytest.mark.parametrize("faults", [1, 3, 40])
@pytest.mark.parametrize("name", ["static", "graph mode"])
def test_many_lanes_of_packed_layers_are_what_injection_gives_bit_for_bit(name, faults):
    model = MODELS[name]()
    engine = Engine(model, DATA)
    stored = engine.space.select(kinds=["weight", "scale", "zero_point", "bias"])
    trials = random_trials(stored, len(DATA), 150, faults=faults, seed=faults)
    mine, found = collect(engine, trials)[0], find(model, DATA)
    for i, which in enumerate(trials.inputs.tolist()):
        with torch.no_grad(), inject(model, trials.take(np.array([i])), space=found):
            assert equal(mine[i : i + 1], model(DATA.inputs[which : which + 1]))


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no fbgemm here")
def test_channels_of_weights_that_unpack_in_channels_last_order_run_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")  # as "x86" is where there is no VNNI
    model = static()
    assert not model[1]._weight_bias()[0].int_repr().is_contiguous()
    test_many_lanes_of_packed_layers_are_what_injection_gives_bit_for_bit("static", 1)


def test_output_channels_of_layers_run_alone_where_that_changes_nothing():
    model = static()
    rows = trace(model, DATA, find(model, DATA)).rows
    assert len(rows) == 3
    layer, program = model[6], trace(model, DATA, find(model, DATA)).program
    node = next(node.position for node in program.nodes if node.module == "6")
    weight, bias = layer._weight_bias()
    zeros = weight.q_per_channel_zero_points() + 3  # which other kernels may compute
    scales = weight.q_per_channel_scales()
    layer.set_weight_bias(torch._make_per_channel_quantized_tensor(weight.int_repr(), scales, zeros, 0), bias)
    assert node not in trace(model, DATA, find(model, DATA)).rows


def test_a_packed_layer_keeps_each_word_once():
    names = find(static(), DATA).space.names
    assert len([name for name in names if name.endswith("weight")]) == 3
    assert not any("_packed_params" in name for name in names)


@pytest.mark.parametrize("part", ["", ":scale", ":zero_point"])
def test_a_packed_weight_is_struck_as_if_it_were_packed_anew(part):
    model = static()
    layer, element = model[6], 1
    weight, bias = layer._weight_bias()
    codes = weight.int_repr()
    scale, zero = weight.q_per_channel_scales().clone(), weight.q_per_channel_zero_points().clone()
    if part == "":
        codes.view(-1)[element] ^= 1 << 6
    elif part == ":scale":
        scale[element] = (scale[element].float().view(torch.int32) ^ 1 << 23).view(torch.float32).double()
    else:
        zero[element] ^= 1 << 6
    with torch.no_grad():
        bit = 23 if part == ":scale" else 6
        with inject(model, Fault(f"6.weight{part}", element, bit)):
            mine = model(DATA.inputs)
        layer.set_weight_bias(torch._make_per_channel_quantized_tensor(codes, scale, zero, 0), bias)
        theirs = model(DATA.inputs)
        layer.set_weight_bias(weight, bias)
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, model(DATA.inputs))


def test_a_quantised_activation_is_struck_in_its_code():
    model = static()
    found = find(model, DATA)
    fault = Fault("1:output", (2, 1, 1), bit=7)

    def flip(module, args, output):
        del module, args
        codes = output.int_repr()
        codes[:, 2, 1, 1] ^= 128
        return torch._make_per_tensor_quantized_tensor(codes, output.q_scale(), output.q_zero_point())

    with torch.no_grad():
        with inject(model, fault, space=found):
            mine = model(DATA.inputs)
        with inject(model, fault):
            assert torch.equal(mine, model(DATA.inputs))
        handle = model[1].register_forward_hook(flip)
        theirs = model(DATA.inputs)
        handle.remove()
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, model(DATA.inputs))


def test_what_still_observes_has_no_codes_yet_and_runs_lane_by_lane():
    model = aware().apply(ao.enable_observer)
    engine = Engine(model, DATA)
    assert engine.alone
    assert {site.word for site in engine.space.sites} == {"float32"}
    assert {*find(aware(), DATA).space.names} - {*engine.space.names} <= {
        name for name in find(aware(), DATA).space.names if name.endswith((":scale", ":zero_point"))
    }


def test_fake_quantisation_is_struck_in_the_integer_code():
    model = aware()
    layer, x = model[4], noise(2, 64)
    fake = layer.weight_fake_quant
    with torch.no_grad():
        codes = (fake(layer.weight) / fake.scale.view(-1, 1)).round() + fake.zero_point.view(-1, 1)
        assert codes.min() >= -128
        assert codes.max() <= 127
        codes[3, 5] += 128 if codes[3, 5] < 0 else -128  # what bit 7 is worth in two's complement
        weight = (codes - fake.zero_point.view(-1, 1)) * fake.scale.view(-1, 1)
        with inject(model, Fault("4.weight", (3, 5), bit=7)):
            mine = F.linear(x, layer.weight_fake_quant(layer.weight), layer.bias)
        assert torch.allclose(mine, F.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-6)
        assert layer.weight_fake_quant is fake
    site = find(model, DATA).space.site("4.activation_post_process:output")
    step = float(model[4].activation_post_process.scale)
    assert site.word.startswith("uint8[")
    assert site.width == 8
    given = []

    def note(module, args):
        del module
        given.append(args[0].clone())

    with torch.no_grad():
        model[5].register_forward_pre_hook(note)
        model(DATA.inputs)
        with inject(model, Fault(site.name, 3, bit=4)):
            model(DATA.inputs)
    change = (given[1] - given[0])[:, 3].abs()
    assert torch.allclose(change, torch.full_like(change, 16 * step), rtol=1e-4)


@pytest.mark.parametrize(("layer", "element"), [("1", (2, 1, 1, 0)), ("5", (3, 5))])
def test_a_weight_with_a_batch_norm_is_struck_in_the_code_of_what_both_are_together(layer, element):
    model = folded()
    module, seen = model.get_submodule(layer), []
    fake, before = module.weight_fake_quant, module.weight.clone()
    site = find(model, DATA).space.site(f"{layer}.weight")
    assert (site.word, site.shape) == ("int8", tuple(module.weight.shape))

    def edit(quantiser, args, output):  # of torch's own rounding, as it comes out
        del args
        seen.append((output / quantiser.scale.view(-1, *[1] * (output.ndim - 1))).round())
        word = int(seen[-1][element]) & 255 ^ 128
        struck = output.clone()
        struck[element] = (word - 256 * (word > 127)) * quantiser.scale[element[0]]  # zero points are 0
        return struck

    codes = next(home.words[site.name] for home in homes(model) if site.name in home.words)
    with torch.no_grad():
        golden = model(DATA.inputs)
        with inject(model, Fault(site.name, element, bit=7)):
            mine = model(DATA.inputs)
        assert module.weight_fake_quant is fake
        assert torch.equal(module.weight, before)
        assert torch.equal(model(DATA.inputs), golden)
        handle = fake.register_forward_hook(edit)
        theirs = model(DATA.inputs)
        handle.remove()
    assert torch.equal(codes.float(), seen[0])
    assert not torch.equal(seen[0], (before / fake.scale.view(-1, *[1] * (before.ndim - 1))).round())
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.equal(mine, golden)


def test_torchao_codes_and_scales_are_struck_where_they_lie():
    model = converted(torchao.Int8WeightOnlyConfig())
    weight = model[3].weight
    with torch.no_grad():
        with inject(model, [Fault("3.weight", (1, 2), 7), Fault("3.weight:scale", (4, 0), 0, Value(1.0))]):
            mine = model(DATA.inputs)
        codes, scale = weight.qdata.clone(), weight.scale.clone()
        weight.qdata[1, 2] ^= -128
        weight.scale[4, 0] = 1.0
        theirs = model(DATA.inputs)
        weight.qdata.copy_(codes)
        weight.scale.copy_(scale)
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, model(DATA.inputs))


class Sparse(nn.Module):
    """A linear layer with a sparse weight of torch's own."""

    def __init__(self, layout, block=None) -> None:
        super().__init__()
        dense = noise(6, 8).relu()
        self.weight = nn.Parameter(dense.to_sparse(layout=layout, blocksize=block), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.T).T


@pytest.mark.parametrize(
    ("layout", "block", "parts"),
    [
        (torch.sparse_coo, None, "values indices"),
        (torch.sparse_csr, None, "values crow_indices col_indices"),
        (torch.sparse_bsr, (2, 2), "values crow_indices col_indices"),
    ],
)
def test_sparse_parameters_are_struck_in_values_and_indices(layout, block, parts, rng):
    model, x = Sparse(layout, block).eval(), noise(5, 8)
    engine = Engine(model, Data(x))
    stored = {site.name for site in engine.space.sites if not site.is_activation}
    assert stored == {f"weight:{part}" for part in parts.split()}
    before = model.weight.to_dense()
    trials = draw(engine.space, 60, 5, rng, model=BitFlip())
    for lanes in engine.run(trials):
        for i, row in zip(lanes.trial, lanes.outputs, strict=True):
            try:
                with torch.no_grad(), inject(model, trials.take(np.array([i]))):
                    assert close(row[None], model(x[lanes.inputs[lanes.trial == i]][:1])).all()
            except StorageError:
                assert row.isnan().all()
    assert torch.equal(model.weight.to_dense(), before)
    column = "weight:indices" if layout == torch.sparse_coo else "weight:col_indices"
    with pytest.raises(StorageError, match="an error that its reader detects"), inject(model, Fault(column, 0, bit=40)):
        pass


def test_a_block_moves_to_where_its_index_points():
    model, x = Sparse(torch.sparse_bsr, (2, 2)).eval(), noise(5, 8)
    full = noise(6, 8).abs() + 0.1
    full[:2, :4] = 0
    model.weight = nn.Parameter(full.to_sparse_bsr((2, 2)), requires_grad=False)
    columns, values = model.weight.col_indices(), model.weight.values()
    assert (columns.tolist(), model.weight.crow_indices().tolist()) == ([2, 3, 0, 1, 2, 3, 0, 1, 2, 3], [0, 2, 6, 10])
    moved = model.weight.to_dense().clone()
    moved[0:2, 4:6] = 0
    moved[0:2, 0:2] = values[0]  # column 2 without its bit 1 is column 0, where nothing was
    meeting = model.weight.to_dense().clone()
    meeting[2:4, 2:4] = 0
    meeting[2:4, 0:2] = values[2] + values[3]  # column 1 without its bit 0 is that of another block
    with torch.no_grad():
        for element, bit, dense in ((0, 1, moved), (3, 0, meeting)):
            with inject(model, Fault("weight:col_indices", element, bit)):
                assert close(model(x), x @ dense.T).all()
        with inject(model, Fault("weight:values", (1, 1, 0), bit=31)):
            mine = model(x)
        dense = model.weight.to_dense().clone()
        dense[1, 6] *= -1  # block 1 lies in columns 6 and 7
        assert close(mine, x @ dense.T).all()
    for site, element, bit in (("col_indices", 0, 2), ("crow_indices", 1, 63), ("crow_indices", 3, 5)):
        with pytest.raises(StorageError, match="detects"), inject(model, Fault(f"weight:{site}", element, bit)):
            pass
