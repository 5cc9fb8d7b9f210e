"""Weights in another representation: engines strike the stored words, and agree with decoding them by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tests.engine.test_hooks import close, draw, outputs
from tests.support.networks import NETWORKS
from tests.support.reference import changed
from tests.support.torch_types import skip_without
from torchfault.adapters.represent import represent
from torchfault.data import Data, call, concatenate, leaves, rows
from torchfault.engine import Engine, inject
from torchfault.errors import ModelError, SpaceError, StorageError
from torchfault.faults import BitFlip
from torchfault.model.memory import STORED
from torchfault.space import Fault
from torchfault.storages import storage
from torchfault.trials import Trials, strike
from torchfault.words import decode, encode, word


def by_hand(model: nn.Module, data: Data, trials: Trials) -> list[torch.Tensor]:
    """Return the outputs under each trial: edit the words, decode them, overwrite the weight, run; NaN if none can."""
    parameters, found = dict(model.named_parameters()), []
    golden = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    for which, begin, end in zip(trials.inputs, trials.offsets[:-1], trials.offsets[1:], strict=True):
        edits: dict[str, dict[str, list[tuple[int, int, int]]]] = {}
        for row in range(begin, end):
            name, _, part = trials.sites[trials.site[row]].name.partition(":")
            edit = (int(trials.element[row]), int(trials.keep[row]), int(trials.toggle[row]))
            edits.setdefault(name, {}).setdefault(part, []).append(edit)
        lost = False
        for name, parts in edits.items():
            path, _, last = name.rpartition(".")
            stored = model.get_submodule(path).__dict__.get(STORED, {}).get(last)
            words = {}
            for part, listed in parts.items():
                held, fmt = (stored.words[part], stored.parts[part].fmt) if stored else (golden[name], word("float32"))
                native = held if fmt.dtype == held.dtype and fmt.width == 8 * held.itemsize else encode(held, fmt)
                after = changed(native, listed)
                words[part] = after if native is held else decode(after, fmt)
            try:
                parameters[name].data.copy_(stored.value(words) if stored else words[""])
            except StorageError:
                lost = True
        with torch.no_grad():
            outputs = call(model, rows(data.inputs, slice(int(which), int(which) + 1)))
        found.append([torch.full_like(leaf, torch.nan) if lost else leaf for leaf in leaves(outputs)])
        for name in edits:
            parameters[name].data.copy_(golden[name])
    return list(map(concatenate, zip(*found, strict=True)))


@pytest.mark.parametrize(
    "how", ["int8", "uint8:tensor", "int4:5", "bfp8:16", "mxfp4:5", "nvfp4", "csr", "coo", "bsr:2x2", "q3.4", "e5m2"]
)
@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_faults_in_stored_words_do_what_decoding_them_does(how, executor, rng):
    skip_without(how)
    model, data = NETWORKS["depthwise" if how in ("int4:5", "csr") else "digits"]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    twin = represent(model, how)
    engine = Engine(twin, data, executor=executor)
    others = {"input", "output", "norm", "data"}
    stored = engine.space.select(kinds=sorted({site.kind for site in engine.space.sites} - others))
    for faults in (1, 3):
        trials = draw(stored, 4 * len(stored.sites), len(data), rng, faults=faults)
        _, faulty = outputs(engine, trials)
        for mine, theirs in zip(faulty, by_hand(twin, data, trials), strict=True):
            wrong = ~close(mine, theirs)
            assert not wrong.any(), [trials.sites[trials.site[trials.offsets[i]]].name for i in wrong.nonzero()]


def test_sparse_weights_have_sites_for_values_and_indices():
    twin = represent(nn.Linear(6, 4), "csr")
    sites = Engine(twin.eval(), Data(torch.randn(3, 6))).space.sites
    names = [site.name for site in sites if not site.is_activation]
    assert names[:4] == ["weight:values", "weight:crow_indices", "weight:col_indices", "bias"]


def test_the_given_model_stays_and_the_copy_has_the_value_of_its_words():
    model, data = NETWORKS["digits"]()
    before = copy.deepcopy(model.state_dict())
    twin = represent(model, {"conv*.weight": "int4", "*weight": storage("bfp8:16")})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert len(twin.conv1.weight.unique()) <= 16 * 16
    assert torch.equal(twin.conv1.bias, model.conv1.bias)
    assert twin.fc1.__dict__[STORED]["weight"].storage.name == "bfp8:16"
    assert Engine(twin, data).digest() != Engine(model, data).digest()
    assert (twin(data.inputs) - model(data.inputs)).abs().max() < 1


def test_inject_strikes_stored_words_and_brings_the_weight_back():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[127.0, -64.0]])
    twin = represent(layer, "int8")
    before, x = twin.weight.detach().clone(), torch.tensor([1.0, 0.0])
    with torch.no_grad(), inject(twin, Fault("weight", (0, 0), bit=7)):
        assert twin(x).item() == -1.0  # 0111_1111 became 1111_1111
    with torch.no_grad(), inject(twin, [Fault("weight:scale", 0, bit=23), Fault("weight", 0, bit=1)]):
        assert twin(x).item() in (62.5, 250.0)
    assert torch.equal(twin.weight, before)
    with pytest.raises(SpaceError, match="an activation is called '<module>:input'"):
        inject(twin, Fault("weight:scales", 0, 0)).__enter__()


def test_an_index_astray_is_a_detected_error_for_its_lane_alone():
    layer = nn.Linear(6, 4).eval()
    twin, data = represent(layer, "csr"), Data(torch.randn(3, 6))
    for executor in ("graph", "hooks"):
        engine = Engine(twin, data, executor=executor)
        space = engine.space
        index = [space.index(Fault("weight:col_indices", 2, bit)) for bit in (31, 0, 20)]
        trials = strike(space, space.locate(index), model=BitFlip(), rng=np.random.default_rng(0))
        golden, faulty = outputs(engine, trials)
        assert faulty[0].isnan().all(1).tolist() == [True, False, True]
        assert golden[0].isfinite().all()
    before = twin.weight.detach().clone()
    with (
        pytest.raises(StorageError, match="an error that its reader detects"),
        inject(twin, Fault("weight:col_indices", 2, 31)),
    ):
        pass
    assert torch.equal(twin.weight, before)


def test_a_pruned_model_can_be_stored_dense_or_compressed(rng):
    model, data = NETWORKS["digits"]()
    dense = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module in dense:
        prune.l1_unstructured(module, "weight", 0.8)
    model(data.inputs)
    plain = Engine(model, data)
    assert plain.space.site("conv1.weight_orig").elements == 144
    trials = draw(plain.space.select("*weight_orig"), 20, len(data), rng)
    assert len(outputs(plain, trials)[1][0]) == 20
    with torch.no_grad():
        golden = model(data.inputs)
    for how, name, count in (("float32", "conv1.weight", 144), ("csr", "conv1.weight:values", 29)):
        twin = represent(model, how)
        assert Engine(twin, data).space.site(name).elements == count
        assert close(twin(data.inputs), golden).all()
    assert prune.is_pruned(model)
    assert not prune.is_pruned(twin)


def test_what_does_not_fit_is_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).eval()
    with pytest.raises(SpaceError, match=r"no site matches '0.wieght'; did you mean '0.weight'"):
        represent(model, {"0.wieght": "int8"})
    with pytest.raises(SpaceError, match="has no weights of two or more axes"):
        represent(nn.LayerNorm(2), "int8")
    with pytest.raises(StorageError, match="no storage is called 'int88'"):
        represent(model, "int88")
    model[0].weight.data[0, 0] = torch.inf
    with pytest.raises(StorageError, match=r"'0.weight': int8 keeps finite values"):
        represent(model, "int8")
    twin = represent(nn.Linear(3, 2), "int8")
    twin.weight.data += 1
    with pytest.raises(ModelError, match="represent the model anew after changes"):
        inject(twin, Fault("weight", 0, 0)).__enter__()


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("how", ["uint8", "uint8:tensor", "uint5:2", "int8", "int8:tensor", "int3:2"])
@pytest.mark.parametrize(
    "row", [[3e38, -3e38, 1.0], [LARGEST, -LARGEST, 0.0], [-LARGEST, 7.0, 2.0], [2.9e38, 1e38, -2e38]]
)
def test_scales_do_not_overflow(how, row):
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([row, [1.0, -0.5, 0.25]]))
    kept = represent(layer, how).weight.detach()
    width = int(how[how.index("t") + 1])
    step = max((max(row) - min(row)) / (2**width - 1), max(map(abs, row)) / (2 ** (width - 1) - 1))
    assert kept.isfinite().all()
    # One step of the codes away at most: half for rounding, and half where the zero point was rounded.
    assert (kept[0].double() - torch.tensor(row).double()).abs().max() <= 1.01 * step
    usual = represent(nn.Linear(3, 2, bias=False).requires_grad_(False), how)
    assert usual.weight.isfinite().all()


@pytest.mark.parametrize(
    ("how", "dtype", "value"),
    [("e4m3", torch.float32, 1e6), ("uint8", torch.float16, 65504.0), ("bfloat16", torch.float32, LARGEST)],
)
def test_what_a_format_turns_into_infinity_is_refused(how, dtype, value):
    layer = nn.Linear(2, 2, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[value, -value], [1.0, 2.0]]))
    with pytest.raises(
        StorageError, match=f"'weight': {how} turns .* into infinity or NaN; choose a format of a wider"
    ):
        represent(layer, how)
