"""The wholly enumerated network: its table is what injection one by one says, and campaigns on it are real ones."""

from dataclasses import replace

import numpy as np
import torch

from tests.support.reference import reference
from torchfault.campaign import Campaign, run
from torchfault.faults import BitFlip
from torchfault.sampling import Exhaustive, Uniform
from torchfault.statistics import MaxTrials
from torchfault.trials import strike


def test_the_table_is_what_injection_one_by_one_says(known):
    rng = np.random.default_rng(1)
    failing = rng.choice(np.flatnonzero(known.outcomes.any(axis=1)), 150)
    faults = np.concatenate((failing, rng.integers(0, len(known.space), 50)))
    inputs = rng.integers(0, len(known.data), len(faults))
    where = known.space.locate(faults)
    trials = strike(known.space, where, model=BitFlip(), rng=rng, inputs=inputs)
    outputs = reference(known.engine.model, known.data, trials)
    golden = known.engine.golden()[inputs].argmax(1)
    changed = (outputs.argmax(1) != golden) | ~outputs.isfinite().all(1)
    assert changed.numpy().tolist() == known.outcomes[faults, inputs].tolist()
    assert known.outcomes[failing].any()


def test_the_network_is_a_real_one(known):
    assert (known.engine.golden().argmax(1) == known.data.labels).float().mean() > 0.9
    assert known.outcomes.shape == (len(known.space), 50)
    assert len(known.space) > 15_000
    assert 0.01 < known.truth()[0] < 0.1
    assert known.truth("site").shape == (len(known.space.sites),)


def test_campaigns_on_the_table_are_those_of_the_engine(known):
    for sampler in (Uniform(), Uniform(faults=2)):
        campaign = Campaign(known.table, known.space, sampler=sampler, seed=4, stop=MaxTrials(1500))
        looked_up, real = run(campaign), run(replace(campaign, engine=known.engine))
        assert looked_up.columns.failed.tolist() == real.columns.failed.tolist()
        assert looked_up.failures > 10


def test_lanes_of_many_faults_are_those_of_the_engine(known):
    rng = np.random.default_rng(2)
    faults = rng.integers(0, len(known.space), 3000)
    counts = rng.permutation(np.repeat([1, 2, 3, 8, 16], 100))
    trials = strike(
        known.space,
        known.space.locate(faults),
        model=BitFlip(),
        rng=rng,
        inputs=rng.integers(0, len(known.data), 500),
        counts=counts,
    )
    found = np.zeros((2, 500), dtype=bool)
    for row, engine in zip(found, (known.table, known.engine), strict=True):
        for lanes in engine.run(trials):
            row[lanes.trial] = (lanes.faulty.argmax(1) != lanes.golden.argmax(1)) | ~lanes.faulty.isfinite().all(1)
    assert found[0].tolist() == found[1].tolist()
    assert 0.1 < found.mean() < 0.5


def test_groups_and_the_truth_of_an_exhaustive_campaign(known):
    results = run(Campaign(known.table, known.space, sampler=Exhaustive()))
    assert results.estimate().value == known.truth()[0]
    for by in ("site", "bit", "kind"):
        assert torch.allclose(torch.tensor(results.table(by)["value"].to_numpy()), torch.tensor(known.truth(by)))
