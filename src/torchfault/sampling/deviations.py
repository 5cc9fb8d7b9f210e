"""Strata of how far a flip moves its word, told by the golden words without a single trial."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.design import Strata
from torchfault.sampling.protocol import Population
from torchfault.space import FaultSpace, Site

__all__ = ["BEYOND", "LABELS", "Deviations", "Words", "word_classes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.unsignedinteger]

LABELS = 16  # strata of one site at most
BEYOND = 3  # labels of flips beyond the last edge: upwards, downwards, to NaN
# failing shares expected: of least and most deviation, and beyond the last edge, upwards, downwards and to NaN
_QUIETEST, _LIVELY, _LOUD = 1e-4, 0.02, (0.9, 0.1, 0.999)
_SURE, _UNSURE = 0.2, 10.0  # how many times as often faults are expected to fail on inputs of much and least margin
_LEADING = 9  # words alike in these leading bits (of a float32: sign and exponent) are moved about as far by a flip


@dataclass(frozen=True, eq=False)
class Deviations:
    """Strata of how far a flip moves its word, in each site or, where only the model is asked for, each kind of site.

    *words* are the golden words of all sites (:func:`torchfault.model.golden_words.golden_words`). Faults below
    ``edges[0]`` times the root mean square of the site's values hardly ever fail, and those beyond the last edge nearly
    always or, downwards, nearly never. Within such strata little is left to chance, which is why few draws suffice;
    nothing is assumed: a stratum in which the words mislead costs draws, not truth. *margins*, the golden lead of the
    best class on each input, shape (inputs,) (:func:`torchfault.sensitivity.margins`), part the inputs: small flips
    fail on the *unsure* ones, the share of least margin, which get strata of their own.

    An activation is drawn with the input that its word belongs to, a parameter with a random one. Raises
    :class:`SamplingError` for edges that do not rise, words that do not fit, and a measure that is not uniform.

    >>> space = FaultSpace((Site("a", (1000,)),))
    >>> values = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    >>> cutting = Deviations({"a": values.view(np.uint32)}).cut(Population(space, goals={"site": 0.01}))
    >>> cutting.strata.masses.round(3)
    array([0.708, 0.243, 0.014, 0.012, 0.014, 0.009])
    """

    words: Mapping[str, Words]
    edges: tuple[float, ...] = (0.125, 2.0, 64.0)
    margins: Floats | None = None
    unsure: tuple[float, ...] = (0.03,)
    _made: dict[tuple[str, bool], "_Cutting"] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        most = LABELS - BEYOND
        if not 0 < len(self.edges) <= most or sorted(set(self.edges)) != list(self.edges) or self.edges[0] <= 0:
            raise SamplingError(f"edges are 1 to {most} numbers above 0 that rise, got {self.edges}")
        if sorted({0.0, *self.unsure, 1.0}) != [0.0, *self.unsure, 1.0] or len(self.edges) * self.parts > most:
            raise SamplingError(
                f"unsure are shares of the inputs between 0 and 1 that rise, few enough for {LABELS} strata of a site, "
                f"got {self.unsure}; (0.03,) keeps the 3 % of least margin apart"
            )

    @property
    def unit(self) -> Literal["fault", "word"]:
        """Single faults."""
        return "fault"

    @property
    def parts(self) -> int:
        """The number of parts that the inputs are cut in by their margin."""
        return 1 if self.margins is None else len(self.unsure) + 1

    def cut(self, population: Population) -> "_Cutting":
        """Return the population in strata: made once for each space."""
        if not isinstance(population.space, FaultSpace) or not population.is_uniform:
            raise SamplingError(
                "strata by deviation are of words that are equally likely, got another space or a "
                "measure; use Adaptive(BitFields())"
            )
        key = (population.space.digest(), "site" in population.goals)
        if key not in self._made:
            self._made.clear()  # as large as the network
            self._made[key] = _Cutting(population.space, self, by_site=key[1])
        return self._made[key]


def _priors(deviations: Deviations) -> Floats:
    """Return the failure probability expected of strata by their label before anything is drawn, shape (LABELS,)."""
    times = np.geomspace(_SURE, _UNSURE, deviations.parts) if deviations.parts > 1 else np.ones(1)
    lively = (times[:, None] * np.geomspace(_QUIETEST, _LIVELY, len(deviations.edges))).ravel()
    return np.concatenate((lively, _LOUD, np.full(LABELS - len(lively) - BEYOND, 0.5)))


class _Cutting:
    """A space cut by deviation: *kind* and *label* of each stratum, the kind being its site or all those alike."""

    def __init__(self, space: FaultSpace, deviations: Deviations, *, by_site: bool) -> None:
        known = {name: np.asarray(words) for name, words in deviations.words.items()}
        if missing := [name for name in space.names if name not in known]:
            raise SamplingError(f"strata need the words of '{missing[0]}', got none; make them by golden_words")
        inputs = _by_margin(deviations, max(len(known[name]) for name in space.names))
        self.space, self.inputs = space, sum(len(some) for some in inputs)
        self.sites = [classify(site, known[site.name], deviations.edges, inputs) for site in space.sites]
        kinds = [site.name if by_site else (site.is_activation, site.word) for site in space.sites]
        kind = np.array([kinds.index(one) for one in kinds])
        held = np.stack([np.bincount(np.arange(len(one.sizes)), one.sizes, LABELS) for one in self.sites])
        share = held / np.maximum(held.sum(axis=1, keepdims=True), 1) * (space.sizes / len(space))[:, None]
        site, label = np.nonzero(share)
        key, stratum = np.unique(kind[site] * LABELS + label, return_inverse=True)
        self.kind, self.label = np.divmod(key, LABELS)
        self._share, self._members = share, [np.flatnonzero(kind == one) for one in range(len(kind))]
        none = np.full(len(site), -1)
        edges = len(deviations.edges)
        loud = (self.label >= edges * deviations.parts) | ((self.label >= edges) & (self.label % edges > 0))
        # sizes are not counted by stratum: an activation's faults belong to different ones on different inputs
        self.strata = Strata(
            stratum.reshape(-1),
            site,
            none,
            np.zeros_like(site),
            share[site, label],
            prior=_priors(deviations)[self.label],
            kind=self.label,
            alone=loud.astype(np.int64),
        )

    def draw(self, counts: Ints, *, rng: np.random.Generator) -> tuple[Ints, Ints, Ints | None]:
        """Return fault numbers, strata and inputs of so many draws from each stratum."""
        parts = [part for one in np.flatnonzero(counts).tolist() for part in self._draw(one, int(counts[one]), rng)]
        lengths = [len(part.element) for part in parts]
        stratum, site = (np.repeat([getattr(part, of) for part in parts], lengths) for of in ("stratum", "site"))
        element, bit, given = (np.concatenate([getattr(p, of) for p in parts]) for of in ("element", "bit", "inputs"))
        return self.space.number(site, element, bit), stratum, given if self.inputs > 1 else None

    def _draw(self, stratum: int, n: int, rng: np.random.Generator) -> Iterator["_Part"]:
        """Yield *n* faults of *stratum*, each of them equally likely, site by site."""
        members, label = self._members[self.kind[stratum]], int(self.label[stratum])
        counts = np.array([n])
        if len(members) > 1:
            share = self._share[members, label]
            counts = rng.multinomial(n, share / share.sum())
        for site, count in zip(members.tolist(), counts.tolist(), strict=True):
            if count:
                yield _Part(stratum, site, *self.sites[site].draw(label, count, rng=rng))


class _Part(NamedTuple):
    """Faults of one *stratum* in one *site*."""

    stratum: int
    site: int
    element: Ints
    bit: Ints
    inputs: Ints


def _by_margin(deviations: Deviations, inputs: int) -> tuple[Ints, ...]:
    """Return the inputs parted by their margin: those of least margin last."""
    if deviations.margins is None:
        return (np.arange(inputs),)
    margins = np.asarray(deviations.margins, dtype=np.float64)
    if inputs == 1 < len(margins):  # parameters alone: their words do not tell how many inputs there are
        inputs = len(margins)
    if margins.shape != (inputs,):
        raise SamplingError(f"margins have shape ({inputs},), one for each input, got {margins.shape}")
    order = np.argsort(-np.nan_to_num(margins, nan=-np.inf), kind="stable")
    return tuple(np.split(order, [inputs - int(np.ceil(share * inputs)) for share in reversed(deviations.unsure)]))


@dataclass(frozen=True, eq=False)
class Classified:
    """The faults of one site by label: *label*, shape (parts, classes, bits), tells the label of each combination.

    *inputs* are cut in parts. *order* lists the words of the site, class by class: of a parameter its elements; of
    an activation input times elements plus element, part by part first. *count*, shape (parts, classes), tells how
    many there are of each, a parameter's once for each input of the part.
    """

    site: Site
    inputs: tuple[Ints, ...]
    shared: bool
    order: NDArray[np.int32]
    count: Ints
    label: NDArray[np.int8]

    @cached_property
    def sizes(self) -> Ints:
        """The number of faults of each label, over all inputs."""
        bits = self.label.shape[-1]
        return np.bincount(self.label.ravel(), np.repeat(self.count.ravel(), bits)).astype(np.int64)

    @cached_property
    def _by_label(self) -> dict[int, tuple[Ints, Ints, Ints]]:
        return {}

    def _places(self, label: int) -> tuple[Ints, Ints, Ints]:
        """Return the parts, classes and places of bits that have a *label*."""
        if label not in self._by_label:
            part, classes, places = np.nonzero((self.label == label) & (self.count > 0)[..., None])
            self._by_label[label] = part, classes, places
        return self._by_label[label]

    def draw(self, label: int, n: int, *, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """Return the elements, bits and inputs of *n* faults of a *label*, each of them equally likely."""
        part, classes, places = self._places(label)
        held = self.count[part, classes]
        ends = np.cumsum(held)
        number = rng.integers(0, ends[-1], size=n)
        at = np.searchsorted(ends, number, side="right")
        inside, bit = number - (ends - held)[at], np.asarray(self.site.bits)[places[at]]
        if self.shared:
            sizes = np.array([len(some) for some in self.inputs])
            words = self.count[part[0]] // sizes[part[0]]  # the same in every part that has inputs
            nth, given = np.divmod(inside, sizes[part[at]])
            element = self.order[(np.cumsum(words) - words)[classes[at]] + nth].astype(np.int64)
            return element, bit, np.concatenate(self.inputs)[(np.cumsum(sizes) - sizes)[part[at]] + given]
        first = (np.cumsum(self.count.ravel()) - self.count.ravel()).reshape(self.count.shape)
        given, element = np.divmod(self.order[first[part, classes][at] + inside].astype(np.int64), self.site.elements)
        return element, bit, given


def classify(site: Site, words: Words, edges: tuple[float, ...], inputs: tuple[Ints, ...] = ()) -> Classified:
    """Return the labels of *site*, whose *words* have shape (inputs, elements), or (1, elements) for all inputs.

    Label 0 holds the flips that move a word by less than ``edges[0]`` times the root mean square of the site's
    values, and so on up; those from the last edge on are parted in flips upwards, downwards, and to NaN. Where *inputs*
    are cut in parts, the flips below the last edge have labels of their own in each: those of the first part come
    first, then those of the next.

    >>> words = np.array([[1.0, -2.0, 0.5]], dtype=np.float32).view(np.uint32)
    >>> classify(Site("a", (3,), bits=(0, 22, 30, 31)), words, (0.1, 8.0)).sizes.tolist()
    [3, 7, 1, 0, 1]
    >>> inputs = np.arange(3), np.array([3])
    >>> classify(Site("a", (3,), bits=(0, 22, 30, 31)), words, (0.1, 8.0), inputs).sizes.tolist()
    [9, 21, 3, 7, 4, 0, 4]
    """
    code, classes = word_classes(site, words)
    inputs, shared = inputs or (np.arange(len(words)),), len(words) == 1
    count = np.bincount(code.ravel(), minlength=classes).astype(np.int64)
    label = np.zeros((len(inputs), classes, len(site.bits)), dtype=np.int8)
    held = np.flatnonzero(count)
    plain = _labels(site, held.astype(np.uint64), count[held], edges)
    for part in range(len(inputs)):
        beyond = plain >= len(edges)
        label[part, held] = plain + len(edges) * np.where(beyond, len(inputs) - 1, part)
    if shared:
        by_part = np.stack([count * len(some) for some in inputs])
    else:
        part_of = np.zeros(len(words), dtype=np.uint16)
        for part, some in enumerate(inputs):
            part_of[some] = part
        code = code + part_of[:, None] * np.uint16(classes)
        by_part = np.bincount(code.ravel(), minlength=len(inputs) * classes).reshape(len(inputs), classes)
    order = np.argsort(code.ravel(), kind="stable").astype(np.int32)
    return Classified(site, inputs, shared, order, by_part.astype(np.int64), label)


def word_classes(site: Site, words: Words) -> tuple[NDArray[np.uint16], int]:
    """Return the leading bits of each word, of the shape of *words*, and how many classes these make.

    Raises :class:`SamplingError` for words of another shape than (inputs, elements).
    """
    if words.ndim != 2 or words.shape[1] != site.elements:
        raise SamplingError(
            f"'{site.name}' needs words of shape (inputs, {site.elements}), got {words.shape}; use golden_words"
        )
    rest = max(site.width - _LEADING, 0)
    return (words >> np.asarray(rest, dtype=words.dtype)).astype(np.uint16), 1 << (site.width - rest)


def _labels(site: Site, classes: NDArray[np.uint64], count: Ints, edges: tuple[float, ...]) -> Ints:
    """Return the label of each class and bit, from a word in the middle of the class."""
    from torchfault.words.deltas import flip_deltas, values_of

    rest = max(site.width - _LEADING, 0)
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
