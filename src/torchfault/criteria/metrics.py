"""Metrics of a whole data set, for campaigns that run every fault on all inputs: accuracy, mean IoU, perplexity."""

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from torchfault.criteria.outputs import Scores, flat, pick, score, sides, target
from torchfault.data import Tree
from torchfault.errors import CriterionError

__all__ = [
    "Accuracy",
    "MeanIou",
    "Metric",
    "Perplexity",
    "accuracy",
    "bounds",
    "higher_is_better",
    "mean_iou",
    "perplexity",
    "surprise",
]


class Metric(Protocol):
    """Turns the outputs for a whole data set, and its labels, into one number; any such function will do."""

    def __call__(self, outputs: Tree, labels: Tree | None, /) -> float:
        """Return the metric over all rows."""
        ...


def accuracy(
    outputs: Tree,
    labels: Tree | None,
    *,
    axis: int | None = None,
    output: str | int | None = None,
    label: str | int | None = None,
    ignore: int = -100,
    threshold: float | None = None,
) -> float:
    """Return the share of positions whose highest score is that of the label, from 0 to 1.

    Scores are (N, classes), or have their classes along *axis*; labels have the same shape without the classes.
    Positions labelled *ignore* do not count; one with any NaN or infinite score counts as wrong. *output* and *label*
    name one tensor of several. With a *threshold* an output is one value for each label, 0 or 1, and says 1 above it.
    Raises :class:`CriterionError` where scores and labels do not fit or no label counts.

    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2], [torch.nan, 0.0]]), torch.tensor([1, 1, 0]))
    0.3333333333333333
    """
    if threshold is not None:
        values = pick(outputs, output)
        wanted, counts = _some(sides(values, labels, label=label, ignore=ignore))
        hits = (flat(values > threshold) == wanted) & flat(values.isfinite()) & counts
        return int(hits.sum()) / int(counts.sum())
    scores = score(outputs, output=output, axis=axis)
    right, counts = _some(target(labels, scores, label=label, ignore=ignore))
    hits = (_predicted(scores) == right) & counts
    return int(hits.sum()) / int(counts.sum())


def mean_iou(
    outputs: Tree,
    labels: Tree | None,
    *,
    classes: int,
    axis: int = 1,
    output: str | int | None = None,
    label: str | int | None = None,
    ignore: int = -100,
) -> float:
    """Return the intersection over union of predicted and labelled positions, averaged over the classes, from 0 to 1.

    Outputs are scores with *classes* along *axis*, labels have the same shape without it. A class that is neither
    predicted nor labelled anywhere is left out of the average. Positions labelled *ignore* do not count; one with any
    NaN or infinite score is predicted as no class. Raises :class:`CriterionError` as :func:`accuracy` does. In a
    campaign, give ``functools.partial(mean_iou, classes=21)``.

    >>> scores = torch.tensor([[[0.9, 0.2, 0.3], [0.1, 0.8, 0.7]]])
    >>> mean_iou(scores, torch.tensor([[0, 1, 0]]), classes=2)
    0.5
    """
    scores = score(outputs, output=output, axis=axis)
    if scores.values.shape[-1] != classes:
        raise CriterionError(f"expected scores of {classes} classes along axis {axis}, got {scores.values.shape[-1]}")
    right, counts = _some(target(labels, scores, label=label, ignore=ignore))
    truth, guess = right[counts], _predicted(scores)[counts]
    labelled, predicted = truth.bincount(minlength=classes), guess[guess >= 0].bincount(minlength=classes)
    both = truth[truth == guess].bincount(minlength=classes)
    union = labelled + predicted - both
    return float((both[union > 0].double() / union[union > 0]).mean())


