"""Guards that stand by: clean passes are only looked at; what looks wrong is computed again, with guards."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from torchfault import represent
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.errors import ModelError, SpaceError
from torchfault.faults import BitFlip
from torchfault.hardening import (
    Checksums,
    InvariantBits,
    Ranges,
    Secded,
    Standby,
    ZeroSpace,
    detecting,
    guards,
    harden,
    profile,
    recomputing,
)
from torchfault.hardening.ranges import RangeGuard
from torchfault.hardening.standby import by_rows
from torchfault.hardening.stored import StoredGuard, watch_parameter
from torchfault.testing import check_hardening
from torchfault.trials import strike


class Strikes(nn.Module):
    """Puts *value* into a row of what it reads in the calls numbered *when*, and counts its calls."""

    def __init__(self, value=0.0, when=()):
        super().__init__()
        self.value, self.when, self.calls = value, when, 0

    def forward(self, x):
        self.calls += 1
        if self.calls - 1 not in self.when:
            return x
        x = x.clone()
        x[1, 2] = self.value
        return x


class Leaky(nn.Module):
    """Adds what it reads to nine tenths of what it holds, which is fresh in each run, and gives spikes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.zeros(0), persistent=False)

    def forward(self, x):
        held = self.level if self.level.shape == x.shape else torch.zeros_like(x)
        self.level = 0.9 * held + x - (held > 1).float()
        return (self.level > 1).float()


class Neurons(nn.Module):
    """Runs one layer of neurons for five steps, and counts what they give."""

    def __init__(self, strikes):
        super().__init__()
        self.current, self.strikes, self.neurons = nn.Linear(4, 6), strikes, Leaky()

    def forward(self, x):
        self.neurons.level = torch.zeros(0)
        return torch.stack([self.neurons(self.strikes(self.current(x))) for _ in range(5)]).sum(0)


class Steps(nn.Module):
    """Runs the same layers three times, on currents that stay as they are, and counts spikes."""

    def __init__(self, strikes):
        super().__init__()
        self.current, self.strikes, self.spikes = nn.Linear(4, 6), strikes, nn.Identity()

    def forward(self, x):
        held, count = 0.0, 0.0
        for _ in range(3):
            held = held + self.strikes(self.current(x))
            count = count + self.spikes((held > 1).float())
        return count


def network(value=0.0, when=()):
    torch.manual_seed(0)
    layers = (nn.Linear(4, 6), nn.ReLU(), Strikes(value, when), nn.Linear(6, 3))
    return nn.Sequential(*layers).eval().requires_grad_(False)


DATA = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))


def resting(model):
    return not any(isinstance(guard, RangeGuard | StoredGuard) for _, _, guard in guards(model))


@pytest.mark.parametrize("value", [1e30, float("nan"), -5e4])
def test_a_transient_fault_is_gone_and_a_lasting_one_is_mended(value):
    golden, clean = profile(network(), DATA), network()(DATA)
    struck = harden(network(value, (0,)), Ranges(), Standby(), profile=golden)
    assert torch.equal(struck(DATA), clean)
    assert struck[2].calls == 2
    assert torch.equal(struck(DATA), clean)
    assert struck[2].calls == 3  # nothing looked wrong
    assert resting(struck)
    always = range(9)
    lasting, mended = (harden(network(value, always), Ranges(), *more, profile=golden) for more in ((Standby(),), ()))
    found, expected = lasting(DATA), mended(DATA)
    assert torch.equal(found, expected)
    assert (found[[0, *range(2, 20)]] == clean[[0, *range(2, 20)]]).all()


@pytest.mark.parametrize("method", [InvariantBits(), Secded()], ids=repr)
@pytest.mark.parametrize(("layer", "bit"), [(0, 30), (3, 30), (3, 27)])
def test_wrong_words_have_guards_act_from_the_start(method, layer, bit):
    safe = harden(network(), method, Standby(), profile=profile(network(), DATA))
    clean = safe(DATA)
    assert resting(safe)
    safe[layer].weight.view(torch.int32)[1, 1] ^= 1 << bit
    assert torch.equal(safe(DATA), clean)
    assert safe[2].calls == 2  # one pass each
    assert resting(safe)
    safe[layer].weight.view(torch.int32)[1, 1] ^= 1 << bit
    assert torch.equal(safe(DATA), clean)


