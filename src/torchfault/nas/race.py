"""When to stop spending on a candidate: once others are better in all that counts, with a bounded risk of error."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torchfault.errors import StatisticsError

__all__ = ["Contender", "Race"]


@dataclass(frozen=True)
class Contender:
    """A candidate: what is known *exact* of it, each the larger the better, and bounds of what is only estimated.

    >>> Contender(exact=(0.97, -144_000.0), low=0.74, high=0.79).low
    0.74
    """

    exact: tuple[float, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Race:
    """Candidates looked at in turn, each up to *looks* times with growing samples, until one is dominated.

    A candidate is dominated where another one, looked at before, is as good in all exact objectives and has a lower
    bound above its upper one. With two-sided intervals at the levels of :meth:`below` and :meth:`above`, valid for one
    look each, a candidate whose true values are on the front of all is dropped with a probability of at most *error*,
    however many candidates there are: its own upper bounds fail at any look with *error* / 2, and the lower bounds of
    all the others, at any look, with *error* / 2 together, of which the k-th takes 6 / (pi k)^2 (Bonferroni over looks
    and candidates; sum of 1 / k^2). Raises :class:`StatisticsError` for numbers that cannot be.

    >>> race = Race(error=0.05, looks=4)
    >>> round(race.above, 4), round(race.below(0), 4), round(race.below(9), 5)
    (0.9875, 0.9924, 0.99992)
    >>> race.dominates(Contender((0.97,), 0.8, 0.82), Contender((0.95,), 0.7, 0.78))
    True
    """

    error: float = 0.05
    looks: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.error < 1 or self.looks < 1:
            raise StatisticsError(
                f"a race has a risk of error between 0 and 1 and a look or more, got {self.error:g} and {self.looks}"
            )

    @property
    def above(self) -> float:
        """The level of the two-sided interval whose upper end bounds a candidate from above."""
        return 1 - self.error / self.looks

    def below(self, number: int) -> float:
        """Return the level of the interval whose lower end bounds candidate *number*, counted from 0, from below."""
        return 1 - self.error / self.looks * 6 / (math.pi * (number + 1)) ** 2

    def dominates(self, one: Contender, other: Contender) -> bool:
        """Return whether *one* is at least as good as *other* in all that is exact, and better in what is estimated."""
        exact = zip(one.exact, other.exact, strict=True)
        return one.low > other.high and all(better >= worse for better, worse in exact)

    def dominated(self, candidate: Contender, others: Iterable[Contender]) -> bool:
        """Return whether any of *others* dominates *candidate*."""
        return any(self.dominates(other, candidate) for other in others)
