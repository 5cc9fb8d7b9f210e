"""Which of three architectures loses least when an upset strikes the chip? Resiliency Accuracy as an objective.

Trains three small networks on scikit-learn's digits and ranks them on the output-stationary array with hardened
control, so that what is left to tell them apart is what faults in their data do.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from torchfault import Data, Engine, MaxTrials
from torchfault.campaign import run
from torchfault.hardware.accelerator import OUTPUT_STATIONARY, hardened
from torchfault.recipes import upsets
from torchfault.results import resiliency
from torchfault.statistics import Estimate

CHIP = hardened(OUTPUT_STATIONARY, "control", fit=20.0)
BUDGET = 4096  # lanes for each


def architectures() -> dict[str, nn.Module]:
    """Return a plain network, one with bounded activations, and a wide, flat one."""
    return {
        "plain": nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        ),
        "bounded": nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU6(), nn.Conv2d(8, 16, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(256, 10)
        ),
        "wide": nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
    }


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, epochs: int = 12) -> nn.Module:
    """Train *model* in place and return it in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def objective(model: nn.Module, data: Data) -> Estimate:
    """Return the Resiliency Accuracy of *model*, at a cost that is given beforehand."""
    return resiliency(run(upsets(Engine(model, data), CHIP, stop=MaxTrials(BUDGET)))).ra


def main() -> None:
    """Train, measure and rank."""
    torch.manual_seed(0)
    held = load_digits()
    images = torch.from_numpy(held.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(held.target).long()
    test = Data(images[-300:], labels[-300:])
    trained = {name: train(model, images[:-300], labels[:-300]) for name, model in architectures().items()}
    found = {name: objective(model, test) for name, model in trained.items()}
    for name, ra in sorted(found.items(), key=lambda pair: -pair[1].value):
        print(f"{name:8} RA {100 * ra.value:.2f} % [{100 * ra.low:.2f}, {100 * ra.high:.2f}]")


if __name__ == "__main__":
    main()
