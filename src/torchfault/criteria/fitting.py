"""What outputs are, which criterion fits them, and which do not: token ids have no top class, and no image has one."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from torchfault.criteria.answers import BY_CLASS, parts_of
from torchfault.criteria.compose import Criterion, judge
from torchfault.criteria.failures import Misclassified
from torchfault.criteria.from_text import as_criterion
from torchfault.criteria.metrics import Metric
from torchfault.criteria.outputs import named, pick
from torchfault.data import Tree, leaves
from torchfault.errors import CriterionError, TorchfaultError, brief

__all__ = ["Fitting", "check_fit", "fitting", "golden_metric", "judged", "metric_of"]

_PLAIN = re.compile(r"[\w.-]+")
_MANY = 32  # values, of which as many scores of classes would be a strange coincidence


@dataclass(frozen=True)
class Fitting:
    """A criterion that fits some outputs: as *text*, and *why*, in a sentence that names the output and its axis."""

    text: str
    why: str

    @property
    def criterion(self) -> Criterion:
        """The criterion itself."""
        return as_criterion(self.text)


def fitting(outputs: Tree, labels: Tree | None = None, inputs: Tree | None = None) -> Fitting:
    """Return the criterion that fits golden *outputs*, by the *labels* and *inputs* where there are any.

    Class scores are judged by their top class, one value by its side of a threshold, generated tokens by any change,
    boxes and masks by their overlap, spikes by their counts, and everything else by its relative error. Raises
    :class:`CriterionError` where there is no output.

    >>> one, two = torch.randn(4, 10), torch.randint(9, (4, 6))
    >>> three = {"y": torch.zeros(4, 1), "features": one}
    >>> fitting(one).text, fitting(two).text, fitting(three).text
    ('top1', 'tokens', 'top1:output=features')
    >>> fitting(three).why
    "of 2 outputs 'features' is judged: the class with the highest of 10 scores"
    """
    found = named(outputs)
    if {"boxes", "scores"} <= dict(found).keys():
        labelled = ",labels=labels" if "labels" in dict(found) and dict(found)["scores"].ndim == 2 else ""
        return Fitting(f"boxes:0.5{labelled}", "detections: a box without a partner that overlaps it by half")
    name, tensor = _judged(found)
    text, why = _of_tensor(name, tensor, _label(labels), inputs)
    if len(found) == 1:
        return Fitting(text, why)
    place = name if _PLAIN.fullmatch(name) else [other for other, _ in found].index(name)
    return Fitting(
        f"{text}{',' if ':' in text else ':'}output={place}", f"of {len(found)} outputs '{name}' is judged: {why}"
    )


def _judged(found: list[tuple[str, Tensor]]) -> tuple[str, Tensor]:
    """Return the output that decides: by its usual name, or the first that has scores of classes, or the first."""
    if not found:
        raise CriterionError("outputs need at least one tensor to judge, got none; let the model return it")
    for usual in ("logits", "sequences", "spikes"):
        if usual in dict(found):
            return usual, dict(found)[usual]
    scores = [(name, tensor) for name, tensor in found if tensor.ndim == 2 and tensor.shape[1] > 1]
    return next(((n, t) for n, t in scores if t.is_floating_point()), found[0])


def _label(labels: Tree | None) -> Tensor | None:
    try:
        return None if labels is None else pick(labels, None, what="label", usual="labels")
    except CriterionError:
        return None


def _of_tensor(name: str, tensor: Tensor, label: Tensor | None, inputs: Tree | None) -> tuple[str, str]:
    """Return the criterion of one output, and what it judges."""
    kind = _kind(tensor, label, inputs)
    if name == "logits" and tensor.ndim == 3 and kind == "values":
        kind = 2  # tokens, as language models name their scores
    return _of_values(kind, tensor) if isinstance(kind, str) else _of_scores(kind, tensor)


def _of_values(kind: str, tensor: Tensor) -> tuple[str, str]:
    single = tensor[:1].numel() == 1
    shape = "single value" if single else f"values of shape {tuple(tensor.shape[1:])}"
    if kind == "tokens":
        return "tokens", f"any change of the whole {shape}, such as generated tokens"
    if kind == "spikes":
        return "spike-count", "the neuron that spikes most often, with time steps along axis 1"
    if kind == "values":
        return "error:0.1", f"a change of the {shape} by a tenth of {'it' if single else 'the largest'}"
    middle = 0.5 if bool(((tensor >= 0) & (tensor <= 1)).all()) else 0
    return f"threshold:{middle}", f"the side of {middle} on which {'the' if single else 'each of the'} {shape} lies"


def _of_scores(axis: int, tensor: Tensor) -> tuple[str, str]:
    classes = tensor.shape[axis]
    if tensor.ndim == 2:
        return "top1", f"the class with the highest of {classes} scores"
    if tensor.ndim > 3 and axis == 1:
        return "masks:0.5", f"masks of {classes} classes along axis 1, which overlap the golden ones by less than half"
    place = -1 if axis == tensor.ndim - 1 else axis
    return f"top1:axis={place}", f"the class with the highest of {classes} scores along axis {place}, in any position"


def _kind(tensor: Tensor, label: Tensor | None, inputs: Tree | None) -> str | int:
    """Return what an output is: ``tokens``, ``spikes``, ``sides``, ``values``, or the axis of its classes."""
    if not tensor.is_floating_point():
        scores = tensor.dtype != torch.int64 and tensor.ndim == 2 and _by_labels(tensor, label) == 1
        return 1 if scores else "values" if tensor.is_complex() else "tokens"
    if (kind := _by_labels(tensor, label)) is not None:
        return kind
    if tensor[:1].numel() == 1:
        return "sides"
    if tensor.ndim == 3 and bool(((tensor == 0) | (tensor == 1)).all()):
        return "spikes"
    return 1 if tensor.ndim == 2 and not _is_copy(tensor, inputs) else "values"


def _by_labels(tensor: Tensor, label: Tensor | None) -> str | int | None:
    """Return what labels tell about an output: what :func:`_kind` does, or ``None`` where they tell nothing."""
    if label is None or label.is_complex():
        return None
    if label.numel() == tensor.numel():
        if not bool(((label == 0) | (label == 1)).all()):
            return "values" if label.is_floating_point() or tensor[:1].numel() > 1 else None
        one_hot = tensor.ndim == 2 and tensor.shape[1] > 1 and bool((label.reshape(tensor.shape).sum(1) == 1).all())
        return 1 if one_hot else "sides"
    if label.is_floating_point():
        return None
    axes = [k for k in range(1, tensor.ndim) if tensor.shape[k] > 1 and label.shape == _without(tensor, k)]
    return None if not axes else axes[-1] if tensor.ndim == 3 else axes[0]


def _without(tensor: Tensor, axis: int) -> tuple[int, ...]:
    return (*tensor.shape[:axis], *tensor.shape[axis + 1 :])


def _is_copy(tensor: Tensor, inputs: Tree | None) -> bool:
    """Return whether the output has the shape of an input, or as many values: what an autoencoder makes of it."""
    given = [leaf for leaf in leaves(inputs) if leaf.is_floating_point()]
    size = tensor[:1].numel()
    return any(leaf.shape[1:] == tensor.shape[1:] or leaf[:1].numel() == size >= _MANY for leaf in given)


def check_fit(criterion: Criterion, golden: Tree, labels: Tree | None, inputs: Tree | None = None) -> None:
    """Try *criterion* on *golden* outputs themselves, and raise :class:`CriterionError` where it does not fit them.

    It does not either where it takes for class scores what, by the *labels* or the *inputs*, is none; naming the axis
    of the classes overrules that.

    >>> from torchfault.criteria.failures import Top1Change
    >>> check_fit(Top1Change(), torch.randn(3, 8), None, inputs=torch.randn(3, 8))
    Traceback (most recent call last):
    torchfault.errors.CriterionError: Top1Change judges by class scores, ...
    """
    try:
        judge(criterion, golden, golden, labels)
    except TorchfaultError:
        raise
    except Exception as error:
        raise CriterionError(f"the criterion fails on the golden outputs: {brief(error)}") from error
    for part in parts_of(criterion):
        if not isinstance(part, BY_CLASS) or part.axis is not None:
            continue
        if isinstance(part, Misclassified) and part.threshold is not None:
            continue
        tensor = pick(golden, part.output)
        if isinstance(kind := _kind(tensor, _label(labels), inputs), str):
            what, other = _NO_SCORES[kind], fitting(golden, labels, inputs).text
            raise CriterionError(
                f"{type(part).__name__} judges by class scores, and outputs of shape {tuple(tensor.shape)} {what}; "
                f"use {other}, or name the axis of the classes where they are scores all the same"
            )


_NO_SCORES = {
    "values": "are values like the labels or the inputs",
    "sides": "decide about several labels at once",
}


def judged(criterion: Criterion, golden: Tree) -> str:
    """Return which of the *golden* outputs a criterion looks at, and along which axis for classes; empty where plain.

    >>> from torchfault.criteria.failures import Top1Change
    >>> judged(Top1Change(axis=-1), {"logits": torch.zeros(2, 3, 5), "hidden": torch.zeros(2, 4)})
    "output 'logits' of 2, 5 classes along axis -1"
    """
    found, told = named(golden), dict[str, None]()
    for part in parts_of(criterion):
        by_class = isinstance(part, BY_CLASS) and not (isinstance(part, Misclassified) and part.threshold is not None)
        output, axis = getattr(part, "output", None), getattr(part, "axis", None)
        chosen = next((n for n, t in found if by_class and t is pick(golden, output)), str(output or ""))
        where = [f"output '{chosen}' of {len(found)}"] if chosen and len(found) > 1 else []
        where += [f"{pick(golden, output).shape[axis]} classes along axis {axis}"] if by_class and axis else []
        told |= {", ".join(where): None} if where else {}
    return "; ".join(told)


def metric_of(metric: Metric, outputs: Tree, labels: Tree | None) -> float:
    """Return *metric* of *outputs* as a number, or raise :class:`CriterionError` where it is none."""
    value: object = metric(outputs, labels)
    try:
        return float(value)  # type: ignore[arg-type]  # a tensor of one element is welcome
    except (TypeError, ValueError, RuntimeError):
        raise CriterionError(f"a metric returns one number, got {type(value).__name__}; reduce it to one") from None


def golden_metric(metric: Metric, golden: Tree, labels: Tree | None) -> float:
    """Return *metric* of the *golden* outputs, or raise :class:`CriterionError` where it does not fit them."""
    try:
        value = metric_of(metric, golden, labels)
    except TorchfaultError:
        raise
    except Exception as error:
        raise CriterionError(f"the metric fails on the golden outputs: {brief(error)}") from error
    if not math.isfinite(value):
        raise CriterionError(
            f"the metric of the golden outputs is a finite number, got {value}; check the outputs and the labels"
        )
    return value
