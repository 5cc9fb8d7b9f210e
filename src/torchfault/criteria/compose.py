"""How criteria combine, and how their verdict becomes an outcome: failed, and due where NaN or infinity appeared."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.criteria.outputs import count, flat, named, newly_bad
from torchfault.data import Tree
from torchfault.errors import CriterionError
from torchfault.expressions import MOST_LEVELS

__all__ = [
    "AllOf",
    "AnyOf",
    "Composable",
    "Criterion",
    "Not",
    "Outcomes",
    "bad_lanes",
    "judge",
    "unusable_inputs",
    "verdict",
]


class Criterion(Protocol):
    """Tells from golden and faulty outputs and labels, one row per lane, which lanes failed.

    Any function will do; the criteria of this package are frozen values, and combine with ``&``, ``|`` and ``~``.
    """

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return a bool tensor of shape (lanes,), true where the lane failed."""
        ...


class Composable(Criterion):
    """Gives a criterion ``&``, ``|`` and ``~``, also with plain functions on the other side."""

    def __and__(self, other: Criterion) -> "AllOf":
        return AllOf((*_parts(self, AllOf), *_parts(other, AllOf)))

    def __rand__(self, other: Criterion) -> "AllOf":
        return AllOf((*_parts(other, AllOf), *_parts(self, AllOf)))

    def __or__(self, other: Criterion) -> "AnyOf":
        return AnyOf((*_parts(self, AnyOf), *_parts(other, AnyOf)))

    def __ror__(self, other: Criterion) -> "AnyOf":
        return AnyOf((*_parts(other, AnyOf), *_parts(self, AnyOf)))

    def __invert__(self) -> "Not":
        return Not(self)


def _parts(criterion: Criterion, kind: "type[AllOf | AnyOf]") -> tuple[Criterion, ...]:
    """Return what *criterion* joins if it is of that *kind*, so that hundreds in a row do not nest."""
    return criterion.parts if isinstance(criterion, kind) else (criterion,)


@dataclass(frozen=True)
class AllOf(Composable):
    """A lane fails where all *parts* say so; written ``a & b``.

    >>> above = lambda golden, faulty, labels: faulty[:, 0] > 1
    >>> below = lambda golden, faulty, labels: faulty[:, 0] < 3
    >>> AllOf((above, below))(torch.zeros(3, 1), torch.tensor([[0.0], [2.0], [4.0]]), None)
    tensor([False,  True, False])
    """

    parts: tuple[Criterion, ...]
    levels: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _levels(self.parts))

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where all parts see a failure, shape (lanes,)."""
        return torch.stack([verdict(part, golden, faulty, labels) for part in self.parts]).all(0)


@dataclass(frozen=True)
class AnyOf(Composable):
    """A lane fails where any of the *parts* says so; written ``a | b``.

    >>> high = lambda golden, faulty, labels: faulty[:, 0] > 3
    >>> below = lambda golden, faulty, labels: faulty[:, 0] < 1
    >>> AnyOf((high, below))(torch.zeros(3, 1), torch.tensor([[0.0], [2.0], [4.0]]), None)
    tensor([ True, False,  True])
    """

    parts: tuple[Criterion, ...]
    levels: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _levels(self.parts))

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where any part sees a failure, shape (lanes,)."""
        return torch.stack([verdict(part, golden, faulty, labels) for part in self.parts]).any(0)


