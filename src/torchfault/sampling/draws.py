"""What every sampler returns, and the random streams that make the n-th trial depend on seed and n alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.space import FaultSpace

__all__ = ["AdaptiveSampler", "Draws", "History", "Sampler", "WeightedSampler", "stream"]


@dataclass(frozen=True, eq=False)
class Draws:
    """Trials drawn from a space: fault numbers, and for each trial its weight p/q and its stratum.

    *index* has shape (faults,), *weight* and *stratum* (trials,). *counts*, shape (trials,), tells how many
    consecutive faults each trial strikes together; ``None`` means one each. *inputs*, shape (trials,), is given by
    samplers that choose the input of each trial too; ``None`` leaves it to the campaign, which draws it at random.
    Raises :class:`SamplingError` where the lengths disagree.

    >>> len(Draws.equal(np.array([5, 7, 7])))
    3
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float64]
    stratum: NDArray[np.int32]
    counts: NDArray[np.int64] | None = None
    inputs: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        faults = len(self.index) if self.counts is None else int(self.counts.sum())
        trials = len(self.index) if self.counts is None else len(self.counts)
        if self.counts is not None and (self.counts < 1).any():
            raise SamplingError(f"a trial strikes at least one fault, got a count of {self.counts.min()}")
        if faults != len(self.index) or trials != len(self.weight) or trials != len(self.stratum):
            raise SamplingError(
                f"draws need one weight and one stratum per trial, got {len(self.index)} faults, "
                f"{trials} trials, {len(self.weight)} weights and {len(self.stratum)} strata"
            )
        if self.inputs is not None and len(self.inputs) != trials:
            raise SamplingError(f"draws that choose inputs need one per trial, got {len(self.inputs)} for {trials}")

    def __len__(self) -> int:
        return len(self.weight)

    @classmethod
    def equal(cls, index: NDArray[np.int64], *, counts: NDArray[np.int64] | None = None) -> "Draws":
        """Return draws of weight 1 in one stratum.

        >>> Draws.equal(np.array([5, 7, 9]), counts=np.array([1, 2])).weight
        array([1., 1.])
        """
        trials = len(index) if counts is None else len(counts)
        return cls(index, np.ones(trials), np.zeros(trials, dtype=np.int32), counts)

    def take(self, first: int, last: int) -> "Draws":
        """Return the trials from *first* up to *last*, exclusive.

        >>> Draws.equal(np.array([5, 7, 9]), counts=np.array([1, 2])).take(1, 2).index
        array([7, 9])
        """
        begin, end = first, last
        if self.counts is not None:
            begin, end = int(self.counts[:first].sum()), int(self.counts[:last].sum())
        counts, inputs = (None if part is None else part[first:last] for part in (self.counts, self.inputs))
        return Draws(self.index[begin:end], self.weight[first:last], self.stratum[first:last], counts, inputs)


@runtime_checkable
class Sampler(Protocol):
    """Chooses faults: a frozen value with a ``draw``.

    *block* is the number of trials that one random stream makes, always together, so that the n-th trial never
    depends on how many were asked for. *total* is the number of trials after which the sampler is done, or ``None``.
    """

    @property
    def block(self) -> int:
        """The number of trials made from one random stream."""
        ...

    def total(self, space: FaultSpace) -> int | None:
        """Return the number of trials after which nothing is left to draw, ``None`` for no end."""
        ...

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return the trials *start* to *start + n* of the sequence that *rng* decides."""
        ...


@runtime_checkable
class WeightedSampler(Sampler, Protocol):
    """A sampler that knows how heavy its draws can get, which keeps intervals honest while heavy draws are missing."""

    def largest_weight(self, space: FaultSpace) -> float:
        """Return the largest p/q of any fault that can be drawn."""
        ...


@dataclass(frozen=True, eq=False)
class History:
    """What came of the trials so far, in their order: *faults*, *stratum* and *failed*, all of shape (trials,).

    *widening* tells, by ``site`` or ``model`` and at a level, how much wider than from trials run alone each interval
    gets by what shortcuts leave open, shape (sites,) or (1,); ``None`` where every trial had a lane of its own.

    >>> len(History(np.array([7]), np.array([0], dtype=np.int32), np.array([True])))
    1
    """

    faults: NDArray[np.int64]
    stratum: NDArray[np.int32]
    failed: NDArray[np.bool_]
    widening: Callable[[str, float], NDArray[np.float64]] | None = None

    def __len__(self) -> int:
        return len(self.failed)

    def take(self, last: int) -> "History":
        """Return the trials before *last*."""
        return History(self.faults[:last], self.stratum[:last], self.failed[:last])


@runtime_checkable
class AdaptiveSampler(Sampler, Protocol):
    """A sampler whose next block depends on the outcomes of all earlier blocks, and on nothing else.

    The n-th trial then depends on seed, n and those outcomes, which the store keeps: a resumed campaign goes on as if
    it had never stopped. Its *draw* is that of the first block.
    """

    def replan(self, space: FaultSpace, history: History) -> Sampler:
        """Return the sampler of the block that follows the whole blocks of *history*."""
        ...

    def finished(self, space: FaultSpace, history: History) -> str | None:
        """Return why the campaign has enough after the whole blocks of *history*, or ``None`` to go on."""
        ...


def stream(seed: int, *path: int) -> np.random.Generator:
    """Return the random stream at *path* (such as purpose, block) below *seed*; distinct paths are independent.

    >>> bool(stream(7, 0, 3).random() == stream(7, 0, 3).random())
    True
    """
    if seed < 0 or any(step < 0 for step in path):
        raise SamplingError(f"a seed and its path are whole numbers from 0 up, got {seed} and {path}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))
