"""How much an answer depends on each weight and activation: gradients, layer conductance, slopes of the margin."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.criteria.outputs import score
from torchfault.data import Data, Tree, leaves
from torchfault.errors import ModelError
from torchfault.model.memory import homes
from torchfault.model.rounding import rounding
from torchfault.names import site_name
from torchfault.sampling import Effect
from torchfault.sensitivity.watch import activations, first, gradient, logits, module_of, rows_of, top_margins
from torchfault.space import FaultSpace, Site
from torchfault.storages import InBlocks

__all__ = ["conductances", "effect", "gradients", "held_values", "margins"]

Columns = dict[str, NDArray[np.float32]]


def gradients(model: nn.Module, data: Data, space: FaultSpace, *, images: int = 32) -> Columns:
    """Return the derivative of the sum of all logits over the first *images*, by every element of *space*.

    Each site of *space*, a parameter or an input or output of a module, maps to the size of the derivatives, shape
    (elements,): for a parameter as ISimDL has it, summed with their signs over classes and images; for an activation,
    which is another one in every image, the mean of their sizes. Raises :class:`ModelError` for other sites. Source:
    ISimDL, arXiv 2303.08035, and the code of its authors.

    >>> from torchfault.data import Data
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
    >>> space = FaultSpace((Site("0.weight", (2, 2)),))
    >>> gradients(model, Data(torch.tensor([[1.0, -3.0]])), space)["0.weight"]
    array([1., 3., 1., 3.], dtype=float32)
    """
    data = first(data, images)
    stored, computed = _divided(model, space)
    with _differentiable(model), activations(model, computed, len(data)) as kept:
        scores = logits(model, data.inputs)
        slopes = gradient(scores, [*stored.values(), *(kept[site.name] for site in computed)])
    found = {name: _column(slope.abs()) for name, slope in zip(stored, slopes, strict=False)}
    later = zip(computed, slopes[len(stored) :], strict=True)
    return found | {site.name: _column(slope.abs().mean(0)) for site, slope in later}


def conductances(
    model: nn.Module, data: Data, space: FaultSpace, *, images: int = 32, steps: int = 50, signed: bool = False
) -> Columns:
    """Return the layer conductance of every activation of *space*, averaged over the first *images*, shape (elements,).

    The target is the label, or the predicted class without labels; the baseline is an input of zeros; *steps* points of
    Gauss and Legendre approximate the integral. Sizes are returned, or with *signed* the averages themselves. Needs the
    package captum (``pip install torchfault[isimdl]``); raises :class:`ModelError` without it, and for sites that are
    no input or output of a module. Source: Dhamdhere, Sundararajan & Yan, "How important is a neuron?", ICLR 2019, as
    ISimDL uses it.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)).eval()
    >>> space = FaultSpace((Site("0:output", (2,), kind="output"),))
    >>> conductances(model, Data(torch.ones(3, 2)), space)["0:output"].shape
    (2,)
    """
    layer_conductance = _captum()
    data = first(data, images)
    inputs = tuple(leaves(data.inputs))
    if not isinstance(data.inputs, Tensor | tuple | list) or any(not x.is_floating_point() for x in inputs):
        raise ModelError("layer conductance scales the inputs, which takes real ones, got others; use gradients")
    with torch.no_grad():
        best = logits(model, data.inputs)[:, 0].argmax(-1)
    target = data.labels if isinstance(data.labels, Tensor) and data.labels.ndim == 1 else best
    found = {}
    for site in space.sites:
        module, end = module_of(model, site)
        with _differentiable(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of captum, about hooks that are removed again
            attributed = layer_conductance(lambda *x: logits(model, x)[:, 0], module).attribute(
                inputs,
                target=target,
                n_steps=steps,
                internal_batch_size=max(len(target), 256),
                attribute_to_layer_input=end == "input",
            )
        whole = (attributed[0] if isinstance(attributed, tuple) else attributed).detach().mean(0)
        if tuple(whole.shape) != site.shape:
            raise ModelError(f"'{site.name}' is {site.shape}, its conductance {tuple(whole.shape)}; leave it out")
        found[site.name] = _column(whole if signed else whole.abs())
    return found


def held_values(model: nn.Module, data: Data, space: FaultSpace, *, images: int = 32) -> Columns:
    """Return what the elements of *space* hold, shape (elements,): for activations their mean over the first *images*.

    >>> model = nn.Sequential(nn.Linear(2, 2)).eval()
    >>> space = FaultSpace((Site("0:input", (2,), kind="input"),))
    >>> held_values(model, Data(torch.tensor([[1.0, 2.0], [3.0, 2.0]])), space)["0:input"]
    array([2., 2.], dtype=float32)
    """
    data = first(data, images)
    stored, computed = _divided(model, space)
    with torch.no_grad(), activations(model, computed, len(data)) as kept:
        logits(model, data.inputs)
    return {name: _column(x) for name, x in stored.items()} | {s.name: _column(kept[s.name].mean(0)) for s in computed}


def effect(model: nn.Module, data: Data, space: FaultSpace, *, images: int = 8) -> Effect:
    """Return the first-order prediction of every fault's failure probability, from the first *images*.

    The slopes are those of the predicted class's lead over the next one. Inputs without a lead are left out. It takes a
    backward pass per image, and keeps *images* numbers per element. Raises :class:`ModelError` for sites that are no
    parameter and no input or output of a module, and where no input has a lead.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
    >>> space = FaultSpace((Site("0.weight", (2, 2)),))
    >>> score = effect(model, Data(torch.tensor([[1.0, -3.0]])), space)
    >>> score.rows(space.sites[0], np.array([0, 1]))[:, 30]
    array([1., 1.])
    """
    stored, computed = _divided(model, space)
    slopes: dict[str, list[Any]] = {site.name: [] for site in space.sites}
    values: dict[str, list[Any]] = {site.name: [] for site in computed}
    margins = []
    for k in range(min(images, len(data))):
        one = data.take(slice(k, k + 1))
        with _differentiable(model), activations(model, computed, rows_of(one.inputs)) as kept:
            lead = top_margins(logits(model, one.inputs)).amin()
            found = gradient(lead, [*stored.values(), *(kept[site.name] for site in computed)])
        if not float(lead.detach()) > 0:
            continue
        margins.append(float(lead.detach()))
        for name, slope in zip([*stored, *(site.name for site in computed)], found, strict=True):
            slopes[name].append(np.nan_to_num(_column(slope.abs()), posinf=3e38))
        for site in computed:
            values[site.name].append(_column(kept[site.name]))
    if not margins:
        raise ModelError("a first-order effect needs an input with one best class, got none; use other data")
    held = {name: _column(x) for name, x in stored.items()} | {name: np.stack(v, 1) for name, v in values.items()}
    return Effect({name: np.stack(rows, 1) for name, rows in slopes.items()}, held, margins=np.array(margins))


def _divided(model: nn.Module, space: FaultSpace) -> tuple[dict[str, Tensor], list[Site]]:
    """Return the parameters among the sites of *space*, and the activations, whose words stand for them alone."""
    parameters = dict(model.named_parameters())
    scaled = {name for home in homes(model) if len(home.words) > 1 for name in home.words}
    modules = dict(model.named_modules())
    for name in (site.name for site in space.sites):
        parts = site_name(name)
        storage = rounding(modules[parts.path], parts.role) if parts.path in modules else None
        if name in scaled or isinstance(storage, InBlocks):
            raise ModelError(f"the words of '{name}' stand for values only with their scales; choose other sites")
    stored: dict[str, Tensor] = {site.name: parameters[site.name] for site in space.sites if site.name in parameters}
    return stored, [site for site in space.sites if site.name not in stored]


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Let gradients flow by every real parameter, and leave no trace."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in before:
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, was in before:
            parameter.requires_grad_(was)


def _column(tensor: Tensor) -> NDArray[np.float32]:
    column: NDArray[np.float32] = tensor.detach().float().cpu().flatten().numpy().copy()
    return column


def _captum() -> Any:
    try:
        from captum.attr import LayerConductance
    except ImportError:
        raise ModelError(
            "layer conductance needs the package captum, which is not installed; use pip install torchfault[isimdl]"
        ) from None
    return LayerConductance


def margins(outputs: Tree) -> NDArray[np.float64]:
    """Return the lead of the best class over the next in golden *outputs*, shape (inputs,): the least of any position.

    Raises :class:`torchfault.errors.CriterionError` for outputs that are no scores of shape (inputs, classes).

    >>> margins(torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]]))
    array([0.5, 3. ])
    """
    lead = top_margins(score(outputs, output=None, axis=None).values).amin(dim=1)
    return np.asarray(lead.double().cpu().numpy())
