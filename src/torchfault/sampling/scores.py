"""Scores: a number from 0 up for every fault of a space, known in closed form, never listed; NumPy only."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import SamplingError, did_you_mean
from torchfault.sampling.bits import BIT_RULES, bit_changes, bit_scores
from torchfault.space import FaultSpace, Site

__all__ = ["Effect", "Score", "Sensitivity", "Table", "score_mean", "score_of"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CHUNK = 1 << 15  # elements whose bits are scored at a time
_LARGEST = 1e60  # a change beyond it is as good as infinite, and products with it stay finite


class Score(ABC):
    """How much each fault is expected to matter: any numbers from 0 up; only their ratios count for a proposal.

    A score of one's own needs :meth:`rows` alone, and is a frozen dataclass, so that a campaign can tell whether it is
    resumed with the same one.

    >>> space = FaultSpace((Site("a", (2,), word="int8"),))
    >>> score_mean(Sensitivity({"a": np.array([1.0, 3.0])}), space)
    0.25
    """

    @abstractmethod
    def rows(self, site: Site, elements: Ints) -> Floats:
        """Return the scores of all bits, in the order of ``site.bits``, of some *elements*: shape (n, bits)."""

    def totals(self, site: Site) -> Floats:
        """Return the sum over the bits of every element of *site*, shape (elements,), some elements at a time."""
        parts = [self.rows(site, elements).sum(axis=1) for elements in runs(site)]
        return np.concatenate(parts) if parts else np.zeros(0)


def runs(site: Site) -> Iterator[Ints]:
    """Yield the elements of *site*, so many at a time that the scores of their bits fit into memory."""
    for first in range(0, site.elements, _CHUNK):
        yield np.arange(first, min(first + _CHUNK, site.elements))


@dataclass(frozen=True, eq=False)
class Sensitivity(Score):
    """The sensitivity of the element times the importance of the bit.

    *elements* maps the name of a site to the size of the sensitivity of each of its elements, in any shape; a site left
    out has the same for all. *bits* is a rule of :data:`BIT_RULES` (``random``, ``linear``, ``exponential``,
    ``derivative``, ``change``), the last two by the *values* that the elements hold. Each element's bits count as
    shares that sum to 1, so that the sensitivity alone decides on the element; with *joint* their own size counts too:
    the score is ``|sensitivity| |dv / db|``, which is what the chain rule says of the bit. Raises
    :class:`SamplingError` for an unknown rule, sensitivities that are negative or not finite, and values that are
    needed and missing.

    >>> site = Site("a", (2,), word="int8")
    >>> Sensitivity({"a": np.array([1.0, 3.0])}, bits="linear").rows(site, np.array([1])).round(2)
    array([[0.08, 0.17, 0.25, 0.33, 0.42, 0.5 , 0.58, 0.67]])
    """

    elements: Mapping[str, ArrayLike]
    _: KW_ONLY
    bits: str = "random"
    values: Mapping[str, ArrayLike] | None = None
    joint: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", _columns(self.elements, "sensitivities"))
        if self.values is not None:
            object.__setattr__(self, "values", _columns(self.values, "values", signed=True))
        if self.bits not in BIT_RULES:
            bit_scores(self.bits, [], "", 0)
        if self.values is None and self.bits in ("derivative", "change"):
            raise SamplingError(f"bits by their {self.bits} need the values of the elements, got none; pass values=")

    def rows(self, site: Site, elements: Ints) -> Floats:
        """Return sensitivity times importance of the bit, shape (n, bits)."""
        values = np.zeros(len(elements))
        if self.values is not None and self.bits in ("derivative", "change"):
            values = _of(self.values, site, elements)[:, 0]
        weights = np.minimum(bit_scores(self.bits, values, site.word, site.width), _LARGEST)[:, list(site.bits)]
        if not self.joint:
            weights = weights / weights.max(axis=1, keepdims=True)
            weights /= weights.sum(axis=1, keepdims=True)
        own = _of(self.elements, site, elements) if site.name in self.elements else np.ones((len(elements), 1))
        return np.asarray(own * weights)

    def totals(self, site: Site) -> Floats:
        """Return the sum over bits, which is the sensitivity itself unless bits count by their size."""
        if not self.joint and site.name in self.elements:
            return _of(self.elements, site, slice(None))[:, 0]
        return super().totals(site)


@dataclass(frozen=True, eq=False)
class Effect(Score):
    """The share of inputs whose answer the flip should change, to first order: a prediction of its failure probability.

    On input k that is ``|slope_k| |v'_k - v_k| / margin_k``, 1 at most: *slopes* maps each site to the derivatives of
    the margin (the golden answer's lead) by its elements, *values* to what these hold, each of shape (elements,), or
    (elements, inputs) where they depend on the input, and *margins*, shape (inputs,) or a number, is how far the margin
    may fall before the answer is another one. A flip far beyond the margin scores no more than one that just gets
    there, so that draws spread over all of these; on the scale of a probability it serves as a control variate too
    (:func:`torchfault.campaign.assisted`). Raises :class:`SamplingError` for margins that are not above 0.

    >>> site = Site("a", (1,))
    >>> Effect({"a": [0.1]}, {"a": [0.5]}, margins=2.0).rows(site, np.array([0]))[0, [22, 26, 30, 31]].round(4)
    array([0.0125, 0.0249, 1.    , 0.05  ])
    """

    slopes: Mapping[str, ArrayLike]
    values: Mapping[str, ArrayLike]
    _: KW_ONLY
    margins: ArrayLike = 1.0

    def __post_init__(self) -> None:
        margins = np.atleast_1d(np.asarray(self.margins, dtype=np.float64))
        if margins.ndim != 1 or not (np.isfinite(margins).all() and (margins > 0).all()):
            raise SamplingError("margins are finite numbers above 0, one or one per input, got others; leave out ties")
        object.__setattr__(self, "margins", margins)
        object.__setattr__(self, "slopes", _columns(self.slopes, "slopes", inputs=len(margins)))
        object.__setattr__(self, "values", _columns(self.values, "values", signed=True, inputs=len(margins)))

    def rows(self, site: Site, elements: Ints) -> Floats:
        """Return the mean over inputs of the first-order effect in margins, 1 at most, shape (n, bits)."""
        slopes, values = _of(self.slopes, site, elements), _of(self.values, site, elements)
        margins, bits = np.asarray(self.margins), list(site.bits)
        found, moved = np.zeros((len(elements), len(bits))), np.zeros(0)
        for k, margin in enumerate(margins):
            if k < values.shape[1]:
                moved = np.minimum(bit_changes(values[:, k], site.word, site.width)[:, bits], _LARGEST)
            found += np.minimum(1.0, slopes[:, min(k, slopes.shape[1] - 1), None] * moved / margin)
        return found / len(margins)


@dataclass(frozen=True, eq=False)
class Table(Score):
    """A score per fault, written out: *scores* maps the name of a site to numbers of shape (elements, bits).

    >>> Table({"a": np.eye(2)}).rows(Site("a", (2,), bits=(30, 31)), np.array([1]))
    array([[0., 1.]])
    """

    scores: Mapping[str, ArrayLike]

    def __post_init__(self) -> None:
        kept = {name: np.asarray(scores, dtype=np.float64) for name, scores in self.scores.items()}
        for name, scores in kept.items():
            if scores.ndim != 2 or not np.isfinite(scores).all() or (scores < 0).any():
                raise SamplingError(
                    f"the scores of '{name}' are finite numbers from 0 up, of shape (elements, bits), "
                    f"got shape {scores.shape}; pass one row per element"
                )
        object.__setattr__(self, "scores", kept)

    def rows(self, site: Site, elements: Ints) -> Floats:
        """Return the scores as they were given, shape (n, bits)."""
        held = _found(self.scores, site)
        if held.shape != (site.elements, len(site.bits)):
            raise SamplingError(
                f"'{site.name}' has {site.elements} elements of {len(site.bits)} bits, got scores of shape "
                f"{held.shape}; pass one for each fault"
            )
        return np.asarray(held[elements], dtype=np.float64)


def score_mean(score: Score, space: FaultSpace) -> float:
    """Return the exact mean of *score* over all faults of *space*.

    >>> space = FaultSpace((Site("a", (2,), bits=(30, 31)),))
    >>> score_mean(Table({"a": np.array([[1.0, 0.0], [0.5, 0.5]])}), space)
    0.5
    """
    return float(sum(score.totals(site).sum() for site in space.sites) / len(space))


def score_of(score: Score, space: FaultSpace, index: ArrayLike) -> Floats:
    """Return the score of each fault number of *index*, shape (n,).

    >>> space = FaultSpace((Site("a", (2,), bits=(30, 31)),))
    >>> score_of(Table({"a": np.array([[1.0, 0.0], [0.5, 0.25]])}), space, [0, 3])
    array([1.  , 0.25])
    """
    where = space.locate(index)
    found = np.zeros(len(where.site))
    for position in np.unique(where.site):
        here, site = np.flatnonzero(where.site == position), space.sites[position]
        rows = score.rows(site, where.element[here])
        found[here] = rows[np.arange(len(here)), np.searchsorted(site.bits, where.bit[here])]
    return found


def _columns(
    given: Mapping[str, ArrayLike], what: str, *, signed: bool = False, inputs: int = 1
) -> dict[str, NDArray[np.float32]]:
    """Return arrays as (elements, 1) or (elements, inputs), of four bytes per number: a large network has many."""
    kept = {}
    for name, values in given.items():
        with np.errstate(over="ignore"):
            held = np.array(values, dtype=np.float32)
        several = inputs > 1 and held.ndim > 1 and held.shape[-1] == inputs
        column = held.reshape(-1, inputs if several else 1)
        if not signed and not (np.isfinite(column).all() and (column >= 0).all()):
            raise SamplingError(f"the {what} of '{name}' are finite numbers from 0 up, got others; take their size")
        column.setflags(write=False)
        kept[name] = column
    return kept


def _found(given: Mapping[str, ArrayLike], site: Site) -> NDArray[np.generic]:
    if site.name not in given:
        raise SamplingError(
            f"a score needs numbers for every site, got none for '{site.name}'{did_you_mean(site.name, given)}; "
            "choose other sites, or add them"
        )
    return np.asarray(given[site.name])


def _of(given: Mapping[str, ArrayLike], site: Site, elements: Ints | slice) -> Floats:
    """Return the columns of some elements of *site*, shape (n, 1) or (n, inputs)."""
    held = _found(given, site)
    if len(held) != site.elements:
        raise SamplingError(f"'{site.name}' has {site.elements} elements, got {len(held)} numbers; give one for each")
    return np.asarray(held[elements], dtype=np.float64)
