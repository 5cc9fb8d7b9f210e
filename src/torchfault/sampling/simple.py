"""The plain ways to draw: independently by the measure, each bit at a rate, or every fault in order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.errors import SamplingError
from torchfault.measures import draw, probability
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.protocol import Draws, Population
from torchfault.sampling.tally import Tally

__all__ = ["BitErrorRate", "Exhaustive", "Uniform", "distinct"]

Ints = NDArray[np.int64]

_PATIENCE = 1000  # how often faults that a trial holds already are drawn again


@dataclass(frozen=True)
class Uniform:
    """Draw trials of *faults* faults each, every fault by its probability, by itself the same for all.

    The faults of one trial are *distinct* bits unless told otherwise: two flips of one bit would cancel. Raises
    :class:`SamplingError` for fewer than one fault, and, when drawn, for more than the space or the measure allows.

    >>> from torchfault.space import FaultSpace, Site
    >>> population = Population(FaultSpace((Site("a", (20,)),)))
    >>> draws = Uniform(faults=3).draw(population, 5, rng=np.random.default_rng(0), start=0)
    >>> len(draws), len(draws.index)
    (5, 15)
    """

    faults: int = 1
    distinct: bool = True

    def __post_init__(self) -> None:
        if self.faults < 1:
            raise SamplingError(f"a trial strikes at least one fault, got {self.faults}")

    @property
    def block(self) -> int:
        """The number of trials made from one random stream: fewer for larger trials, to bound memory."""
        return max(1, 4096 // self.faults)

    def design(self, population: Population) -> Design:
        """Return one stratum, drawn from without end."""
        if self.distinct and self.faults > len(population.space):
            raise SamplingError(
                f"a trial strikes distinct faults, of which there are {len(population.space)}, got "
                f"{self.faults}; strike fewer, or set distinct=False"
            )
        return Design(Strata.one(len(population.space)), block=self.block, largest_weight=1.0)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return *n* trials; *start* and *tally* do not matter, since they are independent."""
        del start, tally
        if self.faults == 1:
            return Draws.equal(_independent(population, n, rng))
        counts = np.full(n, self.faults, dtype=np.int64)
        if not self.distinct:
            return Draws.equal(_independent(population, n * self.faults, rng), counts=counts)
        size = len(population.space)
        if population.is_uniform and 4 * self.faults > size:  # most of what is drawn again would be there already
            rows = [rng.permutation(size)[: self.faults] for _ in range(n)]
            return Draws.equal(np.array(rows, dtype=np.int64).reshape(-1), counts=counts)
        return Draws.equal(self._distinct(population, n, rng).reshape(-1), counts=counts)

    def _distinct(self, population: Population, n: int, rng: np.random.Generator) -> Ints:
        """Return trials of different faults, shape (n, faults): each drawn by its probability among those left."""
        rows = _independent(population, n * self.faults, rng).reshape(n, self.faults)
        for _ in range(_PATIENCE):
            again = _repeated(rows)
            if not again.any():
                return rows
            rows[again] = _independent(population, int(again.sum()), rng)
        raise SamplingError(
            f"a trial strikes {self.faults} distinct faults, and by this measure hardly so many are likely at all; "
            "strike fewer, or set distinct=False"
        )


def _independent(population: Population, n: int, rng: np.random.Generator) -> Ints:
    if population.is_uniform:
        return rng.integers(0, len(population.space), size=n, dtype=np.int64)
    return draw(population.measure, population.space, n, rng=rng)


def _repeated(rows: Ints) -> NDArray[np.bool_]:
    """Return which entries of *rows* equal an earlier one of their row."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered, again = np.take_along_axis(rows, order, axis=1), np.zeros(rows.shape, dtype=np.bool_)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return again


@dataclass(frozen=True)
class Exhaustive:
    """Draw every fault once, in the order of its number; the campaign runs it on every input.

    >>> from torchfault.space import FaultSpace, Site
    >>> population = Population(FaultSpace((Site("a", (2,), word="int8", width=8),)))
    >>> Exhaustive().draw(population, 3, rng=np.random.default_rng(0), start=13).index
    array([13, 14, 15])
    """

    block: int = 4096

    def design(self, population: Population) -> Design:
        """Return one stratum, of which nothing is left at the end."""
        size = len(population.space)
        return Design(Strata.one(size), replacement=False, enumerates=True, total=size, block=self.block)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return faults *start* to *start + n*, weighed by the measure; no randomness is used."""
        del rng, tally
        size = len(population.space)
        if n < 0 or start < 0 or start + n > size:
            raise SamplingError(f"the space ends at {size}, got {start} to {start + n}; draw fewer")
        index = np.arange(start, start + n, dtype=np.int64)
        if population.is_uniform:
            return Draws.equal(index)
        weight = probability(population.measure, population.space, index) * size
        return Draws(index, weight, np.zeros(n, dtype=np.int32))


