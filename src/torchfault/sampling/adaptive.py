"""Adaptive sampling: strata of sites and bits, whose shares of every block follow from the outcomes before it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.draws import Draws, History
from torchfault.sampling.statistical import Strata
from torchfault.space import FaultSpace, Locations
from torchfault.statistics.allocation import guess, needed_draws
from torchfault.statistics.intervals import check_level
from torchfault.statistics.sequences import Sequence, confidence_sequence

__all__ = ["Adaptive", "Allocated", "Tally", "tally"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of failures and trials by round and cell, each cell being what a stratum and a group have in common.

    *failures* and *trials* (of the whole stratum) have shape (rounds, cells), *group* and *stratum* (cells,); *shares*,
    (cells,), are the stratum's faults over the group's: times the probability that a draw from the stratum fails in
    the group they sum to the group's failure probability.
    """

    failures: Floats
    trials: Floats
    group: Ints
    stratum: Ints
    shares: Floats

    def sequence(self, group: int, *, target: float, level: float) -> Sequence:
        """Return the confidence sequence of one group's failure probability."""
        here = self.group == group
        return confidence_sequence(
            self.failures[:, here], self.trials[:, here], self.shares[here], target=target, level=level
        )


def tally(strata: Strata, of_pair: Ints, of_trial: Ints, history: History, *, block: int) -> Tally:
    """Count the complete blocks of *history* by cells; *of_pair* and *of_trial* are the groups of pairs and trials."""
    rounds, sizes = len(history) // block, strata.sizes
    width = int(of_pair.max()) + 1
    keys = np.unique(strata.stratum * width + of_pair)
    stratum, group = np.divmod(keys, width)
    stratum_of, failed = history.stratum[: rounds * block].astype(np.int64), history.failed[: rounds * block]
    number = np.arange(rounds * block) // block
    cell = np.searchsorted(keys, stratum_of * width + of_trial[: rounds * block])
    failures = np.bincount((number * len(keys) + cell)[failed], minlength=rounds * len(keys))
    trials = np.bincount(number * len(sizes) + stratum_of, minlength=rounds * len(sizes)).reshape(rounds, len(sizes))
    of_group = np.zeros(width, dtype=np.int64)
    np.add.at(of_group, of_pair, strata.faults)
    return Tally(
        failures.reshape(rounds, len(keys)).astype(np.float64),
        trials[:, stratum].astype(np.float64),
        group,
        stratum,
        sizes[stratum] / of_group[group],
    )