def test_without_sums_a_second_pass_mends_what_the_answer_tells():
    safe = harden(network(), InvariantBits(), Standby(words=False), profile=profile(network(), DATA))
    assert not len(safe.standby_sums)
    safe[3].weight.view(torch.int32)[0, 0] ^= 1 << 30
    found, clean = safe(DATA), network()(DATA)
    assert torch.allclose(found, clean)
    assert safe[2].calls == 2


def test_only_rows_that_look_wrong_are_taken_from_the_second_pass():
    first, again = {"a": torch.zeros(3, 2), "b": 1}, {"a": torch.ones(3, 2), "b": 1}
    mixed = by_rows(torch.tensor([False, True, False]), again, first)
    assert mixed["a"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert mixed["b"] == 1


@pytest.mark.parametrize("step", range(3))
def test_what_golden_values_share_is_looked_at(step):
    torch.manual_seed(0)
    plain = Steps(Strikes()).eval().requires_grad_(False)
    golden = profile(plain, DATA)
    told = {name: (bool(found.whole), bool(found.steady)) for name, found in golden.ranges.items()}
    assert told["strikes:output"] == (False, True)
    assert told["spikes:input"] == (True, False)
    assert told[":output"] == (True, True)
    clean, inside = plain(DATA), float(golden["strikes:output"].high.max()) / 2
    plain.strikes = Strikes(inside, (step,))  # a value in its range, at one step alone
    assert torch.equal(harden(plain, Standby("strikes:output"), profile=golden)(DATA), clean)
    plain.spikes = Strikes(0.5, (step,))  # between 0 and 1
    plain.strikes = Strikes()
    for sites in ("spikes:output", ":output"):
        assert torch.equal(harden(plain, Standby(sites), profile=golden)(DATA), clean)


@pytest.mark.parametrize("value", [1e9, -1e6, float("nan")])
@pytest.mark.parametrize("step", [0, 4])
def test_what_neurons_hold_at_the_end_tells_of_currents_that_were_far_off(value, step):
    torch.manual_seed(0)
    plain = Neurons(Strikes()).eval().requires_grad_(False)
    golden, clean = profile(plain, DATA), plain(DATA)
    assert float(golden["neurons:state.level"].high.max()) == float(plain.neurons.level.max())
    assert torch.equal(harden(plain, Ranges("neurons:*"), profile=golden)(DATA), clean)  # of what is read and given
    plain.strikes = Strikes(value, (step,))
    safe = harden(plain, Standby("neurons:state.level", words=False), profile=golden)
    assert torch.equal(safe(DATA), clean)
    assert safe.strikes.calls == 10
    assert torch.equal(safe(DATA), clean)
    assert safe.strikes.calls == 15


def test_what_a_module_gives_is_looked_at_behind_hooks_that_came_later():
    plain = network()
    golden, clean, calls = profile(plain, DATA), plain(DATA), []
    safe = harden(plain, Standby(("0:input", "0:output")), profile=golden)

    def struck(_layer, _args, out):
        calls.append(out)
        return out + 1e6 if len(calls) == 1 else out

    safe[0].register_forward_hook(struck)
    assert torch.equal(safe(DATA), clean)
    assert len(calls) == 2


def test_modules_that_run_on_several_shapes_or_not_at_all_are_looked_at_where_they_are_alike():
    class Sometimes(nn.Module):
        def __init__(self, strikes):
            super().__init__()
            self.act, self.strikes, self.many = nn.Tanh(), strikes, nn.Tanh()

        def forward(self, x):
            x = self.act(self.strikes(x)) + self.act(x[:, :2]).sum(1, keepdim=True)
            return self.many(x) if len(x) > 10 else x

    plain = Sometimes(Strikes()).eval()
    golden = profile(plain, DATA)
    for rows in (20, 8):
        plain.strikes = Strikes()
        clean = plain(DATA[:rows])
        plain.strikes = Strikes(1e6, (0,))
        safe = harden(plain, Standby(("act:input", "many:input")), profile=golden)
        assert torch.equal(safe(DATA[:rows]), clean)
        assert safe.strikes.calls == 2


def test_a_captured_graph_has_guards_in_every_pass():
    safe = harden(network(), InvariantBits(), Standby(), profile=profile(network(), DATA))
    exported = torch.export.export(safe, (DATA,), strict=False).module()
    assert resting(safe)
    with torch.no_grad():
        exported.get_parameter("0.weight").view(torch.int32)[0, 0] ^= 1 << 30
    assert torch.allclose(exported(DATA), network()(DATA))


def test_compiling_is_refused_and_what_is_exported_compiles():
    safe = harden(network(), InvariantBits(), Standby(), profile=profile(network(), DATA))
    with pytest.raises(Exception, match="compile the model hardened without Standby") as caught:
        torch.compile(safe, backend="eager")(DATA)
    assert "ModelError" in f"{caught.type} {caught.value}"
    assert torch.equal(safe(DATA), network()(DATA))
    exported = torch.export.export(safe, (DATA,), strict=False).module()
    with torch.no_grad():
        exported.get_parameter("0.weight").view(torch.int32)[1, 1] ^= 1 << 30
    torch.testing.assert_close(torch.compile(exported, backend="eager")(DATA), network()(DATA))


def test_one_that_computes_again_exports():
    safe = recomputing(harden(network(), InvariantBits(), Ranges(), Standby(), profile=profile(network(), DATA)))
    exported = torch.export.export(safe, (DATA,)).module()
    torch.testing.assert_close(exported(DATA), network()(DATA))
    with torch.no_grad():
        exported.get_parameter("watched.model.0.weight").view(torch.int32)[1, 1] ^= 1 << 30
    torch.testing.assert_close(exported(DATA), network()(DATA))


def test_an_exception_leaves_guards_at_rest():
    safe = harden(network(), InvariantBits(), Standby(), profile=profile(network(), DATA))
    safe[0].weight.view(torch.int32)[0, 0] ^= 1 << 30
    with pytest.raises(RuntimeError):
        safe(torch.ones(2, 7))
    assert resting(safe)
    assert torch.equal(safe(DATA), network()(DATA))


@dataclass(frozen=True)
class Halved:
    """Keeps half of each weight, so that clean words are not what to compute with."""

    def __call__(self, model, profile):
        watch_parameter(model, "0.weight", self, profile, encoded=model[0].weight / 2)
        return model

    def decode(self, value, _held):
        return value * 2

    def wrong(self, _value, _held):
        return torch.zeros((), dtype=torch.bool)


def test_a_guard_stays_at_work_whose_clean_words_are_not_what_to_compute_with():
    golden = profile(network(), DATA)
    for methods, rests in (((Halved(),), False), ((Halved(), InvariantBits("0.weight")), False), ((Secded(),), True)):
        safe = harden(network(), *methods, Standby(), profile=golden)
        assert resting(safe) == rests
        assert torch.allclose(safe(DATA), network()(DATA), atol=1e-3)


@pytest.mark.parametrize("method", [InvariantBits(), ZeroSpace()], ids=repr)
def test_guards_of_codes_and_scales_stand_by(method):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).eval().requires_grad_(False)
    model, data = represent(plain, "int8"), torch.randn(9, 8)
    safe = harden(model, method, Standby(), profile=profile(model, data))
    clean = safe(data)
    assert resting(safe)
    if method == InvariantBits():
        safe[0].weight_scale.view(torch.int32)[0] ^= 1 << 30
    else:
        safe[0].weight[0, 1] ^= 0x20
    assert torch.equal(safe(data), clean)


