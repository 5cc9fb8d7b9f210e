"""The networks of the Thales paper's tables: a small MNIST network and LeNet-5."""

import torch
from torch import nn

from torchfault.data import Data


def mnist() -> tuple[nn.Module, Data]:
    """Return the two-convolution MNIST network (144000, 320000, 16000 and 500 MACs) and two inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Linear(50, 10),
    )  # fmt: skip
    return model.eval(), Data(torch.randn(2, 1, 28, 28))


def lenet5() -> tuple[nn.Module, Data]:
    """Return LeNet-5 (117600, 240000, 48000, 10080 and 840 MACs) and two inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip
    return model.eval(), Data(torch.randn(2, 1, 32, 32))
