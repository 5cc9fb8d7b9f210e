"""Networks in the neuromorphic intermediate representation (NIR), imported; and FX graphs over time."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.reference import reference
from tests.support.spiking_networks import library
from torchfault.adapters.over_time import over_time
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.engine.graph.executor import GraphExecutor

STEPS = 4


def lif_network():
    """Return a NIR graph of 4 inputs, 8 neurons and 3 neurons, with a time constant of 1 ms."""
    nir, rng = library("nir"), np.random.default_rng(0)

    def neurons(n: int):
        each = lambda value: np.full(n, value, dtype=np.float32)  # noqa: E731
        return nir.LIF(tau=each(1e-3), r=each(1), v_leak=each(0), v_threshold=each(0.25), v_reset=each(0))

    def normal(*shape: int) -> np.ndarray:
        return 1.5 * rng.normal(size=shape).astype(np.float32)

    nodes = {
        "input": nir.Input(input_type={"input": np.array([4])}),
        "fc1": nir.Affine(weight=normal(8, 4), bias=normal(8)),
        "lif1": neurons(8),
        "fc2": nir.Linear(weight=normal(3, 8)),
        "lif2": neurons(3),
        "output": nir.Output(output_type={"output": np.array([3])}),
    }
    return nir.NIRGraph(nodes=nodes, edges=list(pairwise(nodes)))


@pytest.mark.parametrize(
    ("importer", "call", "options", "state"),
    [
        ("snntorch.import_nir", "import_from_nir", {}, "mem"),  # its steps are 0.1 ms always
        ("norse.torch.utils.import_nir", "from_nir", {"dt": 1e-4}, "v"),
    ],
    ids=["snntorch", "norse"],
)
def test_an_imported_network_is_struck_in_weights_states_and_spikes_as_the_reference_says(
    importer: str, call: str, options: dict[str, float], state: str
) -> None:
    module = library(importer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imported = getattr(module, call)(lif_network(), **options)
    model = over_time(imported, steps=STEPS, carry=True).eval()
    data = Data(torch.rand(5, 4, generator=torch.manual_seed(0)) * 2)
    with torch.no_grad():
        spikes = model(data.inputs)
    assert spikes.shape == (5, STEPS, 3)
    assert 0 < spikes.mean() < 1
    engine = Engine(model, data)
    states = engine.space.select(kinds="state")
    assert set(states.names) == {f"lif1:state.{state}", f"lif2:state.{state}"}
    assert {site.steps for site in states.sites} == {(0, STEPS)}
    for seed, chosen in enumerate((engine.space.select("fc*", kinds="weight"), states, engine.space)):
        trials = random_trials(chosen, len(data), 80, seed=seed)
        expected = reference(model, data, trials)
        assert_agree(collect(engine, trials), [expected])
        assert (expected != spikes[torch.from_numpy(trials.inputs)]).any()


def test_an_fx_graph_runs_over_time_under_the_graph_executor() -> None:
    """torch.export interprets a module that is an FX graph itself: it would run for one step."""
    model = over_time(fx.symbolic_trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU())), steps=STEPS, read="count").eval()
    data = Data(torch.rand(5, 4))
    graph = GraphExecutor(model, data, memory=2**26)
    golden = graph.golden()
    assert isinstance(golden, Tensor)
    torch.testing.assert_close(golden, model(data.inputs).detach())
    trials = random_trials(graph.space, len(data), 60)
    assert_agree(collect(graph, trials), [reference(model, data, trials)])
