"""Small spiking networks of three libraries, whose classes know nothing of faults, and recurrent ones; seeded."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchfault.adapters.over_time import over_time
from torchfault.data import Data

STEPS = 3


def library(name: str):
    """Import an optional library, which may warn of its own use of torch; the test is skipped without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


class Passing(nn.Module):
    """snnTorch as in its tutorials: loop inside, states passed by hand; (N, 5) to spikes and potentials (T, N, 4)."""

    def __init__(self, snn) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 6)
        self.lif1 = snn.Leaky(beta=torch.full((6,), 0.9), learn_beta=True)
        self.fc2 = nn.Linear(6, 4)
        self.lif2 = snn.Synaptic(alpha=0.7, beta=0.8, reset_mechanism="zero")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        syn2, mem2 = self.lif2.init_synaptic()
        spikes, potentials = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spikes.append(spk2)
            potentials.append(mem2)
        return torch.stack(spikes), torch.stack(potentials)


def snntorch_passed() -> nn.Module:
    return Passing(library("snntorch"))


def snntorch_held() -> nn.Module:
    """States in buffers; the network knows one step alone."""
    snn = library("snntorch")
    layers = (nn.Linear(5, 6), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(6, 4))
    return over_time(nn.Sequential(*layers, snn.Leaky(beta=0.8, init_hidden=True)), steps=STEPS)


def snntorch_recurrent() -> nn.Module:
    """A layer of neurons with recurrent weights of its own, fed with spike trains."""
    snn = library("snntorch")
    neurons = snn.RLeaky(beta=0.9, linear_features=6, init_hidden=True)
    return over_time(nn.Sequential(nn.Linear(5, 6), neurons, nn.Linear(6, 4)), read="count")


def spikingjelly_single() -> nn.Module:
    """States in attributes that no state dict holds."""
    neuron = library("spikingjelly.activation_based.neuron")
    layers = (nn.Linear(5, 6), neuron.LIFNode(tau=2.0), nn.Linear(6, 4), neuron.ParametricLIFNode())
    return over_time(nn.Sequential(*layers), steps=STEPS)


def spikingjelly_multi() -> nn.Module:
    """All time steps within one call of each neuron."""
    functional = library("spikingjelly.activation_based.functional")
    neuron, layer = (library(f"spikingjelly.activation_based.{name}") for name in ("neuron", "layer"))
    layers = (layer.Linear(5, 6), neuron.LIFNode(tau=2.0), layer.Linear(6, 4), neuron.IFNode(v_reset=None))
    functional.set_step_mode(network := nn.Sequential(*layers), "m")
    return over_time(network, steps=STEPS, whole=True, read="mean")


def norse_cells() -> nn.Module:
    """States in named tuples, passed and returned; the last layer gives its potential."""
    norse = library("norse.torch")
    layers = (nn.Linear(5, 6), norse.LIFCell(), nn.Linear(6, 4), norse.LICell())
    return over_time(norse.SequentialState(*layers), steps=STEPS, carry=True)


def norse_whole() -> nn.Module:
    """Spike trains through layers that know time, one of them with recurrent weights."""
    norse = library("norse.torch")
    layers = (nn.Linear(5, 6), norse.LIF(), norse.LIFRecurrent(6, 5), nn.Linear(5, 4), norse.LI())
    return over_time(norse.SequentialState(*layers), whole=True, carry=True, read="last")


class Cells(nn.Module):
    """Torch's own recurrent cell in a loop, behind a gated recurrent layer; (N, T, 5) to (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6)
        self.cell = nn.LSTMCell(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        sequence, state = self.gru(x.transpose(0, 1))[0], None
        for step in sequence:
            state = self.cell(step, state)
        return state[0]


SPIKING: dict[str, Callable[[], nn.Module]] = {
    one.__name__: one
    for one in (
        snntorch_passed,
        snntorch_held,
        snntorch_recurrent,
        spikingjelly_single,
        spikingjelly_multi,
        norse_cells,
        norse_whole,
        Cells,
    )
}
_TRAINS = ("snntorch_recurrent", "norse_whole", "Cells")


def spiking(name: str) -> tuple[nn.Module, Data]:
    """Return a network that spikes on its inputs, and five of them."""
    torch.manual_seed(7)
    model = SPIKING[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3
    shape = (5, STEPS, 5) if name in _TRAINS else (5, 5)
    return model, Data(torch.rand(shape) * 2)