def test_the_engine_strikes_one_pass():
    safe = harden(network(), Ranges(action="zero"), InvariantBits(), Standby(), profile=profile(network(), DATA))
    engine = Engine(safe, Data(DATA), executor="hooks")
    for sites, share in (("3:output", 1.0), ("0.weight", 1.0)):
        space = engine.space.select(sites, bits=[30])
        trials = strike(space, space.locate(range(len(space))), model=BitFlip(), rng=np.random.default_rng(0))
        same = sum(int(lanes.masked.sum()) for lanes in engine.run(trials))
        assert same == share * len(trials)


@pytest.mark.parametrize("method", [InvariantBits(), Secded()], ids=repr)
def test_one_flip_in_words_does_the_same_in_the_module_and_in_its_captured_graph(method):
    safe = harden(network(), Ranges(action="zero"), method, Standby(), profile=profile(network(), DATA))
    outcomes = []
    for executor in ("hooks", "graph"):
        engine = Engine(safe, Data(DATA), executor=executor)
        space = engine.space.select(["0.weight", "3.bias"])
        trials = strike(space, space.locate(range(0, len(space), 3)), model=BitFlip(), rng=np.random.default_rng(0))
        tops = torch.zeros(len(trials), dtype=torch.int64)
        for lanes in engine.run(trials):
            tops[torch.from_numpy(lanes.trial)] = lanes.outputs.argmax(1)
        outcomes.append(tops)
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("value", [0.3, float("nan")])
@pytest.mark.parametrize("rows", [20, 5])
def test_checksums_that_stand_by_see_what_no_range_tells(value, rows):
    """In batches of 16 and more by sums at the end of the pass, in smaller ones at once."""
    plain = network()
    data, golden = DATA[:rows], profile(plain, DATA)
    safe = harden(plain, Checksums(), Standby(margin=100), profile=golden)
    calls = []

    def wrong(_layer, _args, out):
        calls.append(len(out))
        return torch.where(torch.arange(out.numel()).view(out.shape) == 9, value, out) if len(calls) == 1 else None

    assert torch.equal(safe(data), plain(data))
    assert safe[2].calls == 1
    safe[0].register_forward_hook(wrong, prepend=True)
    assert torch.equal(safe(data), plain(data))
    assert safe[2].calls == (3 if rows == 20 else 2)
    assert torch.equal(safe(data), plain(data))
    assert resting(safe)
    exported = torch.export.export(safe, (data,), strict=False).module()
    assert torch.equal(exported(data), plain(data))