@dataclass(frozen=True)
class Not(Composable):
    """A lane fails where *part* does not say so; written ``~a``. NaN and infinities still fail in :func:`judge`.

    >>> Not(lambda golden, faulty, labels: faulty[:, 0] > 1)(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]), None)
    tensor([ True, False])
    """

    part: Criterion
    levels: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _levels((self.part,)))

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the part sees no failure, shape (lanes,)."""
        return ~verdict(self.part, golden, faulty, labels)


def _levels(parts: tuple[Criterion, ...]) -> int:
    """Return how deep criteria nest in one that is composed of *parts*, or raise :class:`CriterionError`."""
    if not parts or not all(map(callable, parts)):
        raise CriterionError(f"expected one or more criteria to combine, got {parts}; give functions or ready criteria")
    levels = 1 + max(getattr(part, "levels", 0) for part in parts)
    if levels > MOST_LEVELS:
        raise CriterionError(
            f"criteria nest at most {MOST_LEVELS} deep; join many by & or | in a row, or write a function"
        )
    return levels


def verdict(criterion: Criterion, golden: Tree, faulty: Tree, labels: Tree | None) -> Tensor:
    """Return what *criterion* says, shape (lanes,), or raise :class:`CriterionError` where it is no bool per lane.

    >>> verdict(lambda golden, faulty, labels: faulty.sum(), torch.zeros(2, 1), torch.ones(2, 1), None)
    Traceback (most recent call last):
    torchfault.errors.CriterionError: expected a bool tensor of shape (2,) from <lambda>, got torch.float32 ...
    """
    lanes = count(golden)
    answer: object = criterion(golden, faulty, labels)
    if isinstance(answer, Tensor) and answer.dtype == torch.bool and answer.shape == (lanes,):
        return answer
    who = getattr(criterion, "__name__", type(criterion).__name__)
    got = f"{answer.dtype} of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
    raise CriterionError(
        f"expected a bool tensor of shape ({lanes},) from {who}, got {got}; return one truth value per lane"
    )


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of each lane, (lanes,) each.

    Of those that *failed* some are *due*, detectable without a reference: an output went NaN or infinite, or the model
    raised an error, a *crash*.

    >>> Outcomes(np.array([True, True]), np.array([False, True]), np.array([False, False])).failed.sum()
    np.int64(2)
    """

    failed: NDArray[np.bool_]
    due: NDArray[np.bool_]
    crash: NDArray[np.bool_]


def bad_lanes(golden: Tree, faulty: Tree) -> Tensor:
    """Return the lanes with a NaN or an infinity, in any output, where golden has none; shape (lanes,).

    >>> bad_lanes({"y": torch.zeros(2, 3)}, {"y": torch.tensor([[0.0, torch.nan, 0.0], [1.0, 2.0, 3.0]])})
    tensor([ True, False])
    """
    before, after = named(golden), named(faulty)
    if [name for name, _ in before] != [name for name, _ in after] or count(golden) != count(faulty):
        one, two = ({name: tuple(tensor.shape) for name, tensor in side} for side in (before, after))
        raise CriterionError(f"golden and faulty outputs need the same tensors, got {one} and {two}")
    flags = [flat(newly_bad(one, two)).any(1) for (_, one), (_, two) in zip(before, after, strict=True)]
    return torch.stack(flags).any(0)


def judge(
    criterion: Criterion,
    golden: Tree,
    faulty: Tree,
    labels: Tree | None,
    *,
    crashed: NDArray[np.bool_] | None = None,
) -> Outcomes:
    """Return the outcome of every lane: failed by *criterion*, by a crash, or by a NaN or infinity that golden lacks.

    All three trees have one row per lane; *crashed*, (lanes,), tells in which lanes the model raised an error, whose
    outputs mean nothing. Raises :class:`CriterionError` where the criterion does not fit the outputs, misses labels, or
    returns anything but a bool per lane.

    >>> faulty = torch.tensor([[0.0, 1.0], [1.0, 0.0], [torch.inf, 1.0]])
    >>> outcomes = judge(lambda golden, faulty, labels: faulty[:, 0] == 1, torch.ones(3, 2), faulty, None)
    >>> outcomes.failed, outcomes.due
    (array([False,  True,  True]), array([False, False,  True]))
    """
    due = bad_lanes(golden, faulty).cpu().numpy()
    crash = np.zeros(len(due), dtype=bool) if crashed is None else np.asarray(crashed, dtype=bool)
    if crash.shape != due.shape:
        raise CriterionError(f"crashed needs one flag for each of {len(due)} lanes, got shape {crash.shape}")
    failed = verdict(criterion, golden, faulty, labels).cpu().numpy()
    return Outcomes(failed | due | crash, due | crash, crash)


def unusable_inputs(golden: Tree) -> NDArray[np.bool_]:
    """Return for which inputs the *golden* outputs hold a NaN or +infinity, or nothing that is finite; shape (inputs,).

    No fault can be judged against those. A -infinity beside finite values is a score that a model masks on purpose.

    >>> unusable_inputs(torch.tensor([[1.0, -torch.inf], [1.0, torch.nan], [torch.inf, 0.0]]))
    array([False,  True,  True])
    """
    lost = np.zeros(count(golden), dtype=bool)
    for _, tensor in named(golden):
        if tensor.is_floating_point() or tensor.is_complex():
            parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            rows = flat(parts.float() if parts.element_size() == 1 else parts)
            none = ~rows.isfinite().any(1) if rows.shape[1] else torch.zeros_like(rows[:, :0].any(1))
            lost |= (rows.isnan().any(1) | rows.isposinf().any(1) | none).cpu().numpy()
    return lost
