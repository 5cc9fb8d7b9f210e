"""Pick the tensor that a criterion looks at, and bring scores and labels into one shape: rows, positions, classes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchfault.data import Tree
from torchfault.errors import CriterionError, did_you_mean

__all__ = [
    "Scores",
    "check_share",
    "count",
    "enough",
    "flat",
    "named",
    "newly_bad",
    "pick",
    "score",
    "sides",
    "target",
]


def named(tree: Tree) -> list[tuple[str, Tensor]]:
    """Return the tensors of *tree* with their names: keys, attributes and positions joined by dots.

    >>> [name for name, _ in named({"logits": torch.zeros(1), "hidden": (torch.zeros(1), torch.zeros(1))})]
    ['logits', 'hidden.0', 'hidden.1']
    """
    return list(_named(tree, ()))


def _named(tree: Tree, path: tuple[str, ...]) -> Iterable[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield ".".join(path), tree
    elif isinstance(tree, Mapping):  # the output classes of transformers are mappings as well
        for key, child in tree.items():
            yield from _named(child, (*path, str(key)))
    elif isinstance(tree, tuple | list):
        for key, child in zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True):
            yield from _named(child, (*path, str(key)))
    elif is_dataclass(tree) and not isinstance(tree, type):
        for part in fields(tree):
            yield from _named(getattr(tree, part.name), (*path, part.name))


def pick(tree: Tree, output: str | int | None, *, what: str = "output", usual: str = "logits") -> Tensor:
    """Return the tensor of *tree* called *output*, or at that place among its tensors, from 0.

    Without *output* it is the only tensor there is, or the one called *usual*. Raises :class:`CriterionError`, with the
    names there are, where that leaves a doubt.

    >>> pick({"logits": torch.tensor([1.0]), "loss": torch.tensor([0.5])}, None)
    tensor([1.])
    """
    found = named(tree)
    if output is None and len(found) == 1:
        return found[0][1]
    wanted = usual if output is None else output
    for place, (name, tensor) in enumerate(found):
        if wanted == (place if isinstance(wanted, int) else name):
            return tensor
    known = [name or "a single tensor" for name, _ in found]
    expected = f"one {what}, or one called '{usual}'" if output is None else f"the {what} {output!r}"
    hint = did_you_mean(output, known) if isinstance(output, str) else ""
    raise CriterionError(f"expected {expected}, got {known or 'no tensor'}{hint or f'; name one with {what}='}")


def count(tree: Tree) -> int:
    """Return the number of rows of *tree*, which all its tensors share, or raise :class:`CriterionError`.

    >>> count((torch.zeros(3, 2), torch.zeros(3)))
    3
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in named(tree)}
    rows = {shape[0] if shape else -1 for shape in shapes.values()}
    if len(rows) != 1 or rows == {-1}:
        raise CriterionError(f"outputs need tensors that share a first axis, one row per lane; got shapes {shapes}")
    return rows.pop()


def flat(tensor: Tensor) -> Tensor:
    """Return *tensor* as (rows, values), also where it has one axis or no rows.

    >>> flat(torch.zeros(3)).shape, flat(torch.zeros(0, 2, 2)).shape
    (torch.Size([3, 1]), torch.Size([0, 4]))
    """
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:]))


_NO_SCORES = (torch.bool, torch.int64)  # decisions, and token ids or class numbers


class Scores(NamedTuple):
    """Scores as (rows, positions, classes); *shape* is that of the labels which belong to them."""

    values: Tensor
    shape: tuple[int, ...]


def score(tree: Tree, *, output: str | int | None, axis: int | None) -> Scores:
    """Return the class scores in *tree*, their classes along *axis* (1 for two axes; to be named for more).

    Raises :class:`CriterionError` where there are no two classes to choose from.

    >>> score(torch.zeros(2, 5, 4, 4), output=None, axis=1).values.shape
    torch.Size([2, 16, 5])
    """
    tensor = pick(tree, output)
    shape = tuple(tensor.shape)
    if axis is None and tensor.ndim > 2:
        raise CriterionError(
            f"expected scores of shape (lanes, classes), got {shape}; "
            "name the axis of the classes, axis=1 for images (N, C, H, W), axis=-1 for tokens (N, T, C)"
        )
    where = 1 if axis is None else axis + tensor.ndim if axis < 0 else axis
    if not 0 < where < tensor.ndim or shape[where] < 2 or tensor.is_complex() or tensor.dtype in _NO_SCORES:
        single, whole = tensor[:1].numel() == 1 and tensor.is_floating_point(), tensor.dtype == torch.int64
        other = "for one logit use ThresholdChange(0) or Misclassified(threshold=0), or " if single else ""
        other = "for tokens use TokenChange(), or " if whole else other
        raise CriterionError(
            f"expected real scores of two or more classes along axis {where}, got {tensor.dtype} of shape {shape}; "
            f"{other}name another output or axis, or compare with OutputError"
        )
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # torch has no arithmetic on eight-bit floats
    rest = shape[:where] + shape[where + 1 :]
    return Scores(tensor.movedim(where, -1).reshape(shape[0], math.prod(rest[1:]), shape[where]), rest)


