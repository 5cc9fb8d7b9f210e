"""Activations in emulated formats: engines strike their words, and agree with rounding and flipping by hand."""

import copy
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from tests.support.agreement import assert_within_rounding, collect, random_trials, shaken
from tests.support.networks import NETWORKS
from tests.support.torch_types import skip_without
from torchfault.adapters.represent import represent
from torchfault.data import Data, leaves
from torchfault.engine import Engine, Monitor, inject
from torchfault.errors import ModelError, SpaceError, StorageError
from torchfault.faults import BitFlip, RandomWord
from torchfault.hardware.layers import layers_of
from torchfault.model.discover import module_sites
from torchfault.model.golden_words import golden_words
from torchfault.recipes import layer_space
from torchfault.space import Fault
from torchfault.storages import BlockFloat, InBlocks, Microscaled, activation_storage, keep, storage
from torchfault.trials import strike
from torchfault.words import decode, encode, held_in, rounded, word

# Rounding and flipping by hand, of one input's activation: floats to words and back, by nothing that the engine uses.


def fixed(values, m, n):
    codes = np.rint(np.asarray(values, dtype=np.float64) * 2.0**n).clip(-(2 ** (m + n)), 2 ** (m + n) - 1)
    return codes.astype(np.int64) % 2 ** (1 + m + n)


def fixed_back(words, m, n):
    return np.where(words >> (m + n), words - 2 ** (1 + m + n), words) / 2.0**n


def blocks(values, width, size, row):
    """Return codes and exponents, in rows of length *row*."""
    codes, exponents, end = [], [], 2 ** (width - 1) - 1
    for begin in range(0, len(values), row):
        line = [float(v) for v in values[begin : begin + row]]
        for part in (line[first : first + size] for first in range(0, row, size)):
            largest = max(map(abs, part))
            exponent = max(math.frexp(largest)[1] - 1, -127) if largest else -127
            # A power of two: the quotient is exact, and round takes ties to even.
            codes += [min(max(round(math.ldexp(v, width - 2 - exponent)), -end), end) % 2**width for v in part]
            exponents.append(exponent + 127)
    return np.array(codes), np.array(exponents)


def blocks_back(codes, exponents, width, size, row):
    found = []
    for i, code in enumerate(codes):
        block = i // row * -(-row // size) + i % row // size
        signed = int(code) - 2**width if code >> (width - 1) else int(code)
        found.append(math.ldexp(signed, int(exponents[block]) - 127 - (width - 2)))
    with np.errstate(over="ignore"):
        return np.array(found).astype(np.float32)


MICRO = {  # the elements, the exponent of the largest, the largest
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 8, 448.0),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 2, 7.5),
    "mxfp4:5": (ml_dtypes.float4_e2m1fn, 2, 6.0),
    "mxint8": (None, 0, 127 / 64),
    "nvfp4[0.0078125]": (ml_dtypes.float4_e2m1fn, 2, 6.0),
    "mxfp8_e4m3:3@1": (ml_dtypes.float8_e4m3fn, 8, 448.0),
    "nvfp4:3@2[0.0078125]": (ml_dtypes.float4_e2m1fn, 2, 6.0),
    "mxfp4:5@2": (ml_dtypes.float4_e2m1fn, 2, 6.0),
}


