"""Spiking networks in snnTorch for the benchmarks: one that learns digits in seconds, and one of many neurons."""

from functools import cache

import torch
from torch import Tensor, nn

from torchfault.adapters.over_time import over_time
from torchfault.data import Data

STEPS = 10
TRAINED, SHOWN = 1400, 100
EPOCHS, BATCH, RATE = 8, 64, 5e-3


@cache
def digits() -> tuple[nn.Module, Data]:
    """Return 64-48-10 leaky neurons trained on scikit-learn's digits, and the first 100 images that they never saw.

    An image is the same current at each of 10 time steps; what is read is how often each output neuron spikes.
    """
    import snntorch as snn
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images.reshape(-1, 64) / 16, dtype=torch.float32)
    labels = torch.tensor(bunch.target)
    torch.manual_seed(0)
    layers = (nn.Linear(64, 48), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(48, 10))
    model = over_time(nn.Sequential(*layers, snn.Leaky(beta=0.9, init_hidden=True)), steps=STEPS, read="count")
    _train(model, images[:TRAINED], labels[:TRAINED])
    shown = slice(TRAINED, TRAINED + SHOWN)
    return model.eval(), Data(images[shown], labels[shown])


def _train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def convolutional() -> nn.Module:
    """Return two spiking convolutions for images (N, 3, 32, 32): 49,152 membrane potentials at each of 4 steps."""
    import snntorch as snn

    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 32, 3, padding=1),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return over_time(nn.Sequential(*layers), steps=4, read="mean").eval()