def target(labels: Tree | None, scores: Scores, *, label: str | int | None, ignore: int) -> tuple[Tensor, Tensor]:
    """Return the label of each position and whether it counts (is not *ignore*), both (rows, positions).

    Raises :class:`CriterionError` for missing labels, or ones of another type, shape or range than the *scores* need.

    >>> scores = score(torch.zeros(2, 3), output=None, axis=None)
    >>> target(torch.tensor([2, -100]), scores, label=None, ignore=-100)[1].flatten()
    tensor([ True, False])
    """
    if labels is None:
        raise CriterionError("expected labels to compare with, got none; give them with the data")
    held = pick(labels, label, what="label", usual="labels").to(scores.values.device)
    held = held.squeeze(-1) if tuple(held.shape) == (*scores.shape, 1) else held
    if held.dtype == torch.bool or held.is_floating_point() or held.is_complex() or tuple(held.shape) != scores.shape:
        raise CriterionError(
            f"expected class numbers of shape {scores.shape} as labels, got {held.dtype} of shape {tuple(held.shape)}; "
            f"{_remedy(held, scores)}name the axis of the classes or another label"
        )
    held = held.reshape(scores.values.shape[:2]).long()
    counts = held != ignore
    classes = scores.values.shape[-1]
    outside = held[counts & ((held < 0) | (held >= classes))]
    if len(outside):
        raise CriterionError(
            f"labels of {classes} classes run from 0 to {classes - 1}, got {int(outside[0])}; "
            "leave such positions out with ignore="
        )
    return held, counts


def _remedy(held: Tensor, scores: Scores) -> str:
    """Return what to do about labels that are no class numbers."""
    if held.ndim == len(scores.shape) + 1 and bool(((held == 0) | (held == 1)).all()):
        if bool((held.sum(-1) == 1).all()):
            return "give one-hot labels as labels.argmax(-1), or "
        return "labels of several classes at once go with ThresholdChange(0) or Misclassified(threshold=0), or "
    return "give class numbers as labels.long(), or " if tuple(held.shape) == scores.shape else ""


def sides(values: Tensor, labels: Tree | None, *, label: str | int | None, ignore: int) -> tuple[Tensor, Tensor]:
    """Return which side of a threshold labels of 0 and 1 ask for, and whether each counts, both (rows, values).

    Raises :class:`CriterionError` for labels of another shape than *values*, or with other numbers.

    >>> sides(torch.zeros(3, 1), torch.tensor([1, 0, -100]), label=None, ignore=-100)[0].flatten()
    tensor([ True, False, False])
    """
    if labels is None:
        raise CriterionError("expected labels to compare with, got none; give them with the data")
    held = pick(labels, label, what="label", usual="labels").to(values.device)
    wide, counts = flat(held.double()), flat(held != ignore)
    if not values.is_floating_point() or held.ndim == 0 or wide.shape != flat(values).shape:
        raise CriterionError(
            f"a threshold needs one label for each floating-point value, got {held.dtype} of shape "
            f"{tuple(held.shape)} for {values.dtype} of shape {tuple(values.shape)}; leave the threshold out for scores"
        )
    wrong = wide[counts & (wide != 0) & (wide != 1)]
    if len(wrong):
        raise CriterionError(f"labels beside a threshold are 0 and 1, got {float(wrong[0]):g}; leave it out for scores")
    return (wide == 1) & counts, counts


def enough(changed: Tensor, share: float, *, of: Tensor | int | None = None) -> Tensor:
    """Return the lanes in which a position changed, and at least *share* *of* those that count (all unless told).

    >>> enough(torch.tensor([[True, False], [False, False]]), 0.5)
    tensor([ True, False])
    """
    # A quotient in double meets a share written as a decimal exactly; a product of share and count would not.
    return changed.any(1) & (changed.sum(1).double() / (changed.shape[1] if of is None else of) >= share)


def check_share(share: float) -> None:
    """Raise :class:`CriterionError` for a share of positions that is none."""
    if not 0 <= share <= 1:
        raise CriterionError(f"a share of positions lies between 0 and 1, got {share}")


def newly_bad(golden: Tensor, faulty: Tensor) -> Tensor:
    """Return where *faulty* is NaN or infinite and *golden* is not so, a bool tensor of the same shape.

    >>> newly_bad(torch.tensor([1.0, -torch.inf, -torch.inf]), torch.tensor([torch.inf, -torch.inf, torch.nan]))
    tensor([ True, False,  True])
    """
    if golden.shape != faulty.shape:
        shapes = f"{tuple(golden.shape)} and {tuple(faulty.shape)}"
        raise CriterionError(f"golden and faulty outputs need one shape, got {shapes}; compare the same lanes")
    if not faulty.is_floating_point() and not faulty.is_complex():
        return torch.zeros_like(faulty, dtype=torch.bool)
    if faulty.element_size() == 1:
        golden, faulty = golden.float(), faulty.float()
    lost = ~faulty.isfinite()
    if lost.any():  # seldom: nearly all lanes cost one look
        lost = (lost & golden.isfinite()) | (faulty.isnan() & ~golden.isnan())
    return lost