def microscaled(flat, how, row, struck):
    """Return values rounded in blocks with a scale, in rows of length *row*, once *struck* has changed the words."""
    kind, exponent, largest = MICRO[how]
    two = how.startswith("nvfp4")
    size = int(how.partition(":")[2].partition("@")[0] or (16 if two else 32))
    per_tensor, codes, scales = np.float32(0.0078125), [], []
    for begin in range(0, len(flat), row):
        line = flat[begin : begin + row]
        for part in (line[first : first + size] for first in range(0, row, size)):
            top = float(np.abs(part).max())
            if two:
                scale = np.clip(np.float32(top) / 6 / per_tensor, 2.0**-6, 448).astype(ml_dtypes.float8_e4m3fn)
                step = float(per_tensor) * float(scale)
                scales.append(int(scale.view(np.uint8)))
            else:
                power = (128 if math.isinf(top) else math.frexp(top)[1] - 1 if top else -127) - exponent
                power = min(max(power, -127), 127)
                step = 2.0**power
                scales.append(255 if math.isnan(top) else power + 127)
            over = np.clip(part.astype(np.float64) / step, -largest, largest)
            # A block with NaN is NaN in its elements too, where these have one.
            over = over * np.nan if math.isnan(top) and kind is ml_dtypes.float8_e4m3fn else np.nan_to_num(over)
            words = np.rint(over * 64).astype(np.int8) if kind is None else over.astype(kind)
            codes += words.view(np.uint8).tolist()
    codes, scales = struck(np.array(codes)), struck(np.array(scales), "scale")
    per_tensor = struck(per_tensor.reshape(1).view(np.uint32), "per_tensor_scale") if two else None
    codes = codes.astype(np.uint8)
    values = codes.view(np.int8) / 64 if kind is None else codes.view(kind).astype(np.float64)
    steps = scales.astype(np.uint8).view(ml_dtypes.float8_e4m3fn if two else ml_dtypes.float8_e8m0fnu)
    steps = steps.astype(np.float32) * (per_tensor.astype(np.uint32).view(np.float32) if two else np.float32(1))
    place = np.arange(len(flat))
    block = place // row * -(-row // size) + place % row // size
    with np.errstate(over="ignore", invalid="ignore"):
        return (values.astype(np.float32) * steps[block]).astype(np.float32)


TYPES = {
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


def by_hand(tensor, how, edits):
    """Return *tensor*, of one input, rounded as *how* says, with words flipped: (part, element, toggle) in *edits*."""
    if "@" in how:
        return along_axis(tensor, int(how[how.index("@") + 1]), how, edits)
    return in_rows(tensor, how, edits)


def along_axis(tensor, axis, how, edits):
    """Return :func:`by_hand` of the tensor with the *axis* of the blocks last, turned back."""
    turned = tensor.movedim(axis, -1)
    order = np.moveaxis(np.arange(tensor.numel()).reshape(tensor.shape), axis, -1).reshape(-1).tolist()
    edits = [(part, element if part else order.index(element), toggle) for part, element, toggle in edits]
    found = in_rows(turned.reshape(1, -1, turned.shape[-1]), how, edits)
    return found.reshape(turned.shape).movedim(-1, axis).contiguous()


def in_rows(tensor, how, edits):
    flat = tensor.detach().numpy().reshape(-1)
    flips = {(part, element): toggle for part, element, toggle in edits}

    def struck(words, part=""):
        words = words.astype(np.int64)
        for end, i in [place for place in flips if place[0] == part]:
            words[i] ^= flips.pop((end, i))
        return words

    if how in TYPES:
        held = flat.astype(TYPES[how])
        plain = held.view(f"u{held.itemsize}")
        found = struck(plain).astype(plain.dtype).view(TYPES[how]).astype(np.float32)
        return torch.tensor(found).view(tensor.shape)
    row = tensor[0, 0].numel() if tensor.ndim > 3 else tensor.shape[-1]
    if how in MICRO:
        found = microscaled(flat, how, row, struck)
        assert not flips, "an edit did not find its word"
        return torch.from_numpy(found).view(tensor.shape)
    flat = np.nan_to_num(flat, nan=0.0)
    if how.startswith("bfp"):
        width, size = map(int, how[3:].split(":"))
        codes, exponents = blocks(flat, width, size, row)
        found = blocks_back(struck(codes), struck(exponents, "exponent"), width, size, row)
    elif how.startswith("q"):
        m, n = map(int, how[1:].split("."))
        found = fixed_back(struck(fixed(flat, m, n)), m, n)
    else:  # uint8[0.0625:100]
        scale, zero = float(how[6:].split(":")[0]), int(how[:-1].split(":")[1])
        codes = np.rint(flat.astype(np.float64) / scale) + zero  # a power of two: the quotient is exact
        found = (struck(codes.clip(0, 255)) - zero) * scale
    assert not flips, "an edit did not find its word"
    return torch.from_numpy(found.astype(np.float32)).view(tensor.shape)


def slow(model, kept, data, trials):
    """Return the outputs under each trial: hooks round what the modules *kept* of a plain model read and give."""
    outputs = []
    parameters = dict(model.named_parameters())
    for i, which in enumerate(trials.inputs):
        edits, saved = {}, {}
        for row in range(trials.offsets[i], trials.offsets[i + 1]):
            name, element = trials.sites[trials.site[row]].name, int(trials.element[row])
            if name in parameters:  # q1.6 words of weights
                saved.setdefault(name, parameters[name].detach().clone())
                flat = parameters[name].data.view(-1)
                code = fixed(flat[element : element + 1].numpy(), 1, 6)
                flat[element] = fixed_back(code ^ int(trials.toggle[row]), 1, 6)[0]
                continue
            end, _, part = name.partition(".")
            edits.setdefault(end, []).append((part, element, int(trials.toggle[row])))
        handles, calls = [], {}

        def before(args, path, edits=edits, calls=calls):
            calls[path] = calls.get(path, -1) + 1
            mine = edits.pop(f"{path}@{calls[path]}:input" if calls[path] else f"{path}:input", ())
            return (by_hand(args[0], kept[path], mine), *args[1:])

        def after(output, path, edits=edits, calls=calls):
            mine = edits.pop(f"{path}@{calls[path]}:output" if calls[path] else f"{path}:output", ())
            return by_hand(output, kept[path], mine)

        for path in kept:
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(lambda _, args, p=path: before(args, p)))
            handles.append(module.register_forward_hook(lambda _, __, output, p=path: after(output, p)))
        with torch.no_grad():
            outputs.append(model(data.inputs[which : which + 1]))
        for handle in handles:
            handle.remove()
        for name, tensor in saved.items():
            parameters[name].data.copy_(tensor)
        assert not edits, f"the reference never met {edits}"
    return torch.cat(outputs)


