"""Uniform sampling: every fault equally likely, alone, in groups, or each bit struck at a given rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.draws import Draws
from torchfault.space import FaultSpace

__all__ = ["BitErrorRate", "Uniform", "distinct"]


@dataclass(frozen=True)
class Uniform:
    """Draw trials of *faults* faults each, every fault equally likely and independent of all others.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (20,)),))
    >>> draws = Uniform(faults=3).draw(space, 5, rng=np.random.default_rng(0))
    >>> len(draws), len(draws.index)
    (5, 15)
    """

    faults: int = 1

    def __post_init__(self) -> None:
        if self.faults < 1:
            raise SamplingError(f"a trial strikes at least one fault, got {self.faults}")

    @property
    def block(self) -> int:
        """The number of trials made from one random stream: fewer for larger trials, to bound memory."""
        return max(1, 4096 // self.faults)

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws are with replacement and never run out."""
        del space
        return None

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return *n* trials; *start* does not matter, since they are independent."""
        del start
        index = rng.integers(0, len(space), size=n * self.faults, dtype=np.int64)
        return Draws.equal(index, counts=None if self.faults == 1 else np.full(n, self.faults, dtype=np.int64))


@dataclass(frozen=True)
class BitErrorRate:
    """Strike each bit of the space with probability *rate*, independently, given that at least one is struck.

    The number of struck bits is drawn first, from the binomial distribution without its zero, and then their places,
    so that the work grows with the faults and not with the space. A trial with no fault cannot fail: multiply by
    :meth:`strike_probability` for the unconditional probability of failure.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (1000,)),))
    >>> draws = BitErrorRate(1e-3).draw(space, 4, rng=np.random.default_rng(0))
    >>> bool(draws.counts.min() >= 1), round(BitErrorRate(1e-3).strike_probability(space), 3)
    (True, 1.0)
    """

    rate: float
    block: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise SamplingError(f"a bit error rate lies above 0 and at most at 1, got {self.rate}")

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws never run out."""
        del space
        return None

    def strike_probability(self, space: FaultSpace) -> float:
        """Return the probability that at least one bit of *space* is struck."""
        return float(-np.expm1(len(space) * np.log1p(-self.rate))) if self.rate < 1 else 1.0

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return *n* trials; *start* does not matter, since they are independent."""
        del start
        counts = self._counts(len(space), n, rng)
        places = [distinct(len(space), int(count), rng) for count in counts]
        return Draws.equal(np.concatenate(places) if places else np.zeros(0, dtype=np.int64), counts=counts)

    def _counts(self, size: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw *n* binomial counts that are not zero: by inversion where zeros are common, else by redrawing them."""
        if size * self.rate < 1:
            return 1 + np.searchsorted(_ladder(size, self.rate), rng.random(n), side="right")
        counts = _binomial(size, self.rate, n, rng)
        while (zero := counts == 0).any():
            counts[zero] = _binomial(size, self.rate, int(zero.sum()), rng)
        return counts


def _ladder(size: int, rate: float) -> NDArray[np.float64]:
    """Return P(count <= k | count >= 1) for k = 1, 2, ... of a binomial distribution of mean below 1.

    SciPy's quantiles go wrong for the tiny rates and huge sizes of real devices; sixty steps reach past 1e-80.
    """
    steps = np.arange(1, min(size, 60), dtype=np.float64)
    ratios = (size - steps) / (steps + 1) * (rate / (1 - rate))  # P(k + 1) / P(k)
    rungs = np.cumsum(np.cumprod(np.concatenate(([1.0], ratios))))
    return np.asarray(rungs / rungs[-1])


def _binomial(size: int, rate: float, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    # Releases of NumPy that compute 1 - rate lose a tiny rate; the Poisson law is then as good as exact (it differs by
    # less than the rate in total variation: Barbour and Hall 1984, theorem 1).
    drawn = rng.poisson(size * rate, size=n) if rate < 1e-9 else rng.binomial(size, rate, size=n)
    return drawn.astype(np.int64)


def distinct(size: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return *count* different numbers below *size*, in increasing order, in memory that grows with *count* alone.

    >>> distinct(5, 5, np.random.default_rng(0))
    array([0, 1, 2, 3, 4])
    """
    if count > size // 4:
        # Floyd's or a redraw would collide too often; a dense draw is in proportion here.
        return np.sort(rng.permutation(size)[:count]).astype(np.int64)
    chosen = np.unique(rng.integers(0, size, size=count, dtype=np.int64))
    while len(chosen) < count:
        more = rng.integers(0, size, size=count - len(chosen), dtype=np.int64)
        chosen = np.unique(np.concatenate((chosen, more)))
    return chosen
