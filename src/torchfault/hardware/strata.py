"""Strata of cells whose upsets do alike, how many draws each gets, and in which order; NumPy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import HardwareError
from torchfault.sampling.strata import apportion

__all__ = ["Allocation", "most_strata", "stratify"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_MOST = 64  # strata
_DEFENSIVE = 0.2  # of the draws go by mass alone
_FEWEST = 25  # draws of a stratum on average, so that its own variance is known well enough


@dataclass(frozen=True, eq=False)
class Allocation:
    """The *stratum* of each cell, -1 for none, and the *draws* of each stratum; cells are drawn in it by *mass*."""

    stratum: Ints
    draws: Ints
    mass: Floats

    @property
    def q(self) -> Floats:
        """The probability that a draw, whichever, is of each cell, shape (cells,)."""
        inside = self.stratum >= 0
        total = np.bincount(self.stratum[inside], weights=self.mass[inside], minlength=len(self.draws))
        share = (self.draws / (self.draws.sum() * total))[self.stratum]
        return np.where(inside, self.mass * share, 0.0)

    @property
    def weight(self) -> Floats:
        """The weight p/q of a draw of each cell, *mass* being p, 0 for cells that are not drawn, shape (cells,)."""
        q = self.q
        return np.where(q > 0, self.mass / np.where(q > 0, q, 1.0), 0.0)

    def draw(self, *, rng: np.random.Generator) -> Ints:
        """Return the cell of every draw, shape (draws,).

        Within a stratum, draws are spread over its cells as evenly as whole numbers allow (systematic sampling:
        Cochran, Sampling Techniques, chapter 8). Strata take turns, so that the first draws of all are spread alike.
        """
        cell = np.zeros(self.draws.sum(), dtype=np.int64)
        moment = np.zeros(len(cell))
        ends = np.cumsum(self.draws)
        for number, count in enumerate(self.draws):
            here = slice(ends[number] - count, ends[number])
            cell[here] = _even(np.flatnonzero(self.stratum == number), self.mass, int(count), rng)
            moment[here] = (np.arange(count) + rng.random()) / count
        return cell[np.argsort(moment, kind="stable")]


def _even(cells: Ints, mass: Floats, n: int, rng: np.random.Generator) -> Ints:
    """Return *n* of *cells* by *mass*, as evenly as whole numbers allow, in random order."""
    edge = np.cumsum(mass[cells])
    points = (rng.random() + np.arange(n)) / n * edge[-1]
    return rng.permutation(cells[np.minimum(np.searchsorted(edge, points, side="right"), len(cells) - 1)])


def stratify(mass: Floats, rate: Floats, draws: int) -> Allocation:
    """Cut cells into strata of like *rate*, and share out *draws*, 4 or more: Neyman's shares, 2 at least.

    *mass*, shape (cells,), is what each cell counts for, and *rate* the mean square expected of its outcomes, never 0
    where there is mass; its root bounds their standard deviation. Strata are runs of cells in the order of their rate
    with equal sums of mass times root, as far as whole cells allow: for such, equal shares are Neyman's. One in five
    draws goes by mass alone, so that none weighs much even where the expectation missed something. Sources: Neyman,
    Journal of the Royal Statistical Society 97, 1934; Dalenius & Hodges, Journal of the American Statistical
    Association 54, 1959; Hesterberg, Technometrics 37, 1995 (defensive mixtures). Raises :class:`HardwareError` where
    no cell has mass.

    >>> stratify(np.array([0.1, 0.6, 0.2]), np.array([0.25, 0.0001, 0.16]), 100).draws
    array([17, 51, 32])
    """
    held = np.flatnonzero(mass > 0)
    if not len(held):
        raise HardwareError("upsets need a type that holds data and is in use, got none; see utilisation")
    held = held[np.argsort(rate[held], kind="stable")]
    need = mass[held] * np.sqrt(rate[held])
    need = (1 - _DEFENSIVE) * need / need.sum() + _DEFENSIVE * mass[held] / mass[held].sum()
    wanted = most_strata(draws)
    ends = np.cumsum(need) / need.sum()
    _, number = np.unique(np.floor((ends - need / need.sum() / 2) * wanted), return_inverse=True)
    stratum = np.full(len(mass), -1)
    stratum[held] = number
    by_stratum = np.bincount(number, weights=need)
    return Allocation(
        stratum, apportion(np.asarray(by_stratum, dtype=np.float64), draws, least=2), np.where(stratum >= 0, mass, 0.0)
    )


def most_strata(draws: int) -> int:
    """Return how many strata :func:`stratify` cuts cells into at most, for so many *draws*."""
    return max(1, min(_MOST, draws // _FEWEST))