def coarse(name="digits"):
    """Return a network whose sums are exact in float32, in whatever order: few bits in weights and inputs."""
    model, data = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(rounded(parameter, word("q1.6")))
    return model, Data(rounded(data.inputs, word("q3.4")))


# All formats under one executor, the rest of the pairs where time does not matter.
PAIRS = [
    ("graph", "q3.4"),
    ("hooks", "q2.2"),
    ("hooks", "e3m2fn"),
    ("graph", "e4m3"),
    ("hooks", "bfloat16"),
    ("graph", "uint8[0.0625:100]"),
    ("graph", "bfp8:16"),
    ("hooks", "bfp4:5"),
    ("graph", "mxfp8_e4m3"),
    ("hooks", "mxfp6_e2m3"),
    ("graph", "mxfp4:5"),
    ("hooks", "mxint8"),
    ("graph", "nvfp4[0.0078125]"),
    ("hooks", "nvfp4[0.0078125]"),
    ("graph", "mxfp8_e4m3:3@1"),
    ("hooks", "mxfp8_e4m3:3@1"),
    ("graph", "nvfp4:3@2[0.0078125]"),
    ("hooks", "mxfp4:5@2"),
]
FORMATS = ["q3.4", "q2.2", "e3m2fn", "e4m3", "bfloat16", "float16", "uint8[0.0625:100]", "bfp8:16", "bfp4:5", *MICRO]


