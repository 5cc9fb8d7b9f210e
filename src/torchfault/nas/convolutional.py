"""A small space of convolutional networks, for images of any size: widths, kernels, activations, pooling, norms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from torchfault.data import Data, leaves
from torchfault.errors import DataError

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["ACTIVATIONS", "Architecture", "convolutional", "network"]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "unit": lambda: nn.Hardtanh(0.0, 1.0),
}


@dataclass(frozen=True)
class Architecture:
    """A network: *widths* of its convolutions, each followed by pooling, and of a *hidden* layer, 0 for none.

    *activation* is ``relu``, ``relu6`` (ends at 6) or ``unit`` (ends at 1); *pooling* ``max`` or ``average``.
    """

    widths: tuple[int, ...]
    kernel: int = 3
    activation: str = "relu"
    pooling: str = "max"
    norm: bool = False
    hidden: int = 0


class _Average(nn.Module):
    """The mean over all places of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def network(chosen: Architecture, *, channels: int, classes: int) -> nn.Sequential:
    """Return the network of an architecture, with fresh weights: images (N, *channels*, H, W) to logits (N, *classes*).

    >>> import torch
    >>> network(Architecture((8, 16), hidden=32), channels=1, classes=10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    layers, last = list[nn.Module](), channels
    pooling = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}[chosen.pooling]
    for width in chosen.widths:
        layers.append(nn.Conv2d(last, width, chosen.kernel, padding=chosen.kernel // 2, bias=not chosen.norm))
        layers += [nn.BatchNorm2d(width)] if chosen.norm else []
        layers += [ACTIVATIONS[chosen.activation](), pooling(2)]
        last = width
    layers.append(_Average())
    if chosen.hidden:
        layers += [nn.Linear(last, chosen.hidden), ACTIVATIONS[chosen.activation]()]
        last = chosen.hidden
    return nn.Sequential(*layers, nn.Linear(last, classes))


def convolutional(trial: "Trial", data: Data) -> nn.Module:
    """Return the network that a trial of Optuna chooses for *data*: 2 or 3 convolutions of 8 to 32 channels.

    Raises :class:`DataError` for data that are no labelled images of 8 x 8 pixels or more.
    """
    images = leaves(data.inputs)[0]
    if data.labels is None or images.ndim != 4 or min(images.shape[2:]) < 8:
        raise DataError(
            f"the convolutional space is for labelled images (N, C, H, W) of 8 x 8 pixels or more, got inputs of "
            f"{tuple(images.shape)}; give a space of your own"
        )
    depth = trial.suggest_int("depth", 2, 3)
    widths = tuple(trial.suggest_categorical(f"width{layer}", (8, 16, 32)) for layer in range(depth))
    chosen = Architecture(
        widths,
        kernel=trial.suggest_categorical("kernel", (3, 5)),
        activation=trial.suggest_categorical("activation", tuple(ACTIVATIONS)),
        pooling=trial.suggest_categorical("pooling", ("max", "average")),
        norm=trial.suggest_categorical("norm", (False, True)),
        hidden=trial.suggest_categorical("hidden", (0, 32, 64)),
    )
    return network(chosen, channels=images.shape[1], classes=int(data.labels.max()) + 1)
