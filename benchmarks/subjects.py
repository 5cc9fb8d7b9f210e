"""The four networks of the benchmark of hardening, the images that are known of each, and the recipes to choose from.

A recipe is meant to lower failures in weights and in activations ten times, at 0.2 points of accuracy and 5 % of time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from benchmarks.ecosystem import missing
from benchmarks.engine import MEAN, STD, data_folder, resnet20
from benchmarks.spiking import digits as spiking_digits
from torchfault import demo, represent
from torchfault.data import Data
from torchfault.hardening import (
    InvariantBits,
    Method,
    Ranges,
    Secded,
    Standby,
    WeightChecksums,
    WeightRanges,
    ZeroSpace,
    unpacked,
)

Recipes = Mapping[str, tuple[Method, ...]]
_BLOCKS = Ranges(("layer?.?:input", "layer?:output"), action="zero")
_INPUTS = Ranges(("layer?.?:input", "linear:input"), action="zero")
_LAYERS = ("*conv*.weight", "linear.*")
_CODES = ("*conv*.weight", "linear.weight")
_FLOATS = InvariantBits(("*_scale", "*bn*", "linear.bias"))


@dataclass(frozen=True)
class Subject:
    """A network, images for golden ranges and the choice of a recipe, images to measure on, and recipes.

    *often* is how many times more trials of each kind it gets: those of small networks take next to no time, and of
    some hardly any fails. Weights of models on standby are struck in *captured* graphs, unless these run many steps: a
    graph that decodes words in each of ten steps takes as long for a lane as the module does for a pass.
    """

    model: nn.Module
    known: Data
    measured: Data
    recipes: Recipes
    often: Mapping[str, int] = field(default_factory=lambda: {"weights": 1, "activations": 1})
    captured: bool = True


def resnet() -> Subject:
    """Return ResNet-20 with 2,000 training images for its ranges."""
    model, measured = resnet20(slice(1000))
    with np.load(data_folder() / "cifar10_train_4000.npz") as archive:
        shown = torch.from_numpy(archive["images"][:2000])
    pixels = shown.permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    recipes = {
        "invariant bits of layers, ranges between blocks": (InvariantBits(_LAYERS), _BLOCKS),
        "invariant bits, ranges between blocks": (InvariantBits(), _BLOCKS),
        "invariant bits of layers, ranges of what blocks read": (InvariantBits(_LAYERS), _INPUTS),
        "invariant bits, ranges between blocks, on standby": (InvariantBits(), _BLOCKS, Standby()),
        "weight ranges of layers, ranges between blocks": (WeightRanges(_LAYERS, action="zero"), _BLOCKS),
    }
    return Subject(model.requires_grad_(False), Data(pixels.contiguous()), measured, recipes)


def int8_resnet() -> Subject:
    """Return the same with weights of int8: of flips in words one in a thousand fails, most of them in codes."""
    plain = resnet()
    recipes = {
        "invariant bits of scales and norms, ranges between blocks": (_FLOATS, _BLOCKS),
        "invariant bits, ranges between blocks, on standby": (InvariantBits(), _BLOCKS, Standby()),
        "SECDED, checksums of codes, ranges between blocks, on standby": (
            Secded(),
            WeightChecksums(_CODES),
            _BLOCKS,
            Standby(),
        ),
        "zero-space codes, invariant bits of scales and norms, ranges between blocks": (ZeroSpace(), _FLOATS, _BLOCKS),
    }
    model = unpacked(represent(plain.model, "int8")).requires_grad_(False)
    return Subject(model, plain.known, plain.measured, recipes, {"weights": 4, "activations": 1})


def digits() -> Subject:
    """Return the digits CNN, ranges from the first half of the test images."""
    data, zero = demo.data(), Ranges(action="zero")
    recipes = {
        "invariant bits, ranges": (InvariantBits(), zero),
        "invariant bits of matrices, ranges": (InvariantBits("*.weight"), zero),
        "invariant bits of matrices, ranges of layers": (
            InvariantBits("*.weight"),
            Ranges(("conv2:input", "fc?:input"), action="zero"),
        ),
        "SECDED, ranges, on standby": (Secded(), zero, Standby()),
        "invariant bits, ranges, on standby for the answer": (InvariantBits(), zero, Standby(words=False)),
    }
    known, measured = data.take(slice(0, 148)), data.take(slice(148, None))
    return Subject(demo.model().requires_grad_(False), known, measured, recipes, {"weights": 4, "activations": 4})


def spiking() -> Subject:
    """Return 64-48-10 leaky neurons over ten steps, with guards on currents and spikes, and on their count.

    What is out of range in the count is clamped: to zero the largest would take the answer away. Currents of the first
    layer are the same at all steps, spikes and their count are whole numbers: looks hold what a pass gave against that.
    Currents of the second that are far off leave the potentials that they are added to far off to the end.
    """
    model, data = spiking_digits()
    ranges = (Ranges("*:input", action="zero"), Ranges("0:output"))
    recipes = {
        "invariant bits, ranges": (InvariantBits(), *ranges),
        "weight ranges, ranges": (WeightRanges(action="zero"), *ranges),
        "SECDED, on standby for currents, spikes and potentials": (
            Secded(),
            Standby((":output", "0.1:input", "0.1:output", "0.3:state.mem")),
        ),
    }
    known, measured = data.take(slice(0, 50)), data.take(slice(50, None))
    often = {"weights": 2, "activations": 2}
    return Subject(nn.Sequential(model).eval().requires_grad_(False), known, measured, recipes, often, captured=False)


NETWORKS: Mapping[str, Callable[[], Subject]] = {
    "ResNet-20": resnet,
    "int8 ResNet-20": int8_resnet,
    "spiking digits": spiking,
    "digits CNN": digits,
}


def unbuildable(name: str) -> bool:
    """Return whether a network cannot be built for want of snnTorch."""
    return name == "spiking digits" and bool(missing("snntorch"))
