"""Designs: what a sampler promises of its draws, stored with the campaign; every interval follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Axis, Space
from torchfault.errors import SamplingError
from torchfault.statistics.allocation import Price

__all__ = ["Design", "Strata"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Strata:
    """The strata that trials are drawn from, in parts: a row for each stratum and each site (or cell) it reaches into.

    *stratum*, *group* (the site or layer, -1 for all of them), *bit* (-1 for all), *size* (the faults of the part) and
    *mass* (their probability under the measure) have shape (parts,). Of shape (strata,) are *prior*, the failure
    probability expected before anything is drawn; *kind*, equal for strata whose faults are alike though of different
    sites; and *alone*, 1 for strata whose faults are too large or too unsure to be struck together with others.

    >>> strata = Strata(np.array([0, 1, 1]), np.array([0, 0, 1]), np.full(3, -1), np.array([5, 3, 2]), np.ones(3) / 3)
    >>> len(strata), strata.sizes, strata.masses.round(2)
    (2, array([5, 5]), array([0.33, 0.67]))
    """

    stratum: Ints
    group: Ints
    bit: Ints
    size: Ints
    mass: Floats
    prior: Floats | None = None
    kind: Ints | None = None
    alone: Ints | None = None

    def __len__(self) -> int:
        return int(self.stratum.max(initial=-1)) + 1

    @classmethod
    def one(cls, faults: int) -> "Strata":
        """Return a single stratum of so many *faults*."""
        none = np.array([-1], dtype=np.int64)
        return cls(none + 1, none, none, np.array([faults], dtype=np.int64), np.ones(1))

    @classmethod
    def of_cells(cls, space: Space, stratum: Ints, mass: Floats, *, prior: Floats | None = None) -> "Strata":
        """Return strata of whole cells: the *stratum* of each, -1 for none, and its *mass*, shape (cells,)."""
        cells, held = space.cells, np.flatnonzero((stratum >= 0) & (space.cells.sizes > 0))
        return cls(stratum[held], cells.group[held], cells.bit[held], cells.sizes[held], mass[held], prior)

    @property
    def sizes(self) -> Ints:
        """The number of faults in each stratum, shape (strata,)."""
        sizes = np.zeros(len(self), dtype=np.int64)
        np.add.at(sizes, self.stratum, self.size)
        return sizes

    @property
    def masses(self) -> Floats:
        """The probability of each stratum, shape (strata,)."""
        return np.asarray(np.bincount(self.stratum, self.mass, len(self)), dtype=np.float64)

    def within(self, space: Space, axis: Axis) -> tuple[NDArray[np.bool_], Floats]:
        """Return which strata reach into each group of *axis*, (groups, strata), and the masses of groups, (groups,).

        A part of several cells counts for each by its size. Raises :class:`SamplingError` where groups are smaller than
        cells.
        """
        if axis.of_cell is None:
            raise SamplingError("strata are known by site and bit, got smaller groups; group by site or layer instead")
        cells, reach = space.cells, np.zeros((len(axis), len(self)), dtype=np.bool_)
        masses = np.zeros(len(axis))
        for stratum, group, bit, mass in zip(self.stratum, self.group, self.bit, self.mass, strict=True):
            here = ((cells.group == group) | (group < 0)) & ((cells.bit == bit) | (bit < 0)) & (cells.sizes > 0)
            faults = np.bincount(axis.of_cell[here], cells.sizes[here], len(axis))
            reach[faults > 0, stratum] = True
            masses += mass * faults / max(faults.sum(), 1.0)
        return reach, masses


@dataclass(frozen=True, eq=False)
class Design:
    """What may be concluded from the draws of a sampler.

    - *strata*: what is drawn from, apart.
    - *looks*: ``one``: intervals hold at a number of trials fixed beforehand; ``every``: they hold at every look, by
      confidence sequences over blocks of *block* trials for the groupings in *targets*, each tuned for a half-width.
    - *replacement*: whether draws are independent; without it, what is left of each stratum is known.
    - *enumerates*: trials take every fault in order, each on every input: what is missing is all that is unknown.
    - *total*: the number of trials after which the sampler is done, ``None`` for no end.
    - *largest_weight*: the largest p / q of any draw, ``None`` where the sampler cannot tell.
    - *reach*: the share of the measure that can be drawn at all; nothing is known of the rest.
    - *sample*: the strata whose trials are a sample of the population; those of the others were picked on purpose.
    - *unit*: what a draw is: a ``fault``, or a ``word`` with all the flips of its bits.
    - *clusters*: draws come from some groups of this grouping (``channel``) of each site, a random sample of them, the
      same number from each, evenly along an order, and as many on every input; ``None`` where they come from anywhere.
    - *adapts*: whether the draws of a block depend on the outcomes of earlier ones.
    - *pilot*: of a sampler that adapts, the number of first draws whose outcomes are all that it goes by; 0 where it
      goes by those of all earlier blocks.
    - *later*: so many strata more, numbered after *strata*, that later blocks may be cut into by what earlier ones
      found. What each holds is not known beforehand; those of one block hold the whole measure.
    - *pool*: draws cost as if struck in pools of so many, which decides the stakes of sequences.

    >>> Design(Strata.one(64)).looks
    'one'
    """

    strata: Strata
    looks: Literal["one", "every"] = "one"
    replacement: bool = True
    enumerates: bool = False
    total: int | None = None
    block: int = 0
    targets: Mapping[str, float] = field(default_factory=dict)
    largest_weight: float | None = None
    reach: float = 1.0
    sample: tuple[int, ...] | None = None
    unit: Literal["fault", "word"] = "fault"
    clusters: Literal["channel"] | None = None
    adapts: bool = False
    pilot: int = 0
    later: int = 0
    pool: int = 0

    @property
    def price(self) -> Price | None:
        """What a draw costs in lanes, by its failure probability; ``None`` where each has its own lane.

        A pooled draw costs the entropy of its outcome and a fifth.

        >>> Design(Strata.one(64), pool=64).price(np.array([1e-6, 0.01, 0.5])).round(3)
        array([0.016, 0.097, 1.   ])
        """
        return partial(_price, pool=self.pool) if self.pool else None

    def plain(self) -> dict[str, Any]:
        """Return the design in JSON values, which :meth:`from_plain` reads.

        >>> Design.from_plain(Design(Strata.one(64), total=9).plain()).total
        9
        """
        held: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)[1:]}
        held["targets"] = dict(self.targets)
        held["sample"] = None if self.sample is None else list(self.sample)
        strata = {part.name: getattr(self.strata, part.name) for part in fields(Strata)}
        return held | {"strata": {name: None if v is None else v.tolist() for name, v in strata.items()}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Design":
        """Return the design that :meth:`plain` wrote; raises :class:`SamplingError` for anything else."""
        try:
            rows: dict[str, Any] = dict(plain["strata"])
            columns: dict[str, Any] = {
                name: None if held is None else np.array(held, dtype=np.float64 if name in _REAL else np.int64)
                for name, held in rows.items()
            }
            rest = {name: value for name, value in plain.items() if name != "strata"}
            rest["sample"] = None if rest["sample"] is None else tuple(rest["sample"])
            return cls(Strata(**columns), **rest)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise SamplingError(
                f"a stored design cannot be read ({error!r}); it was written by another version"
            ) from None


_REAL = ("mass", "prior")
_ALONE = 0.1  # faults of a larger failing share are not pooled


def _price(p: Floats, *, pool: int) -> Floats:
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return np.where(p > _ALONE, 1.0, np.clip(1.2 * entropy, 1 / pool, 1.0))
