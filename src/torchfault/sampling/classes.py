"""Strata of how far a flip moves its word: every fault of a site sorted by deviation, from the golden words."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.space import Site

__all__ = ["Classified", "classify"]

Ints = NDArray[np.int64]
Words = NDArray[np.unsignedinteger]

# Words alike in these leading bits (of a float32: sign and exponent) are one class: a flip moves them about as far.
_LEADING = 9


@dataclass(frozen=True, eq=False)
class Classified:
    """The faults of one site by stratum: *label*, shape (groups, classes, bits), tells the stratum of each cell.

    *inputs* are parted in groups. *order* lists the words of the site, class by class: of a parameter its elements; of
    an activation input times elements plus element, group by group first. *count*, shape (groups, classes), tells how
    many there are of each, a parameter's once for each input of the group.
    """

    site: Site
    inputs: tuple[Ints, ...]
    shared: bool
    order: NDArray[np.int32]
    count: Ints
    label: NDArray[np.int8]

    @cached_property
    def sizes(self) -> Ints:
        """The number of faults in each stratum, over all inputs."""
        bits = self.label.shape[-1]
        return np.bincount(self.label.ravel(), np.repeat(self.count.ravel(), bits)).astype(np.int64)

    def draw(self, stratum: int, n: int, *, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """Return the elements, bits and inputs of *n* faults of *stratum*, each of them equally likely."""
        group, classes, places = np.nonzero((self.label == stratum) & (self.count > 0)[..., None])
        held = self.count[group, classes]
        ends = np.cumsum(held)
        number = rng.integers(0, ends[-1], size=n)
        cell = np.searchsorted(ends, number, side="right")
        inside, bit = number - (ends - held)[cell], np.asarray(self.site.bits)[places[cell]]
        if self.shared:
            sizes = np.array([len(some) for some in self.inputs])
            words = self.count[group[0]] // sizes[group[0]]  # the same in every group that has inputs
            nth, given = np.divmod(inside, sizes[group[cell]])
            element = self.order[(np.cumsum(words) - words)[classes[cell]] + nth].astype(np.int64)
            return element, bit, np.concatenate(self.inputs)[(np.cumsum(sizes) - sizes)[group[cell]] + given]
        first = (np.cumsum(self.count.ravel()) - self.count.ravel()).reshape(self.count.shape)
        given, element = np.divmod(
            self.order[first[group, classes][cell] + inside].astype(np.int64), self.site.elements
        )
        return element, bit, given


def classify(site: Site, words: Words, edges: tuple[float, ...], inputs: tuple[Ints, ...] = ()) -> Classified:
    """Return the strata of *site*, whose *words* have shape (inputs, elements), or (1, elements) for all inputs.

    Stratum 0 holds the flips that move a word by less than ``edges[0]`` times the root mean square of the site's
    values, and so on up; those from the last edge on are parted in flips upwards, downwards, and to NaN. Where *inputs*
    are parted in groups, the flips below the last edge have strata of their own in each: those of the first group come
    first, then those of the next.

    >>> words = np.array([[1.0, -2.0, 0.5]], dtype=np.float32).view(np.uint32)
    >>> classify(Site("a", (3,), bits=(0, 22, 30, 31)), words, (0.1, 8.0)).sizes.tolist()
    [3, 7, 1, 0, 1]
    >>> inputs = np.arange(3), np.array([3])
    >>> classify(Site("a", (3,), bits=(0, 22, 30, 31)), words, (0.1, 8.0), inputs).sizes.tolist()
    [9, 21, 3, 7, 4, 0, 4]
    """
    if words.ndim != 2 or words.shape[1] != site.elements:
        raise SamplingError(
            f"'{site.name}' needs words of shape (inputs, {site.elements}), got {words.shape}; use golden_words"
        )
    inputs, shared = inputs or (np.arange(len(words)),), len(words) == 1
    rest = max(site.width - _LEADING, 0)
    classes = 1 << (site.width - rest)
    code = (words >> np.asarray(rest, dtype=words.dtype)).astype(np.uint16)
    count = np.bincount(code.ravel(), minlength=classes).astype(np.int64)
    label = np.zeros((len(inputs), classes, len(site.bits)), dtype=np.int8)
    held = np.flatnonzero(count)
    plain = _labels(site, held.astype(np.uint64), count[held], rest, edges)
    for group in range(len(inputs)):
        beyond = plain >= len(edges)
        label[group, held] = plain + len(edges) * np.where(beyond, len(inputs) - 1, group)
    if shared:
        order = np.argsort(code.ravel(), kind="stable").astype(np.int32)
        by_group = np.stack([count * len(some) for some in inputs])
    else:
        of_group = np.zeros(len(words), dtype=np.uint16)
        for group, some in enumerate(inputs):
            of_group[some] = group
        code = code + of_group[:, None] * np.uint16(classes)
        order = np.argsort(code.ravel(), kind="stable").astype(np.int32)
        by_group = np.bincount(code.ravel(), minlength=len(inputs) * classes).reshape(len(inputs), classes)
    return Classified(site, inputs, shared, order, by_group.astype(np.int64), label)


def _labels(site: Site, classes: NDArray[np.uint64], count: Ints, rest: int, edges: tuple[float, ...]) -> Ints:
    """Return the stratum of each class and bit, from a word in the middle of the class."""
    from torchfault.words.deltas import flip_deltas, values_of

    middle = (classes << np.uint64(rest)) | np.uint64(1 << rest >> 1)
    old, delta = values_of(middle, site.word), flip_deltas(middle, site.word)[:, list(site.bits)]
    finite = np.isfinite(old)
    power = count[finite] @ np.square(old[finite]) / max(int(count[finite].sum()), 1)
    with np.errstate(invalid="ignore", over="ignore"):
        moved, up = np.abs(delta) / (np.sqrt(power) or 1.0), delta > 0
    lost = np.isnan(moved)
    label = np.searchsorted(edges, np.where(lost, np.inf, moved), side="right")
    last = len(edges)
    return np.where(lost, last + 2, np.where((label == last) & ~up, last + 1, label))