def perplexity(
    outputs: Tree,
    labels: Tree | None,
    *,
    shift: bool = False,
    output: str | int | None = None,
    label: str | int | None = None,
    ignore: int = -100,
) -> float:
    """Return exp of the mean negative log-likelihood of the labelled tokens, from 1 up; lower is better.

    Scores are (N, T, tokens) and labels (N, T). With *shift* the labels are the inputs themselves, as Hugging Face has
    them: position t is held against label t + 1. Positions labelled *ignore* do not count; one with any NaN or infinite
    score gives its token no probability, and the result is infinite. Raises :class:`CriterionError` as
    :func:`accuracy` does.

    >>> round(perplexity(torch.zeros(1, 2, 5), torch.tensor([[3, 4]])), 6)
    5.0
    """
    scores = score(outputs, output=output, axis=-1)
    right, counts = target(labels, scores, label=label, ignore=ignore)
    values = scores.values
    if shift:
        values, right, counts = values[:, :-1], right[:, 1:], counts[:, 1:]
    right, counts = _some((right, counts))
    # Row by row, since a second copy of all scores of a large vocabulary may not fit.
    total = sum(float(surprise(row[m], token[m]).sum()) for row, token, m in zip(values, right, counts, strict=True))
    return float(torch.tensor(total / int(counts.sum()), dtype=torch.float64).exp())  # infinite beyond 1e308


def surprise(scores: Tensor, token: Tensor) -> Tensor:
    """Return -log p(token) of each position, of the shape of *token*; infinite where a score is not finite.

    >>> surprise(torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]), torch.tensor([1, 1]))
    tensor([0.6931,    inf], dtype=torch.float64)
    """
    wide = scores.double()
    each = wide.logsumexp(-1) - wide.gather(-1, token.unsqueeze(-1)).squeeze(-1)
    return each.where(scores.isfinite().all(-1), math.inf)


def _predicted(scores: Scores) -> Tensor:
    """Return the class with the highest score, -1 where a score is not finite, shape (rows, positions)."""
    return torch.where(scores.values.isfinite().all(-1), scores.values.argmax(-1), -1)


def _some(labelled: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not labelled[1].any():
        raise CriterionError("expected labels that count, got none or only ones to ignore; check labels and ignore=")
    return labelled


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """:func:`accuracy` with its options, as a value."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True

    axis: int | None = None
    output: str | int | None = None
    label: str | int | None = None
    ignore: int = -100
    threshold: float | None = None

    def __call__(self, outputs: Tree, labels: Tree | None, /) -> float:
        """Return the accuracy over all rows."""
        return accuracy(outputs, labels, **vars(self))


@dataclass(frozen=True)
class MeanIou:
    """:func:`mean_iou` with its options, as a value."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True

    classes: int
    _: KW_ONLY
    axis: int = 1
    output: str | int | None = None
    label: str | int | None = None
    ignore: int = -100

    def __call__(self, outputs: Tree, labels: Tree | None, /) -> float:
        """Return the mean intersection over union, over all rows."""
        return mean_iou(outputs, labels, **vars(self))


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """:func:`perplexity` with its options, as a value."""

    bounds: ClassVar[tuple[float, float]] = (1.0, math.inf)
    higher_is_better: ClassVar[bool] = False

    shift: bool = False
    output: str | int | None = None
    label: str | int | None = None
    ignore: int = -100

    def __call__(self, outputs: Tree, labels: Tree | None, /) -> float:
        """Return the perplexity over all rows."""
        return perplexity(outputs, labels, **vars(self))


_VALUES: Mapping[Callable[..., float], Any] = {accuracy: Accuracy, mean_iou: MeanIou, perplexity: Perplexity}


def bounds(metric: Metric) -> tuple[float, float]:
    """Return the least and the most that *metric* can be, infinite where it knows no end, or does not say.

    Intervals of means rest on it. Your own metric says so by an attribute: ``my_metric.bounds = (0.0, 1.0)``.

    >>> bounds(Perplexity(shift=True)), bounds(accuracy), bounds(lambda outputs, labels: 0.0)
    ((1.0, inf), (0.0, 1.0), (-inf, inf))
    """
    low, high = getattr(_described(metric), "bounds", (-math.inf, math.inf))
    return float(low), float(high)


def higher_is_better(metric: Metric) -> bool:
    """Return whether a drop of *metric* is a loss, rather than a rise; so it is unless it says otherwise.

    Any metric may say so by an attribute ``higher_is_better``.

    >>> higher_is_better(MeanIou(21)), higher_is_better(perplexity)
    (True, False)
    """
    return bool(getattr(_described(metric), "higher_is_better", True))


def _described(metric: Any) -> Any:
    """Return the value that stands for one of the functions above, else *metric* itself."""
    function = metric
    while isinstance(function, partial):
        function = function.func
    return _VALUES.get(function, function) if callable(getattr(function, "__hash__", None)) else function