@dataclass(frozen=True)
class BitErrorRate:
    """Strike each bit of the space with probability *rate*, independently, given that at least one is struck.

    The number of struck bits is drawn first, from the binomial distribution without its zero, and then their places,
    so that the work grows with the faults and not with the space. A trial with no fault cannot fail: multiply by
    :meth:`strike_probability` for the unconditional probability of failure. Raises :class:`SamplingError` for a rate
    outside 0 to 1, and for a measure that is not uniform, which rates do not go by.

    >>> from torchfault.space import FaultSpace, Site
    >>> space = FaultSpace((Site("a", (1000,)),))
    >>> draws = BitErrorRate(1e-3).draw(Population(space), 4, rng=np.random.default_rng(0), start=0)
    >>> bool(draws.counts.min() >= 1), round(BitErrorRate(1e-3).strike_probability(space), 3)
    (True, 1.0)
    """

    rate: float
    block: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise SamplingError(f"a bit error rate lies above 0 and at most at 1, got {self.rate}")

    def design(self, population: Population) -> Design:
        """Return one stratum, drawn from without end."""
        if not population.is_uniform:
            raise SamplingError("a bit error rate is the same for all bits, got a measure; use Uniform, or no measure")
        return Design(Strata.one(len(population.space)), block=self.block, largest_weight=1.0)

    def strike_probability(self, space: Space) -> float:
        """Return the probability that at least one bit of *space* is struck."""
        return float(-np.expm1(len(space) * np.log1p(-self.rate))) if self.rate < 1 else 1.0

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return *n* trials; *start* and *tally* do not matter, since they are independent."""
        del start, tally
        size = len(population.space)
        counts = self._counts(size, n, rng)
        places = [distinct(size, int(count), rng) for count in counts]
        return Draws.equal(np.concatenate(places) if places else np.zeros(0, dtype=np.int64), counts=counts)

    def _counts(self, size: int, n: int, rng: np.random.Generator) -> Ints:
        """Draw *n* binomial counts that are not zero: by inversion where zeros are common, else by redrawing them."""
        if size * self.rate < 1:
            return 1 + np.searchsorted(_cumulative(size, self.rate), rng.random(n), side="right")
        counts = _binomial(size, self.rate, n, rng)
        while (zero := counts == 0).any():
            counts[zero] = _binomial(size, self.rate, int(zero.sum()), rng)
        return counts


def _cumulative(size: int, rate: float) -> NDArray[np.float64]:
    """Return P(count <= k | count >= 1) for k = 1, 2, ... of a binomial distribution of mean below 1.

    SciPy's quantiles go wrong for the tiny rates and huge sizes of real devices; sixty steps reach past 1e-80.
    """
    steps = np.arange(1, min(size, 60), dtype=np.float64)
    ratios = (size - steps) / (steps + 1) * (rate / (1 - rate))  # P(k + 1) / P(k)
    sums = np.cumsum(np.cumprod(np.concatenate(([1.0], ratios))))
    return np.asarray(sums / sums[-1])


def _binomial(size: int, rate: float, n: int, rng: np.random.Generator) -> Ints:
    # Releases of NumPy that compute 1 - rate lose a tiny rate; the Poisson law is then as good as exact (it differs by
    # less than the rate in total variation: Barbour and Hall 1984, theorem 1).
    drawn = rng.poisson(size * rate, size=n) if rate < 1e-9 else rng.binomial(size, rate, size=n)
    return drawn.astype(np.int64)


def distinct(size: int, count: int, rng: np.random.Generator) -> Ints:
    """Return *count* different numbers below *size*, in increasing order, in memory that grows with *count* alone.

    >>> distinct(5, 5, np.random.default_rng(0))
    array([0, 1, 2, 3, 4])
    """
    if count > size // 4:
        # a redraw would collide too often; a dense draw is in proportion here
        return np.sort(rng.permutation(size)[:count]).astype(np.int64)
    chosen = np.unique(rng.integers(0, size, size=count, dtype=np.int64))
    while len(chosen) < count:
        more = rng.integers(0, size, size=count - len(chosen), dtype=np.int64)
        chosen = np.unique(np.concatenate((chosen, more)))
    return chosen