def test_sums_are_of_the_weights_that_a_layer_computes_with():
    golden, many = profile(network(), DATA), DATA.repeat(2, 1)
    safe = harden(network(), Halved(), Checksums(), Standby(), profile=golden)
    assert torch.allclose(safe(many), network()(many))
    assert safe[2].calls == 1


def test_detectors_ask_the_look():
    golden = profile(network(), DATA)
    watched = detecting(harden(network(1e30, (0,)), Ranges(), Standby(), profile=golden), mend=False)
    assert watched(DATA)["detected"].nonzero().flatten().tolist() == [1]
    summed = harden(network(), Checksums(), Standby(), profile=golden)
    summed[3].register_forward_hook(lambda _layer, _args, out: out + 0.1, prepend=True)
    assert detecting(summed, mend=False)(DATA)["detected"].all()


def test_standby_passes_the_suite():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    check_hardening(Standby(), model, Data(torch.randn(7, 5)))
    check_hardening(Standby(("2:input", ":output"), words=False), model, Data(torch.randn(7, 5)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="golden ranges"):
        harden(network(), Standby())
    with pytest.raises(ModelError, match="margin is a finite number of 0 or more"):
        Standby(margin=-1)
    golden = profile(network(), DATA)
    with pytest.raises(ModelError, match="guarded in this way already"):
        harden(network(), Standby(), Standby(), profile=golden)


def test_a_module_that_takes_the_place_of_a_guarded_one_is_refused():
    safe = harden(network(), InvariantBits(), Standby(), profile=profile(network(), DATA))
    other = copy.deepcopy(safe)
    other[0] = nn.Bilinear(4, 4, 6)  # as conversions do that keep nothing of hooks
    with pytest.raises(
        ModelError, match=r"'0' was a Linear whose guards stand by and is Bilinear now; convert .* first"
    ):
        other(DATA)
    assert torch.equal(safe(DATA), network()(DATA))
    around = copy.deepcopy(safe)
    around[0] = nn.Sequential(around[0], nn.Identity())
    around[0][0].weight.view(torch.int32)[1, 1] ^= 1 << 30
    assert torch.equal(around(DATA), network()(DATA))


def test_a_copy_has_guards_of_its_own():
    safe = harden(network(), InvariantBits(), Standby(), profile=profile(network(), DATA))
    twin = copy.deepcopy(safe)
    twin[0].weight.view(torch.int32)[1, 1] ^= 1 << 30
    assert torch.equal(twin(DATA), network()(DATA))
    assert safe[2].calls == 0
    assert resting(twin)


def test_an_answer_that_is_not_finite_on_an_input_has_no_range_to_look_at():
    class Nowhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x) / (x[:, :1] > 0)

    golden = profile(Nowhere().eval(), torch.tensor([[1.0, 2.0], [-1.0, 2.0]]))
    assert sorted(golden.ranges) == ["fc:input", "fc:output"]
    with pytest.raises(SpaceError, match=r"no tensor of the profile matches .:output"):
        harden(Nowhere().eval(), Standby(), profile=golden)
