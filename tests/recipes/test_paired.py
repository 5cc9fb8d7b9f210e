"""Formats compared by the same faults: pairs of trials, and the interval of their difference."""

import numpy as np
import pytest
import torch

from tests.support.networks import NETWORKS
from tests.support.torch_types import skip_without
from torchfault.adapters.represent import represent
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.errors import SamplingError
from torchfault.faults import BitFlip
from torchfault.recipes import paired
from torchfault.space import Fault
from torchfault.statistics.differences import paired_difference
from torchfault.trials import strike


def test_each_format_is_struck_in_the_same_elements_on_the_same_inputs():
    skip_without("mxfp4")
    model, data = NETWORKS["digits"]()
    twins = {how: represent(model, how) for how in ("float32", "mxfp4", "int8")}
    engines = {how: Engine(twin, data) for how, twin in twins.items()}
    names = ["conv1.weight", "fc2.weight"]
    frame = paired(engines, names, trials=60, seed=3)
    assert frame["format"].tolist() == list(twins)
    assert frame["difference"].tolist() == (frame["value"] - frame["value"][0]).tolist()
    assert (frame["difference_low"] <= frame["difference"]).all()
    # The same draws, made by hand.
    rng, space = np.random.default_rng(3), engines["int8"].space.select(names)
    sizes = [site.elements for site in space.sites]
    element, inputs = rng.integers(0, sum(sizes), 60), rng.integers(0, len(data), 60)
    height = rng.random(60)
    for how, twin in twins.items():
        failed = 0
        for e, i, u in zip(element.tolist(), inputs.tolist(), height.tolist(), strict=True):
            site = engines[how].space.site(space.names[e >= sizes[0]])
            fault = Fault(site.name, e - sizes[0] * (e >= sizes[0]), int(u * site.width))
            with torch.no_grad():
                golden = twin(data.inputs[i : i + 1])
                with inject(twin, fault):
                    faulty = twin(data.inputs[i : i + 1])
            failed += bool(faulty.isnan().any() or faulty.argmax() != golden.argmax())
        assert failed == round(60 * frame.set_index("format")["value"][how])


def test_sites_that_are_not_the_same_are_refused():
    model, data = NETWORKS["digits"]()
    engines = {how: Engine(represent(model, how), data) for how in ("int8", "csr")}
    with pytest.raises(SamplingError, match="got others in 'csr' than in 'int8'; choose sites that both have"):
        paired(engines, "fc1.weight*")


@pytest.mark.parametrize(
    "shares",
    [
        # Of pairs that fail in both, in the second alone, in the first alone.
        (0.2, 0.1, 0.02),
        (0.01, 0.02, 0.002),
        (0.0, 0.01, 0.01),
        (0.3, 0.0, 0.05),
        (0.05, 0.05, 0.3),
    ],
)
def test_intervals_of_differences_cover_the_truth_as_often_as_they_say(shares):
    rng, n, sims = np.random.default_rng(7), 500, 1500
    both, second, first = shares
    counts = rng.multinomial(n, [both, second, first, 1 - sum(shares)], size=sims)
    covered = 0
    for both_fail, second_alone, first_alone, neither in counts.tolist():
        found = paired_difference(both_fail, first_alone, second_alone, neither)
        covered += found.low <= second - first <= found.high
    assert covered / sims >= 0.94


def test_differences_of_engines_cover_what_all_pairs_of_faults_tell():
    skip_without("mxfp8_e4m3")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model, data = torch.nn.Linear(6, 4).eval(), Data(torch.randn(3, 6))
    engines = {how: Engine(represent(model, how), data) for how in ("float32", "mxfp8_e4m3")}
    rates = {}
    for how, engine in engines.items():
        space = engine.space.select("weight")
        failed = np.zeros((len(data), len(space)), dtype=bool)
        golden = engine.golden().argmax(1)
        for which in range(len(data)):
            index = np.arange(len(space))
            lanes = np.full(len(index), which)
            trials = strike(space, space.locate(index), model=BitFlip(), rng=np.random.default_rng(0), inputs=lanes)
            for done in engine.run(trials):
                wrong = (done.faulty.argmax(1) != golden[which]) | ~done.faulty.isfinite().all(1)
                failed[which, done.trial] = wrong.numpy()
        rates[how] = failed.mean()  # every height of a word is as likely as any other
    truth, covered = rates["mxfp8_e4m3"] - rates["float32"], 0
    assert abs(truth) > 0.005
    for seed in range(40):
        row = paired(engines, "weight", trials=300, seed=seed).iloc[1]
        covered += row["difference_low"] <= truth <= row["difference_high"]
    assert covered >= 34  # of 40, where 38 are to be expected
