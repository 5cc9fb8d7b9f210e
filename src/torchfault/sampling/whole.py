"""Sampling of whole words: every bit of a random word on one input, for monotone closure to find with a few lanes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.deviation import Rounds
from torchfault.sampling.draws import Draws, History
from torchfault.space import FaultSpace
from torchfault.statistics.intervals import check_level

__all__ = ["WholeWords", "word_rounds"]

Ints = NDArray[np.int64]
_THOUGHT = 0.02


@dataclass(frozen=True)
class WholeWords:
    """Draw words, each on one of *inputs* inputs, and strike every bit of them, until each *site* is narrow enough.

    The word is what is drawn: its share of failing bits is one draw from 0 to 1, and the bits of one word, which fail
    together, never count as many. *site* is the half-width at *level*; intervals hold at every look
    (:func:`torchfault.statistics.confidence_sequence`). Blocks of *block* trials, that is of *block* over the bits of a
    word words, are split evenly over the sites that are not done. Take it with monotone closure
    (:class:`torchfault.campaign.Shortcuts`), which needs about three lanes for a word. Raises :class:`SamplingError`
    for numbers out of range, and sites whose words do not have equally many bits.

    >>> from torchfault.space import Site
    >>> space, rng = FaultSpace((Site("a", (9,)),)), np.random.default_rng(0)
    >>> draws = WholeWords(5, site=0.01, block=64).draw(space, 64, rng=rng)
    >>> np.diff(draws.index[:32]).tolist() == [1] * 31, len(set(draws.inputs[:32]))
    (True, 1)
    """

    inputs: int
    site: float
    level: float = 0.95
    block: int = 32 * 256

    def __post_init__(self) -> None:
        check_level(self.level)
        if self.inputs < 1 or not 0 < self.site < 0.5 or self.block < 1:
            raise SamplingError(
                f"WholeWords takes one input or more, a half-width between 0 and 0.5 and a block of a word or more, "
                f"got {self.inputs}, {self.site} and {self.block}; one percentage point is 0.01"
            )

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws never run out; outcomes decide when it is enough."""
        del space
        return None

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return *n* trials of a first block: words of all sites."""
        del start
        return self._words(space, np.arange(len(space.sites)), n, rng)

    def replan(self, space: FaultSpace, history: History) -> "WholeWords | _Some":
        """Return the sampler of the block that follows *history*."""
        open_ = self._open(space, history)
        return _Some(self, open_) if len(open_) else self

    def finished(self, space: FaultSpace, history: History) -> str | None:
        """Return why it is enough, or ``None`` while the interval of a site is too wide."""
        if len(history) < self.block or len(self._open(space, history)):
            return None
        return f"every interval is narrow enough: site ±{self.site:g} ({100 * self.level:g} %, at any time)"

    def _open(self, space: FaultSpace, history: History) -> Ints:
        """Return the sites whose intervals are not narrow enough, or whose values have not all their weight yet."""
        counts = word_rounds(space, history.stratum, history.failed, block=self.block)
        sites, open_ = space.sizes / len(space), []
        for site in np.flatnonzero(space.sizes).tolist():
            ends = counts.sequence(site, sites, target=self.site, level=self.level)
            if not ends.enough(2 * self.site):
                open_.append(site)
        return np.array(open_, dtype=np.int64)

    def _words(self, space: FaultSpace, sites: Ints, n: int, rng: np.random.Generator) -> Draws:
        bits = _bits(space)
        count = self.block // bits
        if count < len(sites) or self.block % bits:
            raise SamplingError(
                f"a block is whole words of {bits} bits, one or more for each of {len(sites)} sites, got {self.block}; "
                f"use {8 * bits * len(sites)}"
            )
        site = np.repeat(sites, np.diff(np.arange(len(sites) + 1) * count // len(sites)))
        elements = np.array([one.elements for one in space.sites])
        element = rng.integers(0, elements[site])
        given = rng.integers(0, self.inputs, size=count)
        order = rng.permutation(count)
        places = np.array([one.bits for one in space.sites], dtype=np.int64)[site[order]]
        row = np.repeat(order, bits)
        index = space.number(site[row], element[row], places.reshape(-1))
        share = (space.sizes / len(space))[site] * count / np.bincount(site)[site]
        return Draws(index, share[row], site[row].astype(np.int32), None, given[row]).take(0, n)


def _bits(space: FaultSpace) -> int:
    bits = {len(site.bits) for site in space.sites}
    if len(bits) != 1:
        raise SamplingError(f"WholeWords needs words of equally many bits, got {sorted(bits)}; choose like sites")
    return bits.pop()


def word_rounds(space: FaultSpace, stratum: NDArray[np.int32], failed: NDArray[np.bool_], *, block: int) -> Rounds:
    """Count the words of complete blocks by site, and the sum of their shares of failing bits."""
    bits, whole, sites = _bits(space), len(stratum) // block, len(space.sites)
    cell = np.arange(whole * block) // block * sites + stratum[: whole * block].astype(np.int64)
    fails = failed[: whole * block]
    n, k = (np.bincount(c, minlength=whole * sites).reshape(whole, sites) / bits for c in (cell, cell[fails]))
    return Rounds(k, n, np.arange(sites), np.ones(sites), np.full(sites, _THOUGHT))


@dataclass(frozen=True, eq=False)
class _Some:
    """One block of :class:`WholeWords` from some *sites* alone."""

    plan: WholeWords
    sites: Ints

    @property
    def block(self) -> int:
        """The number of trials."""
        return self.plan.block

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws never run out."""
        del space
        return None

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return the first *n* trials of the block."""
        del start
        return self.plan._words(space, self.sites, n, rng)
