"""How much an answer depends on each weight and activation: gradients, layer conductance, slopes of the margin."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.criteria.outputs import score
from torchfault.data import Data, Tree, leaves
from torchfault.errors import ModelError
from torchfault.sampling import Effect
from torchfault.sensitivity.watch import activations, first, gradient, logits, module_of, rows_of, top_margins
from torchfault.sensitivity.words import Source, sources
from torchfault.space import FaultSpace, Site

__all__ = ["conductances", "effect", "gradients", "held_values", "margins"]

Columns = dict[str, NDArray[np.float32]]


def gradients(model: nn.Module, data: Data, space: FaultSpace, *, images: int = 32) -> Columns:
    """Return the derivative of the sum of all logits over the first *images*, by every element of *space*.

    Each site of *space*, a parameter or an input or output of a module, or the codes or scales of one, maps to the size
    of the derivatives, shape (elements,): for a parameter as ISimDL has it, summed with their signs over classes and
    images; for an activation, which is another one in every image, the mean of their sizes. Raises :class:`ModelError`
    for other sites. Source: ISimDL, arXiv 2303.08035, and the code of its authors.

    >>> from torchfault.data import Data
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
    >>> space = FaultSpace((Site("0.weight", (2, 2)),))
    >>> gradients(model, Data(torch.tensor([[1.0, -3.0]])), space)["0.weight"]
    array([1., 3., 1., 3.], dtype=float32)
    """
    data = first(data, images)
    found: Columns = {}
    for source, value, slope in _derived(model, data, sources(model, space), lambda scores: scores):
        mean = source.parameter is None
        for name, (_, by) in source.columns(value, slope).items():
            found[name] = _column(by.abs().mean(0) if mean else by.abs())
    return found


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
    data, found = first(data, images), {}
    for source, value, none in _held(model, data, sources(model, space)):
        for name, (held, _) in source.columns(value, none).items():
            found[name] = _column(held.mean(0))
    return found


def effect(model: nn.Module, data: Data, space: FaultSpace, *, images: int = 8) -> Effect:
    """Return the first-order prediction of every fault's failure probability, from the first *images*.

    The slopes are those of the predicted class's lead over the next one. Inputs without a lead are left out. It takes a
    backward pass per image, and keeps *images* numbers per element. Of codes and scales, which are multiplied, the
    chain rule tells the slopes: a scale counts by all values of its block together. Raises :class:`ModelError` for
    sites that are no parameter and no input or output of a module, and where no input has a lead.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False)).eval()
    >>> space = FaultSpace((Site("0.weight", (2, 2)),))
    >>> score = effect(model, Data(torch.tensor([[1.0, -3.0]])), space)
    >>> score.rows(space.sites[0], np.array([0, 1]))[:, 30]
    array([1., 1.])
    """
    found = sources(model, space)
    slopes: dict[str, list[Any]] = {site.name: [] for site in space.sites}
    values: dict[str, list[Any]] = {site.name: [] for site in space.sites}
    margins = []
    for k in range(min(images, len(data))):
        leads: list[float] = []
        derived = _derived(model, data.take(slice(k, k + 1)), found, partial(_lead, leads))
        if not leads[0] > 0:
            continue
        margins.append(leads[0])
        for source, value, slope in derived:
            for name, (held, by) in source.columns(value, slope).items():
                slopes[name].append(np.nan_to_num(_column(by.abs()), posinf=3e38))
                values[name] = [*values[name], _column(held)] if source.parameter is None else [_column(held)]
    if not margins:
        raise ModelError("a first-order effect needs an input with one best class, got none; use other data")
    return Effect(_joined(slopes), _joined(values), margins=np.array(margins))


def _joined(columns: Mapping[str, Sequence[Any]]) -> Columns:
    """Return the columns of each site beside each other, one for each input."""
    return {name: np.stack(rows, 1) for name, rows in columns.items()}


def _lead(leads: list[float], scores: Tensor) -> Tensor:
    """Return the lead of the best class, and note it."""
    lead = top_margins(scores).amin()
    leads.append(float(lead.detach()))
    return lead


def _derived(
    model: nn.Module, data: Data, found: Sequence[Source], of: Callable[[Tensor], Tensor]
) -> list[tuple[Source, Tensor, Tensor]]:
    """Return the value of each source, and the derivative by it of what *of* makes of the logits."""
    with _differentiable(model), activations(model, _computed(found), rows_of(data.inputs)) as kept:
        made = of(logits(model, data.inputs))
        by = [kept[one.name] if one.parameter is None else one.parameter for one in found]
        return list(zip(found, by, gradient(made, by), strict=True))


def _held(model: nn.Module, data: Data, found: Sequence[Source]) -> list[tuple[Source, Tensor, Tensor]]:
    """Return the value of each source, and zeros in the place of derivatives."""
    with torch.no_grad(), activations(model, _computed(found), rows_of(data.inputs)) as kept:
        logits(model, data.inputs)
    values = [kept[one.name] if one.parameter is None else one.parameter for one in found]
    return [(one, value, torch.zeros_like(value)) for one, value in zip(found, values, strict=True)]


def _computed(found: Sequence[Source]) -> list[Site]:
    """Return one site of each activation."""
    return [next(iter(one.sites.values())) for one in found if one.parameter is None]


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
