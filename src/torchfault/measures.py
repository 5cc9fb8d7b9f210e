"""Measures: how likely each fault of a space is, factored as site x element x bit; NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import SpaceError
from torchfault.space import FaultSpace, Site

__all__ = ["Measure", "draw", "probability", "uniform"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measure:
    """A distribution over a fault space: p(site) p(element | site) p(bit | site).

    *sites* holds one probability per site, shape (sites,), and sums to 1. *elements* and *bits* map a site's name to
    the conditional probabilities of its elements and of its bits (in the order of ``site.bits``); a site left out
    is uniform. Raises :class:`SpaceError` where a factor is negative or does not sum to 1, and, when the measure is
    used, where it does not fit the space.

    >>> Measure(np.array([0.25, 0.75]), bits={"fc.weight": np.array([0.5, 0.5])}).sites
    array([0.25, 0.75])
    """

    sites: Floats
    elements: Mapping[str, Floats] | None = None
    bits: Mapping[str, Floats] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", _check(self.sites, "the sites"))
        for what in ("elements", "bits"):
            if factor := getattr(self, what):
                checked = {name: _check(values, f"the {what} of '{name}'") for name, values in factor.items()}
                object.__setattr__(self, what, checked)


def _check(values: ArrayLike, what: str) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    total = numbers.sum()
    if numbers.ndim != 1 or not (numbers >= 0).all() or not np.isclose(total, 1.0, rtol=0, atol=1e-9):
        raise SpaceError(
            f"the probabilities of {what} are one row, each at least 0, and sum to 1, "
            f"got shape {numbers.shape} and sum {total}; normalise them"
        )
    return numbers


def _fit(measure: Measure, space: FaultSpace) -> None:
    """Refuse a measure that was made for another space."""
    if len(measure.sites) != len(space.sites):
        raise SpaceError(f"a space of {len(space.sites)} sites needs one probability each, got {len(measure.sites)}")
    empty = [site.name for site, p in zip(space.sites, measure.sites, strict=True) if p > 0 and not site.size]
    if empty:
        raise SpaceError(f"'{empty[0]}' has no element, so its probability is 0, got more; move it to other sites")
    for name in (*(measure.elements or ()), *(measure.bits or ())):
        space.position(name)


def uniform(space: FaultSpace) -> Measure:
    """Return the measure under which every fault of *space* is equally likely.

    >>> space = FaultSpace((Site("a", (3,)), Site("b", (1,))))
    >>> uniform(space).sites
    array([0.75, 0.25])
    """
    return Measure(space.sizes / len(space))


def probability(measure: Measure, space: FaultSpace, index: ArrayLike) -> Floats:
    """Return the probability of each fault number of *index*, shape (n,).

    >>> space = FaultSpace((Site("a", (3,), word="int8"),))
    >>> float(probability(uniform(space), space, [5])[0] * len(space))
    1.0
    """
    _fit(measure, space)
    site, element, bit = space.locate(index)
    p = measure.sites[site]
    for position in np.unique(site):
        here = site == position
        one = space.sites[position]
        by_element, by_bit = _factors(measure, one)
        p[here] *= 1 / one.elements if by_element is None else by_element[element[here]]
        p[here] *= 1 / len(one.bits) if by_bit is None else by_bit[np.searchsorted(one.bits, bit[here])]
    return p


def draw(measure: Measure, space: FaultSpace, n: int, *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return *n* fault numbers drawn independently from *measure*, shape (n,).

    >>> space = FaultSpace((Site("a", (3,)),))
    >>> draw(uniform(space), space, 4, rng=np.random.default_rng(0)).shape
    (4,)
    """
    _fit(measure, space)
    site = rng.choice(len(space.sites), size=n, p=measure.sites)
    element, bit = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for position in np.unique(site):
        here = np.flatnonzero(site == position)
        one = space.sites[position]
        by_element, by_bit = _factors(measure, one)
        element[here] = rng.choice(one.elements, size=here.size, p=by_element)
        bit[here] = np.asarray(one.bits)[rng.choice(len(one.bits), size=here.size, p=by_bit)]
    return space.number(site, element, bit)


def _factors(measure: Measure, site: Site) -> tuple[Floats | None, Floats | None]:
    """Return the element and bit factors of *site*, ``None`` for uniform ones, after checking their lengths."""
    by_element = (measure.elements or {}).get(site.name)
    by_bit = (measure.bits or {}).get(site.name)
    for values, length, what in ((by_element, site.elements, "elements"), (by_bit, len(site.bits), "bits")):
        if values is not None and len(values) != length:
            raise SpaceError(f"'{site.name}' has {length} {what}, got {len(values)} probabilities; give one for each")
    return by_element, by_bit
