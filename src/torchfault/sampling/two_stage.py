"""Two-stage sampling of words: some channels of each site, and in each of them words along the order of values."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from math import ceil, log2
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError, did_you_mean
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.protocol import Draws, Population
from torchfault.sampling.tally import Tally
from torchfault.site import Site
from torchfault.space import FaultSpace

__all__ = ["Count", "TwoStage", "drawn_channels", "drawn_words", "sampled_channels"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.unsignedinteger]
Count = int | Literal["log2"] | None
"""How many words of a channel: a number, the logarithm to base 2 of how many there are, or all of them."""


def sampled_channels(site: Site, share: float | None) -> int:
    """Return how many channels of *site* a *share* of them is: rounded up, at least one; all of them if ``None``.

    Raises :class:`SamplingError` for a share outside 0 to 1.

    >>> sampled_channels(Site("conv.weight", (64, 3), channel=0), 0.1)
    7
    """
    if share is None:
        return site.channels
    if not 0 < share <= 1:
        raise SamplingError(f"share is a fraction of the channels above 0 and up to 1, got {share}; None takes all")
    return min(site.channels, max(1, ceil(share * site.channels - 1e-9)))


def drawn_channels(site: Site, share: float | None, *, rng: np.random.Generator) -> Ints:
    """Return a random *share* of the channels of *site*, in increasing order; all of them if ``None``.

    There are two at least where the site has as many: a single channel tells nothing of how channels differ.

    >>> drawn_channels(Site("conv.weight", (64, 3), channel=0), 0.05, rng=np.random.default_rng(0))
    array([ 8, 16, 27, 36])
    """
    count = min(site.channels, max(2, sampled_channels(site, share)))
    return np.sort(rng.permutation(site.channels)[:count])


def drawn_words(site: Site, count: Count) -> int:
    """Return how many words of each channel of *site* are drawn; raises :class:`SamplingError` for fewer than one.

    >>> drawn_words(Site("conv:input", (16, 32, 32), kind="input", channel=0), "log2")
    10
    """
    words = site.elements // site.channels
    if count is None:
        return words
    if count == "log2":
        return min(words, max(1, round(log2(words))))
    if not isinstance(count, int) or count < 1:  # type: ignore[redundant-expr]
        raise SamplingError(f"the words of a channel are a number from 1, 'log2' or all of them, got {count!r}")
    return min(words, count)


@dataclass(frozen=True, eq=False)
class TwoStage:
    """Draw whole words: from each of some *channels* of every site as many as *counts* says, on every input.

    *channels* lists them by the name of the site; they have to be a random sample of its channels
    (:func:`drawn_channels`), or all. The words of a channel stand in the order of their values, which decide what a
    flip does more than anything else, and are cut into *counts* runs of equal length: one word of each is drawn, which
    is worth more than as many from anywhere. They are drawn *fresh* for each input, or the same ones run on all of them
    (activations in the order of their means; ``inputs_per_fault=None`` in the campaign). *words* are the golden words
    of all sites (:func:`torchfault.model.golden_words.golden_words`), and are kept with the trials.

    Raises :class:`SamplingError` for a measure that is not uniform, and where words, channels or counts do not fit the
    sites. Source: Cochran, Sampling Techniques, 3rd ed. 1977, chapters 8 and 10.

    >>> space = FaultSpace((Site("a", (2, 8), channel=0, word="int8"),))
    >>> sampler = TwoStage({"a": np.arange(16, dtype=np.uint8)[None]}, {"a": [1]}, {"a": 4})
    >>> draws = sampler.draw(Population(space, inputs=3), 12, rng=np.random.default_rng(0), start=0)
    >>> (draws.words // 2).tolist(), draws.inputs.tolist()
    ([4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """

    words: Mapping[str, Words] = field(repr=False)
    channels: Mapping[str, Sequence[int] | Ints] = field(repr=False)
    counts: Mapping[str, int]
    _: KW_ONLY
    fresh: bool = True
    block: int = 4096
    _made: dict[str, "_Frame"] = field(default_factory=dict, init=False, repr=False)

    def design(self, population: Population) -> Design:
        """Return a stratum for each site, with channels as clusters, and the number of words in all."""
        space, frame = self._uniform(population), self._frame(population)
        held = np.flatnonzero(space.sizes)
        none = np.full(len(held), -1)
        strata = Strata(np.arange(len(held)), held, none, space.sizes[held], frame.mass[held])
        return Design(
            strata,
            total=frame.each * (population.inputs if self.fresh else 1),
            block=self.block,
            largest_weight=float(frame.weight.max()),
            unit="word",
            clusters="channel",
        )

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return the words *start* to *start + n*, input by input; *tally* does not matter."""
        del tally
        space, frame = population.space, self._frame(population)
        assert isinstance(space, FaultSpace)
        number, chance = start + np.arange(n), rng.random(n)
        inputs, row = np.divmod(number, frame.each)
        site = np.searchsorted(frame.first, row, side="right") - 1
        index, stratum = np.empty(n, dtype=np.int64), np.searchsorted(np.flatnonzero(space.sizes), site)
        words = np.zeros((n, 1 if self.fresh else population.inputs), dtype=np.uint64)
        for one, image in np.unique(np.stack((site, inputs)), axis=1).T.tolist():
            here = np.flatnonzero((site == one) & (inputs == image))
            cut = frame.sites[one]
            element = cut.element(row[here] - frame.first[one], chance[here], image if self.fresh else None)
            index[here] = space.number(np.full(len(here), one), element, np.full(len(here), cut.site.bits[0]))
            held = cut.words[np.minimum(image, len(cut.words) - 1)][None] if self.fresh else cut.words
            words[here] = held[:, element].T
        given = inputs if self.fresh else None
        kept = words[:, 0] if self.fresh else words
        return Draws(index, frame.weight[site], stratum.astype(np.int32), None, given, kept)

    def _frame(self, population: Population) -> "_Frame":
        """Return the sites of the population as they are drawn from: made once for each space."""
        space = self._uniform(population)
        key = space.digest()
        if key not in self._made:
            self._made.clear()
            self._made[key] = _Frame(space, [self._cut(site, population.inputs) for site in space.sites])
        return self._made[key]

    def _cut(self, site: Site, inputs: int) -> "_Cut":
        """Return one site as it is drawn from."""
        for what, held in (("words", self.words), ("channels", self.channels), ("counts", self.counts)):
            if site.name not in held:
                raise SamplingError(f"'{site.name}' needs {what}, got none{did_you_mean(site.name, held)}; add them")
        words, channels = np.asarray(self.words[site.name]), np.unique(self.channels[site.name]).astype(np.int64)
        if words.shape not in ((1, site.elements), (inputs, site.elements)):
            raise SamplingError(
                f"'{site.name}' needs words of shape (1 or {inputs}, {site.elements}), got {words.shape}; "
                "use golden_words"
            )
        if not len(channels) or channels[0] < 0 or channels[-1] >= site.channels:
            raise SamplingError(
                f"'{site.name}' has the channels 0 to {site.channels - 1}, got {channels.tolist()}; list some of these"
            )
        return _Cut(site, words, channels, drawn_words(site, self.counts[site.name]))

    def _uniform(self, population: Population) -> FaultSpace:
        if not isinstance(population.space, FaultSpace) or not population.is_uniform:
            raise SamplingError(
                "whole words are drawn from equally likely ones, got another space or a measure; use Uniform()"
            )
        return population.space


class _Frame:
    """All sites as they are drawn from on one input: the *first* row of each, how many rows there are in all."""

    def __init__(self, space: FaultSpace, sites: "list[_Cut]") -> None:
        rows = np.array([cut.rows for cut in sites])
        self.sites, self.each, self.first = sites, int(rows.sum()), np.cumsum(rows) - rows
        self.mass = space.sizes / len(space)
        self.weight = self.mass * self.each / np.maximum(rows, 1)


@dataclass(frozen=True, eq=False)
class _Cut:
    """A *site* as it is drawn from: *count* words of each of its *channels*."""

    site: Site
    words: Words
    channels: Ints
    count: int
    _latest: dict[int, Ints] = field(default_factory=dict, init=False)

    @property
    def rows(self) -> int:
        """The number of words drawn on one input."""
        return len(self.channels) * self.count if self.site.size else 0

    @cached_property
    def _elements(self) -> Ints:
        """The flat elements of each channel, shape (channels, words)."""
        places = np.arange(self.site.elements // self.site.channels)
        return self.site.in_channel(self.channels[:, None], places[None])

    def element(self, row: Ints, chance: Floats, image: int | None) -> Ints:
        """Return the elements of some rows of input *image*, each drawn from its run of words by *chance*."""
        channel, run = np.divmod(row, self.count)
        width = self._elements.shape[1]
        if self.count == width:
            return self._elements[channel, run]
        rank = np.minimum(((run + chance) * (width / self.count)).astype(np.int64), width - 1)
        return np.asarray(self._order(image)[channel, rank])

    def _order(self, image: int | None) -> Ints:
        """Return the elements of each channel by their values on *image*, or by their means."""
        key = -1 if image is None else min(image, len(self.words) - 1)
        if key not in self._latest:
            from torchfault.words.deltas import values_of

            held = self.words[:, self._elements] if image is None else self.words[key, self._elements][None]
            with np.errstate(invalid="ignore", over="ignore"):
                values = values_of(held, self.site.word).mean(axis=0)
            self._latest.clear()
            self._latest[key] = np.take_along_axis(self._elements, np.argsort(values, axis=1, kind="stable"), axis=1)
        return self._latest[key]