@dataclass(frozen=True)
class Adaptive:
    """Draw from every site and group of bits, in shares that each block takes anew from the outcomes so far.

    The campaign ends by itself once the interval of the *model*, of each *site* and of each *bit*, as far as a
    half-width is given for them, is that narrow at *level*. Those intervals hold although they are looked at after
    every block (:func:`torchfault.statistics.confidence_sequence`).

    A stratum is a site and a group of its bits: of as many bits as *groups* says, from the top of the word, the rest
    being the last. The first block of *block* trials, the pilot, is split half by size and half evenly; each later one
    gives a stratum the draws that its widest unfinished interval needs of it: Neyman's share, W sqrt(p (1 - p)), or
    what proves that a stratum without failures has few, whichever is more, and one draw at least. The draws of a block
    depend on its random stream and the outcomes of earlier blocks alone, and weigh p / q within their block.

    Raises :class:`SamplingError` without any half-width, and where a space has more strata than half a block. Source:
    Neyman, Journal of the Royal Statistical Society 97, 1934, for the shares.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (1000,)), Site("b", (10,))))
    >>> sampler = Adaptive(site=0.01)
    >>> sampler.strata(space).sizes[:5]
    array([ 1000,  1000,  4000,  3000, 23000])
    """

    model: float | None = None
    site: float | None = None
    bit: float | None = None
    level: float = 0.95
    block: int = 1024
    groups: tuple[int, ...] = (1, 1, 4, 3)

    def __post_init__(self) -> None:
        check_level(self.level)
        given = [h for h in (self.model, self.site, self.bit) if h is not None]
        if not given or not all(0 < h < 0.5 for h in given):
            raise SamplingError(
                f"Adaptive stops by half-widths between 0 and 0.5, of model, site or bit, got {given or 'none'}; "
                "one percentage point is 0.01"
            )
        if self.block < 2 or not all(size >= 1 for size in self.groups):
            raise SamplingError(f"a block has two trials or more and groups one bit, got {self.block}, {self.groups}")

    @cached_property
    def targets(self) -> dict[str, float]:
        """The half-widths asked for, by what they are of."""
        named = {"model": self.model, "site": self.site, "bit": self.bit}
        return {name: h for name, h in named.items() if h is not None}

    def target(self, by: str) -> float:
        """Return the half-width that intervals by *by* are tuned for: their own, or else the smallest asked for."""
        return self.targets.get(by, min(self.targets.values()))

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws never run out; outcomes decide when it is enough (:meth:`finished`)."""
        del space
        return None

    def strata(self, space: FaultSpace) -> Strata:
        """Return how *space* is cut: sites by groups of bits, numbered from the top bits of the first site on."""
        borders = np.cumsum(self.groups)
        site: list[int] = []
        bit: list[int] = []
        faults: list[int] = []
        for position, one in enumerate(space.sites):
            if one.elements:
                site += [position] * len(one.bits)
                bit += one.bits[::-1]
                faults += [one.elements] * len(one.bits)
        where = Locations(np.array(site, dtype=np.int32), np.zeros(len(site), dtype=np.int64), np.array(bit, np.int16))
        widths = np.array([one.width for one in space.sites])
        rank = np.searchsorted(borders, widths[where.site] - 1 - where.bit, side="right")
        key = where.site.astype(np.int64) * (len(borders) + 1) + rank
        return Strata(where, np.unique(key, return_inverse=True)[1].astype(np.int64), np.array(faults, dtype=np.int64))

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return *n* trials of a pilot block; :meth:`replan` makes the sampler of a block that knows the outcomes."""
        return self._allocated(self._pilot(space)).draw(space, n, rng=rng, start=start)

    def replan(self, space: FaultSpace, history: History) -> "Adaptive | Allocated":
        """Return the sampler of the block that follows *history*: itself for the pilot."""
        if len(history) < self.block:
            return self
        needed = np.zeros(len(self.strata(space).sizes))
        for counts, group, target in self._unfinished(space, history):
            here = counts.group == group
            share, n = counts.shares[here], counts.trials[:, here].sum(axis=0)
            p = guess(counts.failures[:, here].sum(axis=0), n)
            np.maximum.at(needed, counts.stratum[here], needed_draws(share, p, target=target, level=self.level))
        if not needed.any():
            return self
        return self._allocated(needed)

    def finished(self, space: FaultSpace, history: History) -> str | None:
        """Return why it is enough, or ``None`` while an interval asked for is too wide."""
        if len(history) < self.block or next(self._unfinished(space, history), None) is not None:
            return None
        reached = ", ".join(f"{name} ±{h:g}" for name, h in self.targets.items())
        return f"every interval is narrow enough: {reached} ({100 * self.level:g} %, at any time)"

    def _unfinished(self, space: FaultSpace, history: History) -> Iterator[tuple[Tally, int, float]]:
        """Yield the groups whose intervals are still too wide: their counts, number and target."""
        strata, located = self.strata(space), space.locate(history.faults)
        codes: dict[str, Callable[[Locations], Ints]] = {
            "model": lambda where: np.zeros(len(where.site), dtype=np.int64),
            "site": lambda where: where.site.astype(np.int64),
            "bit": lambda where: where.bit.astype(np.int64),
        }
        for name, target in self.targets.items():
            code = codes[name]
            counts = tally(strata, code(strata.where), code(located), history, block=self.block)
            for group in np.unique(counts.group).tolist():
                ends = counts.sequence(group, target=target, level=self.level)
                if not ends.enough(2 * target):
                    yield counts, group, target

    def _pilot(self, space: FaultSpace) -> Floats:
        sizes = self.strata(space).sizes
        return np.asarray(sizes / sizes.sum() + 1 / len(sizes))

    def _allocated(self, needed: Floats) -> "Allocated":
        """Return the sampler that splits a block in proportion to *needed*, one draw at least to each stratum."""
        spare = self.block - len(needed)
        if spare < len(needed):
            raise SamplingError(
                f"a block of {self.block} is too small for {len(needed)} strata, each of which takes part in every "
                f"block; use block={1 << (2 * len(needed)).bit_length()}"
            )
        reached = np.floor(np.cumsum(needed) / needed.sum() * spare + 1e-6).astype(np.int64)
        reached[-1] = spare
        return Allocated(self, tuple((1 + np.diff(reached, prepend=0)).tolist()))


@dataclass(frozen=True)
class Allocated:
    """One block of :class:`Adaptive` with so many *draws* from each stratum, in random order.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (1000,), bits=(30, 31)),))
    >>> draws = Allocated(Adaptive(model=0.01, block=4), (3, 1)).draw(space, 4, rng=np.random.default_rng(0))
    >>> sorted(zip(draws.stratum.tolist(), draws.weight.tolist()))
    [(0, 0.6666666666666666), (0, 0.6666666666666666), (0, 0.6666666666666666), (1, 2.0)]
    """

    plan: Adaptive
    draws: tuple[int, ...]

    @property
    def block(self) -> int:
        """The number of trials."""
        return self.plan.block

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws never run out."""
        del space
        return None

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return the first *n* trials of the block; *start* does not matter, since blocks are independent."""
        del start
        strata, counts = self.plan.strata(space), np.array(self.draws)
        if n > counts.sum():
            raise SamplingError(f"a block has {counts.sum()} trials, got {n}; draw block after block")
        sizes, pairs = strata.sizes, np.bincount(strata.stratum)
        stratum = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        # within a stratum the pairs of site and bit are neighbours, and equally large
        element, nth = np.divmod(rng.integers(0, sizes[stratum]), pairs[stratum])
        pair = (np.cumsum(pairs) - pairs)[stratum] + nth
        index = space.number(strata.where.site[pair], element, strata.where.bit[pair])
        weight = sizes / sizes.sum() * (counts.sum() / counts)
        return Draws(index, weight[stratum], stratum.astype(np.int32)).take(0, n)