@pytest.mark.parametrize(
    ("executor", "how"),
    [
        pytest.param(executor, how, marks=() if (executor, how) in PAIRS else pytest.mark.slow)
        for executor in ("graph", "hooks")
        for how in FORMATS
    ],
)
def test_a_struck_activation_is_what_rounding_and_flipping_by_hand_gives(how, executor):
    skip_without(how)
    model, data = coarse()
    # Elements of very different sizes make sums that float32 holds exactly in the first two layers alone.
    layers = nn.Conv2d if how in MICRO else nn.Conv2d | nn.Linear
    kept = {path: how for path, module in model.named_modules() if isinstance(module, layers)}
    engine = Engine(represent(model, activations={f"{path}:*": how for path in kept}), data, executor=executor)
    kept_in = [site for site in engine.space.sites if site.word != "float32" or site.name.endswith("per_tensor_scale")]
    ours = [site.name for site in kept_in]
    assert len(ours) == 2 * len(kept) * (3 if how.startswith("nv") else 2 if how[:3] == "bfp" or how in MICRO else 1)
    for faults, count in ((1, 20), (6, 6)):
        trials = random_trials(engine.space.select(ours), len(data), count, faults=faults, seed=faults)
        mine, theirs = collect(engine._executor, trials)[0], slow(model, kept, data, trials)
        near = torch.isclose(mine, theirs, rtol=1e-5 if how in MICRO else 0, atol=1e-5 if how in MICRO else 0)
        same = (near | (mine.isnan() & theirs.isnan())).all(1)
        exact = (theirs.abs() < 1e3).all(1)  # not where an exponent was struck, and sums round
        assert same[exact].all()
        assert same.float().mean() > 0.7


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_words_of_weights_and_of_activations_are_struck_together(executor):
    model, data = coarse()
    twin = represent(model, "q1.6", activations={"conv*": "q3.4", "fc1:output": "bfp6:8", "fc1:input": "bfp6:8"})
    engine = Engine(twin, data, executor=executor)
    if executor == "hooks":
        assert engine._executor._owners["conv1.weight"] == "conv1"  # which runs again, and rounds again
    ours = [s.name for s in engine.space.sites if s.word != "float32"]
    kept = {"conv1": "q3.4", "conv2": "q3.4", "fc1": "bfp6:8"}
    for faults in (1, 4):
        trials = random_trials(engine.space.select(ours), len(data), 24, faults=faults, seed=faults)
        assert torch.equal(collect(engine._executor, trials)[0], slow(model, kept, data, trials))


