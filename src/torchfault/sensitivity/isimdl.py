"""ISimDL by its published codes, and the scheme in which the sensitivity reaches the choice of the bit."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from numpy.typing import ArrayLike
from torch import nn

from torchfault.data import Data
from torchfault.errors import SamplingError
from torchfault.sampling import Importance, Sensitivity
from torchfault.sensitivity.measure import conductances, gradients, held_values
from torchfault.space import FaultSpace

__all__ = ["BIT_CODES", "CODES", "corrected", "isimdl", "rising"]

BIT_CODES: Mapping[str, str] = MappingProxyType({"G": "derivative", "E": "exponential", "L": "linear", "R": "random"})
CODES = tuple(f"{bit}B{neuron}N" for bit in BIT_CODES for neuron in "IR")


def isimdl(
    model: nn.Module,
    data: Data,
    space: FaultSpace,
    code: str = "GBIN",
    *,
    threshold: float = 0.0,
    floor: float = 0.0,
    images: int = 32,
) -> Importance:
    """Return the sampler that ISimDL publishes under *code*, such as ``GBIN``: gradient bit, important neuron.

    Bits come by Gradient, Exponentially, Linearly or at Random, neurons by Importance or at Random.

    Every site is as likely as any other. Within it an important neuron comes in proportion to its sensitivity, the sum
    of the logits' gradients over the first *images* for a weight, the layer conductance for an activation, and with
    probability *threshold* (published with 0.1) at random instead. Its bit comes by
    :func:`~torchfault.sampling.bits.bit_derivatives` of its value (``G``; of the conductance, for an activation, as
    published), 2^i, i + 1, or at random. The sensitivity never reaches the bit: a gradient scales the derivatives of
    all bits alike, and their shares not at all. See :func:`corrected`.

    As published, with neither *threshold* nor *floor*, an element of sensitivity 0 is never struck: estimates are then
    of the others. Raises :class:`SamplingError` for an unknown code. Source: Colucci, Steininger & Shafique, "ISimDL",
    arXiv 2303.08035, and the code of its authors (class ImportanceSampling, codes "{}B{}N{}" + o or w).

    >>> import torch
    >>> from torchfault.space import Site
    >>> model = nn.Sequential(nn.Linear(2, 2)).eval()
    >>> space = FaultSpace((Site("0.weight", (2, 2)),))
    >>> isimdl(model, Data(torch.ones(1, 2)), space, "EBIN").score.bits
    'exponential'
    """
    parsed = re.fullmatch(r"([GELR])B([IR])N[ow]?", code)
    if not parsed:
        raise SamplingError(f"a code of ISimDL is one of {', '.join(CODES)}, got '{code}'; GBIN is its best")
    bits, important = BIT_CODES[parsed[1]], parsed[2] == "I"
    elements: Mapping[str, ArrayLike] = {}
    values: Mapping[str, ArrayLike] | None = None
    activations = FaultSpace(kept) if (kept := tuple(s for s in space.sites if s.is_activation)) else None
    stored = FaultSpace(kept) if (kept := tuple(s for s in space.sites if not s.is_activation)) else None
    signed = {}
    if activations and (important or bits == "derivative"):
        signed = conductances(model, data, activations, images=images, signed=True)
    if important:
        elements = {name: abs(column) for name, column in signed.items()}
        elements |= gradients(model, data, stored, images=images) if stored else {}
    if bits == "derivative":
        values = signed | (held_values(model, data, stored, images=1) if stored else {})
    score = Sensitivity(elements, bits=bits, values=values)
    return Importance(score, floor=floor, shares="equal", threshold=threshold)


def corrected(
    model: nn.Module, data: Data, space: FaultSpace, *, bits: str = "derivative", floor: float = 0.5, images: int = 32
) -> Importance:
    """Return ISimDL's gradient sampler with the chain rule carried through: |d logits / dv| |dv / d bit| for each.

    Element and bit are drawn together, over all sites at once, so that a sensitive element whose bits matter gains over
    others; *bits* may be ``change`` for the change that the flip really makes, where a derivative extrapolates from a
    point. A share *floor* is drawn uniformly: no fault is left out, and no weight is above 1 / *floor*.

    >>> import torch
    >>> from torchfault.space import Site
    >>> model = nn.Sequential(nn.Linear(2, 2)).eval()
    >>> space = FaultSpace((Site("0.weight", (2, 2)),))
    >>> corrected(model, Data(torch.ones(1, 2)), space).score.joint
    True
    """
    slopes = gradients(model, data, space, images=images)
    values = held_values(model, data, space, images=images)
    return Importance(Sensitivity(slopes, bits=bits, values=values, joint=True), floor=floor)


def rising(model: nn.Module, data: Data, space: FaultSpace, *, floor: float = 0.5, images: int = 32) -> Importance:
    """Return a sampler of flips that make a sensitive element very large, and not very small: of positive values.

    Bits come in proportion to the change that their flip makes, elements in proportion to their gradient where they
    hold a value above 0 (on average, for activations), sites by size. What a layer gives mostly meets a rectifier,
    which lets the very large pass and stops the very negative; inputs behind rectifiers are not negative, so that a
    weight's sign decides which of the two it is. A share *floor* is drawn uniformly.

    >>> import torch
    >>> from torchfault.space import Site
    >>> model = nn.Sequential(nn.Linear(2, 2)).eval()
    >>> space = FaultSpace((Site("0.weight", (2, 2)),))
    >>> sampler = rising(model, Data(torch.ones(1, 2)), space)
    >>> bool((model[0].weight.flatten()[sampler.score.elements["0.weight"][:, 0] > 0] > 0).all())
    True
    """
    slopes, values = gradients(model, data, space, images=images), held_values(model, data, space, images=images)
    positive = {name: slopes[name] * (values[name] > 0) for name in values}
    return Importance(Sensitivity(positive, bits="change", values=values), floor=floor, shares="size")
