"""Criteria and metrics by name: ``top1:axis=1 | margin:0.5``, ``perplexity:shift=1``, ``package.module:name``."""

from collections.abc import Callable
from typing import Any

from torchfault.criteria.compose import AllOf, AnyOf, Criterion, Not
from torchfault.criteria.failures import MarginDrop, Misclassified, NonFinite, OutputError, Top1Change, TopK
from torchfault.criteria.metrics import Accuracy, MeanIou, Metric, Perplexity
from torchfault.criteria.spikes import FirstSpikeChange, SpikeCountChange
from torchfault.criteria.tasks import BoxChange, MaskChange, PerplexityRise
from torchfault.criteria.values import ThresholdChange, TokenChange
from torchfault.errors import CriterionError
from torchfault.expressions import And, Atom, Expression, Or, parse_criterion, parse_metric
from torchfault.expressions import Not as Negated
from torchfault.imports import import_object

__all__ = ["as_criterion", "as_metric"]

_CRITERIA: dict[str, Callable[..., Criterion]] = {
    "top1": Top1Change,
    "topk": TopK,
    "misclassified": Misclassified,
    "margin": MarginDrop,
    "error": OutputError,
    "threshold": ThresholdChange,
    "tokens": TokenChange,
    "non-finite": NonFinite,
    "boxes": BoxChange,
    "masks": MaskChange,
    "perplexity": PerplexityRise,
    "spike-count": SpikeCountChange,
    "first-spike": FirstSpikeChange,
}
_METRICS: dict[str, Callable[..., Metric]] = {"accuracy": Accuracy, "perplexity": Perplexity, "mean-iou": MeanIou}


def as_criterion(given: "str | Criterion") -> Criterion:
    """Return the criterion that a text names, or *given* itself where it is no text.

    Raises :class:`CriterionError` for text that names none.

    >>> as_criterion("topk:5,axis=-1 | ~non-finite")
    AnyOf(parts=(TopK(k=5, axis=-1, share=0.0, output=None), Not(part=NonFinite(output=None))))
    """
    if not isinstance(given, str):
        return given
    try:
        return _criterion(parse_criterion(given))
    except ValueError as error:
        raise CriterionError(str(error)) from None


def as_metric(given: "str | Metric") -> Metric:
    """Return the metric that a text names, or *given* itself where it is no text.

    >>> as_metric("perplexity:shift=1")
    Perplexity(shift=True, output=None, label=None, ignore=-100)
    """
    if not isinstance(given, str):
        return given
    try:
        atom = parse_metric(given)
    except ValueError as error:
        raise CriterionError(str(error)) from None
    return _imported(atom) if atom.name == "import" else _METRICS[atom.name](**dict(atom.arguments))


def _criterion(expression: Expression) -> Criterion:
    match expression:
        case Negated(part):
            return Not(_criterion(part))
        case And(parts):
            return AllOf(tuple(map(_criterion, parts)))
        case Or(parts):
            return AnyOf(tuple(map(_criterion, parts)))
        case Atom("import"):
            return _imported(expression)  # type: ignore[no-any-return]
        case Atom(name, _, arguments):
            return _CRITERIA[name](**dict(arguments))


def _imported(atom: Atom) -> Any:
    """Return what the user named, made by calling it where it is a class."""
    found = import_object(atom.text, CriterionError)
    value = found() if isinstance(found, type) else found
    if not callable(value):
        raise CriterionError(f"'{atom.text}' cannot be called; name a function, or a class whose values can be")
    return value