@pytest.mark.parametrize("executor", ["graph", "hooks"])
@pytest.mark.parametrize("how", ["mxfp8_e4m3:3@1", "mxfp4:5@2"])
def test_blocks_along_tokens_or_features_are_those_by_hand(how, executor):
    skip_without(how)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Flatten(), nn.Linear(28, 5)).eval()
        inputs = rounded(torch.randn(4, 7, 8), word("q3.4"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(rounded(parameter, word("q1.6")))
    kept, data = dict.fromkeys(("0", "2"), how), Data(inputs)
    engine = Engine(represent(model, activations={f"{path}:*": how for path in kept}), data, executor=executor)
    site = engine.space.site("0:output.scale")
    assert (site.shape, site.channel) == (((6, 3) if how.endswith("1") else (7, 2)), None)
    names = [name for name in engine.space.names if name.startswith(("0:", "2:"))]
    for faults in (1, 5):
        trials = random_trials(engine.space.select(names), len(data), 60, faults=faults, seed=faults)
        mine, theirs = collect(engine._executor, trials)[0], slow(model, kept, data, trials)
        near = torch.isclose(mine, theirs, rtol=1e-5, atol=1e-5, equal_nan=True).all(1)
        assert near[(theirs.abs() < 1e3).all(1)].all()  # else sums round, by their order
        assert near.float().mean() > 0.7


@pytest.mark.parametrize("how", ["mxfp8_e5m2:32@1", "mxint8:3@1", "mxfp6_e3m2:5@2"])
def test_the_words_along_an_axis_are_those_of_such_a_parameter(how):
    skip_without(how)
    model, data = coarse()
    twin = represent(model, activations={"conv1:output": how})
    with torch.no_grad():
        plain = twin.conv1(data.inputs)
    words = golden_words(twin, data, Engine(twin, data).space.select("conv1:output*"))
    for name, found in words.items():
        for lane in range(len(data)):
            kept = keep(plain[lane : lane + 1], storage(how)).words[name.partition(".")[2]]
            fmt = word(activation_storage(how).words[name.partition(".")[2]])
            assert (found[lane] == encode(kept.reshape(-1), held_in(fmt, kept.dtype)).numpy().view(found.dtype)).all()


def test_the_words_of_one_block_are_struck_together():
    model, data = coarse()
    twin = represent(model, activations={"conv2:output": "bfp4:5", "conv2:input": "bfp4:5"})
    for end in ("input", "output"):
        faults = [(f"conv2:{end}.exponent", 3, 1), (f"conv2:{end}", 9, 3), (f"conv2:{end}", 7, 0)]
        space = Engine(twin, data).space
        where = space.locate([space.index(Fault(*fault)) for fault in faults])
        trials = strike(space, where, model=BitFlip(), rng=np.random.default_rng(0), counts=np.array([3]))
        expected = slow(model, {"conv2": "bfp4:5"}, data, trials)
        for executor in ("graph", "hooks"):
            assert torch.equal(collect(Engine(twin, data, executor=executor)._executor, trials)[0], expected)
        with torch.no_grad(), inject(twin, [Fault(*fault) for fault in faults]):
            assert torch.equal(twin(data.inputs[:1]), expected)
        with torch.no_grad(), inject(twin, [Fault(*fault, sample=0) for fault in faults]):
            both = twin(data.inputs[:2])
        with torch.no_grad():
            golden = twin(data.inputs[:2])
        torch.testing.assert_close(both, torch.cat([expected, golden[1:]]))
        assert not torch.isclose(expected, golden[:1]).all()


QUICK = {
    *(("depthwise", "q5.8"), ("depthwise", "mxfp8_e4m3:4"), ("folded", "bfp6:5"), ("tied", "bfp6:5")),
    ("transformer-time-first", "bfp6:5"),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(name, how, marks=() if (name, how) in QUICK else pytest.mark.slow)
        for name in NETWORKS
        for how in ("q5.8", "bfp6:5", "mxfp8_e4m3:4")
    ],
)
def test_executors_find_the_same_words_and_outcomes_in_any_network(name, how):
    skip_without(how)
    model, data = NETWORKS[name]()
    if "lstm" in name and how != "q5.8":
        twin = represent(model, activations={"lstm:input": how})
        with pytest.raises(ModelError, match="'lstm' has states, and cannot keep blocks"):
            Engine(twin, data)
        return
    twin = represent(model, activations={"*": how})
    engines = [Engine(twin, data, executor=kind) for kind in ("graph", "hooks")]
    assert engines[0].space.sites == engines[1].space.sites
    ours = [s.name for s in engines[0].space.sites if s.is_activation and s.word != "float32"]
    trials = random_trials(engines[0].space.select(ours), len(data), 40, faults=2, seed=1)
    graph, hooks = (collect(engine._executor, trials) for engine in engines)

    def again(seed, row):  # a sum in another order may end on the other side of where words are rounded
        other = Engine(represent(shaken(model, seed), activations={"*": how}), data, executor="hooks")
        return collect(other._executor, trials.take(np.array([row])))

    assert_within_rounding(graph, hooks, again)
    for engine in engines:
        for a, b in zip(leaves(engine.golden()), leaves(_called(twin, data)), strict=True):
            assert torch.isclose(a, b, rtol=0.05, atol=0.05).all()


def _called(model, data):
    with torch.no_grad():
        inputs = data.inputs
        return (
            model(**inputs)
            if isinstance(inputs, dict)
            else model(*inputs)
            if isinstance(inputs, tuple)
            else model(inputs)
        )


def test_sites_tell_word_shape_and_channel():
    model, data = NETWORKS["depthwise"]()
    twin = represent(model, activations={"stem:output": "bfp8:16", "head:*": "e4m3"})
    found = {s.name: (s.word, s.width, s.shape, s.channel) for s in Engine(twin, data).space.sites}
    assert found["stem:output"] == ("int8", 8, (8, 6, 6), 0)
    assert found["stem:output.exponent"] == ("uint8", 8, (8, 3), 0)
    assert found["head:input"] == ("e4m3", 8, (12,), 0)
    assert found["stem:input"] == ("float32", 32, (3, 12, 12), 0)
    with pytest.raises(SpaceError, match="no site matches 'act'"):
        represent(model, activations={"act": "q7.8"})


def test_a_module_of_several_operations_keeps_its_own_words_beside_them():
    model, data = NETWORKS["tied"]()
    twin = represent(model, activations={"act:*": "q3.4"})
    for executor in ("graph", "hooks"):
        words = {s.name: s.word for s in Engine(twin, data, executor=executor).space.sites if s.name.startswith("act")}
        assert words["act:input"] == words["act:output"] == words["act@1:output"] == "q3.4"
        assert words["act.mul:output"] == "float32"


def test_calibration_takes_the_range_of_exact_activations():
    model, data = NETWORKS["digits"]()
    with torch.no_grad():
        given = model.conv1(data.inputs)
    twin = represent(model, activations={"conv1:*": "int8", "conv2:output": "uint4"}, data=data)
    words = {site.name: site.word for site in Engine(twin, data).space.sites}
    assert words["conv1:output"] == f"int8[{float(given.abs().max()) / 127:.6g}:0]"
    assert words["conv1:input"] == f"int8[{float(data.inputs.abs().max()) / 127:.6g}:0]"
    assert words["conv2:output"].startswith("uint4[")
    found = twin.conv1(data.inputs)
    assert (found - given).abs().max() <= given.abs().max() / 127 * 0.51 + 0.02  # also from the input's own rounding
    again = represent(model, "int8", activations="int8", data=data.inputs)
    with torch.no_grad():
        assert (again(data.inputs) - model(data.inputs)).abs().max() < 0.5


def test_what_does_not_fit_is_refused():
    model, data = NETWORKS["digits"]()
    for how, match in (
        ("int8", "'int8' activations need a range; give data to take it from, or 'int8\\[0.02:0\\]'"),
        ("csr", "activations cannot be kept as 'csr'; use a number format such as q7.8"),
        ("q30.1", "activations cannot be kept as 'q30.1'"),
        ("bfp9:4", "activations cannot be kept as 'bfp9:4'"),
    ):
        with pytest.raises(StorageError, match=match):
            represent(model, activations=how)
    with pytest.raises(StorageError, match="along axis 1 or a later one, since axis 0 has the inputs, got mxfp4 along"):
        represent(model, activations="mxfp4:32@0")
    with pytest.raises(StorageError, match=r"MX or NVFP4 along axis 1 or a later one, .* got bfp8:16 along axis 1"):
        InBlocks(BlockFloat(), 1)
    with pytest.raises(StorageError, match="give blocks of activations their axis apart"):
        InBlocks(Microscaled("mxfp4", axis=1))
    with pytest.raises(ModelError, match="mxfp4:32@2 needs activations of 3 axes or more, got 2"):
        Engine(represent(model, activations={"fc1:input": "mxfp4:32@2"}), data)
    time_first, tokens = NETWORKS["transformer-time-first"]()
    with pytest.raises(ModelError, match=r"would hold several inputs \(nvfp4:4@1\[0.01\]\)"):
        Engine(represent(time_first, activations="nvfp4:4@1[0.01]"), tokens)
    with pytest.raises(StorageError, match="in its weights, its activations or both, got neither"):
        represent(model)
    with pytest.raises(SpaceError, match=r"no site matches 'convl:\*'; did you mean"):
        represent(model, activations={"convl:*": "q7.8"})
    with pytest.raises(SpaceError, match="has no layers with weights; choose modules"):
        represent(nn.Sequential(nn.ReLU()), activations="q7.8")
    with pytest.raises(StorageError, match="'conv1:output' needs a finite range on the data, got nan"):
        represent(model, activations={"conv1:output": "int8"}, data=data.inputs * torch.nan)
    with pytest.raises(StorageError, match=r"emulated on float32, got torch\.float64; call model\.float"):
        represent(model.double(), activations="q7.8")(data.inputs.double())
    model.float()
    with pytest.raises(SpaceError, match="'conv1:output' is not kept in blocks, so there is no"):
        inject(represent(model, activations="q3.4"), Fault("conv1:output.exponent", 0, 0)).__enter__()


def test_a_copy_rounds_and_the_model_stays():
    model, data = NETWORKS["digits"]()
    before = model(data.inputs)
    twin = represent(model, activations="q3.4")
    assert torch.equal(model(data.inputs), before)
    assert (twin(data.inputs) * 16 % 1 == 0).all()
    again = represent(copy.deepcopy(twin), activations={"*:output": "q3.2"})
    assert (again(data.inputs) * 4 % 1 == 0).all()
    assert len(again.conv1._forward_hooks) == len(again.conv1._forward_pre_hooks) == 1
    digests = {Engine(one, data).digest() for one in (model, twin, again)}
    assert len(digests) == 3
    with torch.inference_mode():
        assert torch.equal(twin(data.inputs), represent(model, activations="q3.4")(data.inputs))


def test_gradients_pass_straight_through():
    layer = nn.Sequential(nn.Linear(3, 2, bias=False))
    twin = represent(layer, activations={"*:output": "q3.4"})
    x = torch.ones(1, 3, requires_grad=True)
    twin(x).sum().backward()
    assert torch.equal(x.grad, layer[0].weight.detach().sum(0, keepdim=True))


@dataclass(frozen=True)
class Kept:
    """A fault that changes nothing."""

    def masks(self, word, bit, *, rng):
        del rng
        return np.full(len(bit), (1 << word.width) - 1, dtype=np.uint64), np.zeros(len(bit), dtype=np.uint64)


def test_inject_strikes_by_name_alone():
    model, data = coarse()
    twin = represent(model, activations={"conv1:output": "q3.4", "conv2:output": "bfp4:5", "fc1:output": "bfloat16"})
    kept = {"conv1": "q3.4", "conv2": "bfp4:5", "fc1": "bfloat16"}
    golden = twin(data.inputs[:1]).detach()
    for fault in (
        Fault("conv1:output", (0, 4, 4), 7),
        Fault("conv2:output", (3, 1, 2), 2),
        Fault("conv2:output.exponent", (3, 1), 0),
        Fault("fc1:output", 5, 14),
    ):
        path, seen = fault.site.partition(":")[0], []
        module = twin.get_submodule(path)
        for mine in (fault, Fault(fault.site, fault.element, fault.bit, Kept())):
            with torch.no_grad(), inject(twin, mine):
                handle = module.register_forward_hook(lambda _, __, o, seen=seen: seen.append(o.clone()))
                twin(data.inputs[:1])
                handle.remove()
        shape = {"conv1": (16, 8, 8), "conv2": (32, 4, 4), "fc1": (64,)}[path]
        part = fault.site.partition(".")[2]
        size = (32, 4) if part else shape
        flat = int(np.ravel_multi_index(fault.element, size)) if isinstance(fault.element, tuple) else fault.element
        # What others see is what was struck; rounding what is there without the fault by hand changes nothing.
        assert torch.equal(seen[1], by_hand(seen[1], kept[path], []))
        assert torch.equal(seen[0], by_hand(seen[1], kept[path], [(part, flat, 1 << fault.bit)]))
    assert torch.equal(twin(data.inputs[:1]), golden)


def test_a_fault_beyond_the_blocks_is_no_fault():
    """Values have more elements than their blocks have exponents, and more axes."""
    twin = represent(coarse()[0], activations={"conv2:output": "bfp4:5"})
    inputs = coarse()[1].inputs[:1]
    for element in (128, (32, 0), (0, 4)):  # (32, 4) exponents of (32, 4, 4) values
        with pytest.raises(SpaceError, match="outside"), inject(twin, Fault("conv2:output.exponent", element, 0)):
            twin(inputs)


def test_others_see_the_words():
    model, data = NETWORKS["digits"]()
    twin = represent(model, activations={"conv*": "q3.4", "fc1:*": "bfloat16", "fc2:*": "bfp8:16"})
    engine = Engine(twin, data)
    words = golden_words(twin, data, engine.space.select(["conv1:output", "fc1:input"]))
    with torch.no_grad():
        value = twin.conv1(data.inputs)
    assert (words["conv1:output"].astype(np.int8) / 16 == value.flatten(1).numpy()).all()
    assert words["fc1:input"].dtype == np.uint16
    blocks = golden_words(twin, data, engine.space.select("fc2:output*"))
    codes, exponents = blocks["fc2:output"].view(np.int8), blocks["fc2:output.exponent"].astype(np.int64)
    with torch.no_grad():
        assert (codes * np.exp2(exponents - 127 - 6) == twin(data.inputs).numpy()).all()
    assert len(layer_space(engine.space, target="activations", layers="conv*").sites) == 2
    work = layers_of(twin, data).works
    assert [one.outputs for one in work] == [("conv1:output",), ("conv2:output",), ("fc1:output",), ("fc2:output",)]
    monitor = Monitor(engine.space)
    trials = random_trials(engine.space.select("fc2:output*"), len(data), 20, seed=1)
    list(engine.run(trials, monitor=monitor))
    assert "fc2:output.exponent" not in set(monitor.table()["site"])
    assert monitor.table().set_index("site").changed["fc2:output"] > 10
    assert [site.name for site in module_sites(twin, data) if "conv1" in site.name] == ["conv1:input", "conv1:output"]


def test_other_fault_models_strike_emulated_words():
    model, data = NETWORKS["digits"]()
    engines = [Engine(represent(model, activations="bfp5:8"), data, executor=kind) for kind in ("graph", "hooks")]
    space = engines[0].space.select(["conv*:output*", "fc*:input*"])
    trials = random_trials(space, len(data), 30, seed=2, model=RandomWord())
    a, b = (collect(engine._executor, trials)[0] for engine in engines)
    assert torch.isclose(a, b, rtol=0.02, atol=0.02, equal_nan=True).all(1).float().mean() > 0.9


@pytest.mark.filterwarnings("ignore")  # what torch says about the end of its own quantisation
def test_a_model_with_packed_weights_rounds_too():
    model, data = coarse()
    packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    twin = represent(packed, activations={"conv*": "q3.4", "fc1:output": "q5.2"})
    engine = Engine(twin, data)
    assert (engine.executor, engine.space.site("fc1:output").word) == ("hooks", "q5.2")
    trials = random_trials(engine.space.select("conv*:*put"), len(data), 12, seed=1)
    kept = {"conv1": "q3.4", "conv2": "q3.4"}
    plain = represent(packed, activations={"fc1:output": "q5.2"})
    assert torch.equal(collect(engine._executor, trials)[0], slow(plain, kept, data, trials))


# Rounding itself.


def samples(fmt):
    """Return bit patterns of all kinds, the borders between neighbouring words, and both their neighbours."""
    rng = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (20_000,), generator=rng).to(torch.int32).view(torch.float32)
    count = 1 << min(fmt.width, 12)
    words = (torch.arange(count) << max(fmt.width - 12, 0)).to(fmt.integer)
    values = decode(words, held_in(fmt, torch.float32))
    values = values[values.isfinite()].double().sort().values
    borders = ((values[1:] + values[:-1]) / 2).float()
    ends = [torch.nextafter(borders, torch.tensor(side)) for side in (torch.inf, -torch.inf)]
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan, 3.4e38, 1e-45, -1e-45])
    return torch.cat([anything, values.float(), borders, *ends, special])


