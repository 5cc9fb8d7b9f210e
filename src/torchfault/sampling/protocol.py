"""What a sampler is: it says its design beforehand, and draws given what came of all earlier blocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.errors import SamplingError
from torchfault.measures import UNIFORM, Measure, ProductMeasure
from torchfault.sampling.design import Design

if TYPE_CHECKING:
    from torchfault.sampling.tally import Tally

__all__ = ["Draws", "Goals", "Population", "Sampler", "stream"]

Goals = Mapping[str, float]
"""The half-widths that the stop rule asks for, by the grouping that they are of: ``{"site": 0.01}``."""


@dataclass(frozen=True, eq=False)
class Population:
    """What is sampled: the faults of *space*, as likely as *measure* says, each on any of *inputs* inputs.

    *goals* are the half-widths that the campaign is to reach, and *level* their confidence.

    >>> from torchfault.space import FaultSpace, Site
    >>> len(Population(FaultSpace((Site("a", (2,)),)), inputs=10).space)
    64
    """

    space: Space
    measure: Measure = UNIFORM
    inputs: int = 1
    goals: Goals = field(default_factory=dict)
    level: float = 0.95

    @property
    def is_uniform(self) -> bool:
        """Whether every fault is as likely as any other."""
        return isinstance(self.measure, ProductMeasure) and self.measure.is_uniform


@dataclass(frozen=True, eq=False)
class Draws:
    """Trials drawn from a space: fault numbers, and for each trial its weight p/q and its stratum.

    *index* has shape (faults,), *weight* and *stratum* (trials,). *counts*, shape (trials,), tells how many
    consecutive faults each trial strikes together; ``None`` means one each. *inputs*, shape (trials,), is given by
    samplers that choose the input of each trial too; ``None`` leaves it to the campaign, which draws it at random.
    *words* are the golden words that are struck, to be kept with the trials: shape (trials,), or (trials, inputs) where
    every trial runs on all inputs. Raises :class:`SamplingError` where the lengths disagree.

    >>> len(Draws.equal(np.array([5, 7, 7])))
    3
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float64]
    stratum: NDArray[np.int32]
    counts: NDArray[np.int64] | None = None
    inputs: NDArray[np.int64] | None = None
    words: NDArray[np.uint64] | None = None

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


@runtime_checkable
class Sampler(Protocol):
    """Chooses faults: a frozen value that says its design, and draws block by block.

    *block* is the number of trials that one random stream makes, always together, so that the n-th trial never
    depends on how many were asked for. It may depend on the outcomes of all earlier blocks, which are in the tally,
    and on nothing else: a resumed campaign then goes on as if it had never stopped.
    """

    @property
    def block(self) -> int:
        """The number of trials made from one random stream."""
        ...

    def design(self, population: Population) -> Design:
        """Return the strata and what may be concluded from draws out of them, or raise :class:`SamplingError`."""
        ...

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: "Tally | None" = None
    ) -> Draws:
        """Return the trials *start* to *start + n*, a whole block unless the sampler ends there.

        *tally* holds the outcomes of all trials before *start*; ``None`` for the first block.
        """
        ...


def stream(seed: int, *path: int) -> np.random.Generator:
    """Return the random stream at *path* (such as purpose, block) below *seed*; distinct paths are independent.

    >>> bool(stream(7, 0, 3).random() == stream(7, 0, 3).random())
    True
    """
    if seed < 0 or any(step < 0 for step in path):
        raise SamplingError(f"a seed and its path are whole numbers from 0 up, got {seed} and {path}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))
