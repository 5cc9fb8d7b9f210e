"""What was understood of the data, in a line, and what about it is likely to be a mistake."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchfault.criteria.metrics import accuracy
from torchfault.criteria.outputs import named, score
from torchfault.data import Data, Tree
from torchfault.errors import CriterionError

__all__ = ["DataSummary", "TensorSummary", "near_chance", "summarise"]

_FEW = 3  # tensors that are told one by one
_ORDERED = (torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of the inputs or labels: its *name* (empty for a single one), type, shape of a row, and range.

    *low* and *high* are those of its finite values, NaN where it has none; *lost* counts the others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float
    high: float
    lost: int

    def __str__(self) -> str:
        """Return for instance ``float32 (3, 32, 32) from 0 to 1``."""
        shape = f" ({', '.join(map(str, self.shape))})" if self.shape else ""
        lost = f", {self.lost:,} NaN or infinite" if self.lost else ""
        return f"{self.name + ' ' if self.name else ''}{self.dtype}{shape} from {self.low:.4g} to {self.high:.4g}{lost}"


@dataclass(frozen=True)
class DataSummary:
    """What the data are: *count* inputs and what each is made of, labels with their *classes*, and *notes* of doubts.

    *classes* is the number of different labels, ``None`` where labels are no class numbers.
    """

    count: int
    inputs: tuple[TensorSummary, ...]
    labels: tuple[TensorSummary, ...]
    classes: int | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return all but the notes in one line."""
        labels = f"labels {_listed(self.labels)}" if self.labels else "no labels"
        classes = "" if self.classes is None else f", {self.classes:,} different"
        return f"{self.count:,} inputs, {_listed(self.inputs)}; {labels}{classes}"


def summarise(data: Data) -> DataSummary:
    """Return what *data* are.

    >>> str(summarise(Data(torch.tensor([[0.0, 0.5], [1.0, 0.25]]), torch.tensor([3, 1]))))
    '2 inputs, float32 (2) from 0 to 1; labels int64 from 1 to 3, 2 different'
    >>> summarise(Data(torch.zeros(2, 2), torch.eye(2))).notes
    ('labels of shape (2,) look one-hot: a criterion or metric by class numbers needs labels.argmax(1)',)
    """
    inputs = tuple(_summary(name, tensor) for name, tensor in named(data.inputs))
    held = [] if data.labels is None else named(data.labels)
    labels = tuple(_summary(name, tensor) for name, tensor in held)
    single = held[0][1] if len(held) == 1 else None
    whole = single is not None and not single.is_floating_point() and not single.is_complex() and single.ndim == 1
    classes = len(single.unique()) if single is not None and whole else None
    notes = [f"inputs hold {one.lost:,} values that are NaN or infinite" for one in inputs if one.lost]
    if single is not None and (doubt := _doubt(single)):
        notes.append(doubt)
    return DataSummary(len(data), inputs, labels, classes, tuple(notes))


def near_chance(golden: Tree, labels: Tree | None) -> str | None:
    """Return a warning where the accuracy of *golden* outputs is little above that of guessing, ``None`` elsewhere.

    That is less than 3 times the chance of one class, and less than a tenth of the way from it to 1; outputs and labels
    of other kinds have no such accuracy.

    >>> near_chance(torch.eye(4), torch.tensor([0, 1, 2, 3])), near_chance(torch.eye(4), torch.tensor([1, 2, 3, 0]))
    (None, '0.0 % golden accuracy, where guessing gives 25 %: check weights, labels and how inputs are prepared')
    """
    try:
        right = accuracy(golden, labels)
        chance = 1 / score(golden, output=None, axis=None).values.shape[-1]
    except CriterionError:
        return None
    if right >= min(3 * chance, chance + 0.1 * (1 - chance)):
        return None
    return (
        f"{100 * right:.1f} % golden accuracy, where guessing gives {100 * chance:.3g} %: check weights, labels and "
        "how inputs are prepared"
    )


def _summary(name: str, tensor: Tensor) -> TensorSummary:
    wide = tensor.detach()
    wide = wide.abs() if wide.is_complex() else wide
    wide = wide.float() if wide.is_floating_point() and wide.element_size() < 4 else wide
    wide = wide if wide.dtype in _ORDERED else wide.to(torch.int64)
    whole = wide.numel() > 0 and all(end.isfinite() for end in wide.aminmax())
    finite = wide if whole else wide[wide.isfinite()]  # a copy only where there is something to leave out
    low, high = (float(end) for end in finite.aminmax()) if finite.numel() else (torch.nan, torch.nan)
    kind = str(tensor.dtype).removeprefix("torch.")
    return TensorSummary(name, kind, tuple(tensor.shape[1:]), low, high, wide.numel() - finite.numel())


def _doubt(labels: Tensor) -> str | None:
    """Return what is unusual about labels for a classifier."""
    if labels.ndim == 2 and labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all()):
        shape = tuple(labels.shape[1:])
        if bool((labels.sum(1) == 1).all()):
            return (
                f"labels of shape {shape} look one-hot: a criterion or metric by class numbers needs labels.argmax(1)"
            )
        return f"labels of shape {shape} mark several classes at once: judge such outputs by threshold:0"
    if labels.ndim == 1 and labels.is_floating_point() and bool((labels == labels.round()).all()):
        return "labels are whole numbers stored as floating-point ones: class numbers need labels.long()"
    return None


def _listed(parts: tuple[TensorSummary, ...]) -> str:
    more = f" and {len(parts) - _FEW} more" if len(parts) > _FEW else ""
    return ", ".join(map(str, parts[:_FEW])) + more
