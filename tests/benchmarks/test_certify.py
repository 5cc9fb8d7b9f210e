"""The benchmark of certified masking: sizes follow the proofs, and its JSON has the stated shape."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.certify import sizes, stage
from benchmarks.sections import ROOT
from tests.support.networks import NETWORKS
from torchfault.engine import Engine
from torchfault.resolve import certified
from torchfault.words.deltas import flip_deltas


def test_what_is_smaller_than_its_proof_allows_is_what_is_proven():
    engine = Engine(*NETWORKS["digits"]())
    space = engine.space.select("*.weight")
    proofs = certified(engine, space)
    for name, size in sizes(proofs, space, 2).items():
        site = space.site(name)
        words = proofs.words[name][0].astype(np.uint64)
        element, bit = (index.reshape(-1) for index in np.indices((site.elements, 32)))
        change = flip_deltas(words[element], site.word, bit=bit)
        proven = proofs.proofs[name].proves(change, element, np.full(len(element), 2))
        assert 0 < proven.mean() < 1
        assert (size.reshape(-1) < 1).tolist() == proven.tolist()


def test_stages_are_named_by_the_first_module():
    assert [stage(name) for name in ("conv1.weight", "layer2.0.conv1.weight")] == ["conv1", "layer2"]


@pytest.mark.slow
def test_the_section_has_the_stated_shape(resnet20):  # the data are there
    del resnet20
    words = ["benchmarks/certify.py", "--json", "--images", "2", "--lanes", "256", "--repeats", "1", "--checks", "20"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True, env=dict(os.environ))
    found = json.loads(done.stdout)
    assert set(found["certified"]) == {"conv1", "layer1", "layer2", "layer3", "linear"}
    assert set(found["certified"]["layer3"]) == {str(bit) for bit in range(32)}
    assert found["share"] > 0.6
    assert found["checked"] == 2 * 20 * 3
    assert found["disagreements"] == 0
