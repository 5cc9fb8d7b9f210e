"""Formats compared by the same faults: pairs of trials, and the interval of their difference."""

import numpy as np
import pytest
import torch

from tests.support.networks import NETWORKS
from tests.support.torch_types import skip_without
from torchfault.adapters.represent import represent
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.errors import CampaignError, SamplingError
from torchfault.faults import BitFlip
from torchfault.hardening import ZeroSpace, harden, unpacked
from torchfault.recipes import paired
from torchfault.recipes.paired import _Heights
from torchfault.results import load
from torchfault.sampling import Population
from torchfault.site import Site
from torchfault.space import FaultSpace
from torchfault.statistics.differences import paired_difference
from torchfault.store import Store
from torchfault.trials import strike


def test_each_format_is_struck_in_the_same_elements_on_the_same_inputs(tmp_path):
    skip_without("mxfp4")
    model, data = NETWORKS["digits"]()
    twins = {how: represent(model, how) for how in ("float32", "mxfp4", "int8")}
    engines = {how: Engine(twin, data) for how, twin in twins.items()}
    names = ["conv1.weight", "fc2.weight"]
    frame = paired(engines, names, trials=60, seed=3, store=tmp_path / "pairs.sqlite")
    assert frame["format"].tolist() == list(twins)
    assert frame["difference"].tolist() == (frame["value"] - frame["value"][0]).tolist()
    assert (frame["difference_low"] <= frame["difference"]).all()
    struck, heights = {}, {}
    with Store(tmp_path / "pairs.sqlite") as store:
        for how, twin in twins.items():  # the same draws, struck by hand
            results = load(store, f"paired-{how}")
            faults = [results.space[index] for index in results.columns.faults.tolist()]
            inputs, failed = results.columns.inputs.tolist(), 0
            struck[how] = [(fault.site, fault.element, i) for fault, i in zip(faults, inputs, strict=True)]
            width = np.array([results.space.site(fault.site).width for fault in faults])
            heights[how] = np.array([fault.bit for fault in faults]) / width
            for fault, i in zip(faults, inputs, strict=True):
                with torch.no_grad():
                    golden = twin(data.inputs[i : i + 1])
                    with inject(twin, fault):
                        faulty = twin(data.inputs[i : i + 1])
                failed += bool(faulty.isnan().any() or faulty.argmax() != golden.argmax())
            assert failed == round(60 * frame.set_index("format")["value"][how])
    assert struck["float32"] == struck["mxfp4"] == struck["int8"]
    assert len({site for site, *_ in struck["int8"]}) == 2
    for how, width in (("mxfp4", 4), ("int8", 8)):
        assert (heights["float32"] // (1 / width) / width == heights[how]).all(), how


def test_words_of_other_widths_beside_each_other_are_weighed_as_their_bits_are():
    space = FaultSpace((Site("codes", (30,), word="int8"), Site("scale", (10,))))
    draws = _Heights().draw(Population(space), 20_000, rng=np.random.default_rng(0), start=0)
    codes = space.locate(draws.index).site == 0
    assert abs(codes.mean() - 30 / 40) < 0.01
    assert abs((draws.weight * codes).mean() - 240 / 560) < 0.01
    assert draws.weight.max() == pytest.approx(_Heights().design(Population(space)).largest_weight)


def test_sites_are_paired_by_name_in_whatever_order_models_read_them():
    model, data = NETWORKS["digits"]()
    plain = unpacked(represent(model, "int8"))
    engines = {"plain": Engine(plain, data, executor="hooks")}
    engines["safe"] = Engine(harden(plain, ZeroSpace()), data, executor="hooks")
    orders = [engine.space.select("fc1.weight*").names for engine in engines.values()]
    assert orders[0] == orders[1][::-1]
    assert paired(engines, "fc1.weight*", trials=100)["trials"].tolist() == [100, 100]


def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path):
    model, data = NETWORKS["digits"]()
    engines = {how: Engine(represent(model, how), data) for how in ("float32", "int8")}
    whole = paired(engines, "fc2.weight", trials=1200, seed=1)
    seen = []

    def stop(standing):
        seen.append(standing.done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    where = {"store": tmp_path / "pairs.sqlite", "name": "digits"}
    with pytest.raises(KeyboardInterrupt):
        paired(engines, "fc2.weight", trials=1200, seed=1, progress=stop, **where)
    assert paired(engines, "fc2.weight", trials=1200, seed=1, **where).equals(whole)
    fewer = paired(engines, "fc2.weight", trials=500, seed=1, **where)
    assert fewer.equals(paired(engines, "fc2.weight", trials=500, seed=1))
    with pytest.raises(CampaignError, match="seed"):
        paired(engines, "fc2.weight", trials=1200, seed=2, **where)


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
