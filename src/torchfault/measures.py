"""Measures: how likely each fault of a space is, as a mass for each cell and a spread over its places; NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.cells import Space
from torchfault.errors import SpaceError
from torchfault.space import FaultSpace

__all__ = ["UNIFORM", "Measure", "ProductMeasure", "draw", "probability"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@runtime_checkable
class Measure(Protocol):
    """The probabilities p over a space: a mass for each cell, and how it is spread over the places of the cell.

    >>> from torchfault.space import Site
    >>> isinstance(UNIFORM, Measure), UNIFORM.mass(FaultSpace((Site("a", (3,), bits=(30, 31)),))).tolist()
    (True, [0.5, 0.5])
    """

    def mass(self, space: Space) -> Floats:
        """Return the probability of each cell, shape (cells,); they sum to 1."""
        ...

    def within(self, space: Space, cell: Ints, place: Ints) -> Floats:
        """Return the probability of each place, given its cell, shape (n,)."""
        ...

    def draw_places(self, space: Space, cell: Ints, *, rng: np.random.Generator) -> Ints:
        """Return a place of each *cell*, drawn by its probability given the cell, shape (n,)."""
        ...


@dataclass(frozen=True, eq=False)
class ProductMeasure:
    """A distribution over a fault space: p(site) p(element | site) p(bit | site).

    *sites* holds one probability per site, shape (sites,), and sums to 1; without it every fault is as likely as any
    other. *elements* and *bits* map a site's name to the conditional probabilities of its elements and of its bits
    (in the order of ``site.bits``); a site left out is uniform. Raises :class:`SpaceError` where a factor is negative
    or does not sum to 1, and, when the measure is used, where it does not fit the space.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (3,), bits=(30, 31)), Site("b", (1,), bits=(31,))))
    >>> ProductMeasure(np.array([0.25, 0.75]), bits={"a": np.array([0.4, 0.6])}).mass(space)
    array([0.1 , 0.15, 0.75])
    """

    sites: Floats | None = None
    elements: Mapping[str, Floats] | None = None
    bits: Mapping[str, Floats] | None = None

    def __post_init__(self) -> None:
        if self.sites is not None:
            object.__setattr__(self, "sites", _checked(self.sites, "the sites"))
        for what in ("elements", "bits"):
            if factor := getattr(self, what):
                checked = {name: _checked(values, f"the {what} of '{name}'") for name, values in factor.items()}
                object.__setattr__(self, what, checked)

    @property
    def is_uniform(self) -> bool:
        """Whether nothing was given, so that every fault is as likely as any other."""
        return self.sites is None and not self.elements and not self.bits

    def mass(self, space: Space) -> Floats:
        """Return p(site) p(bit | site) of each cell, shape (cells,)."""
        cells, known = space.cells, self._fitting(space)
        share = space_shares(space) if self.sites is None else self.sites
        each = (share / np.maximum(np.bincount(cells.group, minlength=len(share)), 1))[cells.group]
        for name, by_bit in (self.bits or {}).items():
            here = cells.group == known.position(name)
            each[here] = share[known.position(name)] * by_bit
        return np.asarray(each)

    def within(self, space: Space, cell: Ints, place: Ints) -> Floats:
        """Return p(element | site), shape (n,)."""
        p = 1 / np.maximum(space.cells.sizes[cell], 1).astype(np.float64)
        for here, by_element in self._uneven(space, cell):
            p[here] = by_element[place[here]]
        return p

    def draw_places(self, space: Space, cell: Ints, *, rng: np.random.Generator) -> Ints:
        """Return an element for each *cell*, shape (n,)."""
        place = rng.integers(0, space.cells.sizes[cell], dtype=np.int64)
        for here, by_element in self._uneven(space, cell):
            place[here] = rng.choice(len(by_element), size=len(here), p=by_element)
        return place

    def _uneven(self, space: Space, cell: Ints) -> list[tuple[Ints, Floats]]:
        """Return the rows of *cell* whose site has probabilities for its elements, with these."""
        if not self.elements:
            return []
        known, site = self._fitting(space), space.cells.group[cell]
        return [(np.flatnonzero(site == known.position(name)), p) for name, p in self.elements.items()]

    def _fitting(self, space: Space) -> FaultSpace:
        """Return *space*, or refuse one that the measure was not made for."""
        if not isinstance(space, FaultSpace):
            if self.is_uniform:
                return space  # type: ignore[return-value]  # a uniform measure asks nothing of it
            raise SpaceError(f"a product measure is over sites, got a {type(space).__name__}; take its own measure")
        if self.sites is not None and len(self.sites) != len(space.sites):
            raise SpaceError(
                f"a space of {len(space.sites)} sites needs one probability each, got {len(self.sites)}; count them"
            )
        share = () if self.sites is None else self.sites
        empty = [site.name for site, p in zip(space.sites, share, strict=False) if p > 0 and not site.size]
        if empty:
            raise SpaceError(f"'{empty[0]}' has no element, so its probability is 0, got more; move it to other sites")
        for held, length, what in ((self.elements, "elements", "elements"), (self.bits, "bits", "bits")):
            for name, values in (held or {}).items():
                site = space.site(name)
                count = site.elements if length == "elements" else len(site.bits)
                if len(values) != count:
                    raise SpaceError(f"'{name}' has {count} {what}, got {len(values)} probabilities; give one for each")
        return space


UNIFORM = ProductMeasure()
"""The measure under which every fault of a space is equally likely."""


def _checked(values: ArrayLike, what: str) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    total = numbers.sum()
    if numbers.ndim != 1 or not (numbers >= 0).all() or not np.isclose(total, 1.0, rtol=0, atol=1e-9):
        raise SpaceError(
            f"the probabilities of {what} are one row, each at least 0, and sum to 1, "
            f"got shape {numbers.shape} and sum {total}; normalise them"
        )
    return numbers


def space_shares(space: Space) -> Floats:
    """Return the share of the faults that each group of cells (site, layer) has, shape (groups,).

    >>> from torchfault.space import Site
    >>> space_shares(FaultSpace((Site("a", (3,)), Site("b", (1,)))))
    array([0.75, 0.25])
    """
    cells = space.cells
    return np.asarray(np.bincount(cells.group, cells.sizes.astype(np.float64)) / len(space))


def probability(measure: Measure, space: Space, index: ArrayLike) -> Floats:
    """Return the probability of each fault number of *index*, shape (n,).

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (3,), word="int8"),))
    >>> float(probability(UNIFORM, space, [5])[0] * len(space))
    1.0
    """
    cell = space.cell_of(index)
    return np.asarray(measure.mass(space)[cell] * measure.within(space, cell, space.place_of(index)))


def draw(measure: Measure, space: Space, n: int, *, rng: np.random.Generator) -> Ints:
    """Return *n* fault numbers drawn independently from *measure*, shape (n,).

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (3,)),))
    >>> draw(UNIFORM, space, 4, rng=np.random.default_rng(0)).shape
    (4,)
    """
    mass = measure.mass(space)
    cell = rng.choice(len(mass), size=n, p=mass / mass.sum())
    return space.number_of(cell, measure.draw_places(space, cell, rng=rng))
