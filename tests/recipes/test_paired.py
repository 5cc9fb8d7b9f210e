"""Formats compared by the same faults: pairs of trials, and the interval of their difference."""

import numpy as np
import pytest
import torch

from tests.support.networks import NETWORKS
from torchfault.adapters.represent import represent
from torchfault.engine import Engine, inject
from torchfault.errors import SamplingError
from torchfault.recipes import paired
from torchfault.space import Fault


def test_each_format_is_struck_in_the_same_elements_on_the_same_inputs():
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