@pytest.mark.parametrize(
    "name",
    [
        "q3.4",
        "q7.8",
        "q0.7",
        "q12.11",
        "q23.0",
        "e4m3",
        "e5m2",
        "e3m2fn",
        "e2m1fn",
        "e8m7",
        "e8m23",
        "e5m10",
        "e7m3fn",
        "bfloat16",
        "float16",
        "float8_e4m3fn",
        "uint8[0.02:128]",
        "int8[0.037:0]",
        "int4[0.3:1]",
        "float32",
    ],
)
def test_rounding_is_what_words_there_and_back_are(name):
    fmt = word(name)
    held, values = held_in(fmt, torch.float32), samples(fmt)
    before = values.clone()
    mine, theirs = rounded(values, fmt), decode(encode(values, held), held)
    assert torch.equal(mine.view(torch.int32), theirs.view(torch.int32))
    assert torch.equal(values.view(torch.int32), before.view(torch.int32))
    assert mine.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("name", ["bfp8:16", "bfp2:3", "bfp5:7"])
def test_blocks_of_activations_are_those_of_weights(name):
    how = activation_storage(name)
    values = torch.randn(4, 6, 5, 5) * 10.0 ** torch.randint(-45, 38, (4, 6, 1, 5)).float()
    values = values.nan_to_num(0.0)
    expected = keep(values.view(24, 25), storage(name)).value().view(4, 6, 5, 5)
    assert torch.equal(how.round(values), expected)
    assert torch.equal(how.round(expected), expected)
    channels_last = values.contiguous(memory_format=torch.channels_last)
    assert torch.equal(how.round(channels_last), expected)
    assert how.round(channels_last).stride() == channels_last.stride()
    assert how.round(torch.tensor([[torch.nan, torch.inf, -1.0]])).isfinite().all()
    assert torch.equal(InBlocks(BlockFloat(8, 4)).round(torch.tensor([[torch.nan, 2.0]])), torch.tensor([[0.0, 2.0]]))
