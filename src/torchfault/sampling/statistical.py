"""Statistical fault injection: samples of a size fixed beforehand, without replacement, from each layer or bit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import SamplingError, did_you_mean
from torchfault.sampling.design import Design, Strata
from torchfault.sampling.protocol import Draws, Population
from torchfault.sampling.simple import distinct
from torchfault.sampling.tally import Tally
from torchfault.space import FaultSpace
from torchfault.statistics import leveugle_sample_size

__all__ = ["METHODS", "Statistical", "bit_probabilities", "bits_from"]

METHODS = ("network-wise", "layer-wise", "data-unaware", "data-aware")
_WORST = 0.5
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Statistical:
    """Draw a sample of the size that the published formula asks for, each stratum without replacement.

    *method* says what a stratum is: the whole space (``network-wise``), a site (``layer-wise``), or a bit of a site
    (``data-unaware``, ``data-aware``). Each stratum gets :func:`~torchfault.statistics.leveugle_sample_size` of its
    faults for *margin*, *t* and *p*; ``data-aware`` takes *p* from *bits*, which maps a word format to one probability
    for each of its bits (:func:`bit_probabilities`). Sizes are rounded so that their sum is the floor of the unrounded
    sum, as published; a stratum gets one draw at least, for else nothing could be said about it. Trials come in
    random order, so that a campaign stopped early holds a random part of the sample.

    Weights are the stratum's share of the space over its share of the sample. All trials are one block. Raises
    :class:`SamplingError` for an unknown method or numbers out of range. Source: Leveugle et al., DATE 2009; Ruospo et
    al., "Assessing convolutional neural networks reliability through statistical fault injections", DATE 2023.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a.weight", (1000,)), Site("b.weight", (10,))))
    >>> {method: Statistical(method).design(Population(space)).total for method in METHODS[:3]}
    {'network-wise': 7404, 'layer-wise': 7696, 'data-unaware': 29304}
    """

    method: str = "layer-wise"
    margin: float = 0.01
    t: float = 1.96
    p: float = _WORST
    bits: Mapping[str, tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            known = ", ".join(METHODS)
            raise SamplingError(f"a method is {known}, got '{self.method}'{did_you_mean(self.method, METHODS)}")
        if not (0 < self.margin < 1 and self.t > 0 and 0 < self.p < 1):
            raise SamplingError(
                f"margin and p lie strictly between 0 and 1 and t above 0, got margin={self.margin}, p={self.p}, "
                f"t={self.t}; the usual values are margin=0.01, p=0.5, t=1.96"
            )
        if (self.method == "data-aware") != (self.bits is not None):
            raise SamplingError(
                f"bits go with the method data-aware, and with no other, got method '{self.method}' "
                f"{'with' if self.bits else 'without'} bits; make them by bit_probabilities"
            )
        if wrong := [word for word, row in (self.bits or {}).items() if not all(0 <= p <= _WORST for p in row)]:
            raise SamplingError(f"the p of a bit is 0 to 0.5, the worst, got {max(self.bits[wrong[0]])}; cut it off")  # type: ignore[index]

    @property
    def block(self) -> int:
        """More trials than any sample has: drawing without replacement takes one random stream for all of them."""
        return 1 << 62

    def design(self, population: Population) -> Design:
        """Return the strata, of each of which what is left is known."""
        space = _uniform(population)
        draws = self.allocation(space)
        return Design(
            self.strata(space),
            replacement=False,
            total=int(draws.sum()),
            block=self.block,
            largest_weight=float(self._weights(space, draws).max()),
        )

    def strata(self, space: FaultSpace) -> Strata:
        """Return how *space* is cut into strata."""
        cells = space.cells
        each = {"network-wise": np.zeros(len(cells), dtype=np.int64), "layer-wise": cells.group}
        return Strata.of_cells(space, each.get(self.method, np.arange(len(cells))), cells.sizes / len(space))

    def allocation(self, space: FaultSpace) -> NDArray[np.int64]:
        """Return the number of draws from each stratum, shape (strata,).

        Raises :class:`SamplingError` where the space has a word format for which *bits* say nothing.
        """
        sizes = self.strata(space).sizes
        needed = np.zeros(len(sizes))
        p = self._p(space, len(sizes))
        for one in np.unique(p[p > 0]):
            same = p == one
            needed[same] = leveugle_sample_size(sizes[same], margin=self.margin, t=self.t, p=float(one))
        needed = np.where(sizes > 0, np.maximum(needed, 1.0), 0.0)
        reached = np.floor(np.cumsum(needed) + 1e-6).astype(np.int64)  # 1e-6: sums of whole numbers stay whole
        return np.diff(reached, prepend=0)

    def _p(self, space: FaultSpace, strata: int) -> NDArray[np.float64]:
        """Return the failure probability that each stratum's size is made for."""
        if self.bits is None:
            return np.full(strata, self.p)
        for one in space.sites:
            known = self.bits.get(one.word)
            if known is None or len(known) != one.width:
                raise SamplingError(
                    f"'{one.name}' has {one.word} words, for which bits hold "
                    f"{'nothing' if known is None else f'{len(known)} numbers'}; give one p for each of {one.width}"
                )
        cells = space.cells
        rows = zip(cells.group.tolist(), cells.bit.tolist(), strict=True)
        return np.array([self.bits[space.sites[site].word][bit] for site, bit in rows])[:strata]

    def _weights(self, space: FaultSpace, draws: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weight of a draw from each stratum."""
        weight = self.strata(space).sizes / len(space) * (draws.sum() / np.maximum(draws, 1))
        # a weight that is 1 but for rounding would cost the estimate its plain interval
        return np.where(np.isclose(weight, 1.0, rtol=1e-12, atol=0), 1.0, weight)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        """Return trials *start* to *start + n* of the sample that *rng* decides; all of it is drawn every time."""
        del tally
        space = _uniform(population)
        draws = self.allocation(space)
        total = int(draws.sum())
        if n < 0 or start < 0 or start + n > total:
            raise SamplingError(f"the sample ends at {total}, got {start} to {start + n}; draw fewer")
        sizes = self.strata(space).sizes
        first = np.cumsum(sizes) - sizes
        place, border = np.empty(total, dtype=np.int64), np.cumsum(draws)
        for size, count, end in zip(sizes.tolist(), draws.tolist(), border.tolist(), strict=True):
            place[end - count : end] = distinct(size, count, rng)
        order = rng.permutation(total)[start : start + n]
        runs = self.method in METHODS[:2]  # strata are runs of fault numbers, else cells
        index, weight, stratum = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n, dtype=np.int32)
        weights = self._weights(space, draws)
        for begin in range(0, n, _AT_ONCE):  # samples of huge spaces are large by themselves
            some, chosen = slice(begin, begin + _AT_ONCE), order[begin : begin + _AT_ONCE]
            which = np.searchsorted(border, chosen, side="right")
            index[some] = first[which] + place[chosen] if runs else space.number_of(which, place[chosen])
            weight[some], stratum[some] = weights[which], which
        return Draws(index, weight, stratum)


def _uniform(population: Population) -> FaultSpace:
    """Return the space, which has to be one of words that are all as likely as any other."""
    if not isinstance(population.space, FaultSpace) or not population.is_uniform:
        raise SamplingError(
            "statistical injection samples equally likely faults, got another space or a measure; use Uniform()"
        )
    return population.space


def bit_probabilities(values: ArrayLike, word: str = "float32") -> tuple[float, ...]:
    """Return the p of each bit, lowest first, that data-aware injection takes for words holding *values*.

    The mean distance by which flipping the bit moves a value (to what is not finite: infinitely far) is scaled from 0
    for the least to 0.5, the worst case, for the greatest; distances beyond the upper quartile by more than 1.5
    interquartile ranges are outliers, which get 0.5 and do not count for the scale. *values* are numbers of any shape,
    such as all weights of a network. Raises :class:`SamplingError` without values. Source: Ruospo et al., DATE 2023,
    section III, where f0 and f1 weigh the distances of the two directions, which makes this mean; the rule for
    outliers is ours.

    >>> p = bit_probabilities(np.linspace(-0.1, 0.1, 100))
    >>> p[30], p[31], p[0]
    (0.5, 0.5, 0.0)
    """
    return _probabilities([values], word)


def _probabilities(parts: "Sequence[ArrayLike]", word: str) -> tuple[float, ...]:
    """Return the same for values in several *parts*, some of them at a time."""
    import torch

    from torchfault.words.deltas import flip_deltas, words_of

    sums, count = [], 0
    for part in parts:
        flat = (part.detach() if isinstance(part, torch.Tensor) else np.asarray(part)).reshape(-1)
        for begin in range(0, len(flat), _AT_ONCE):
            words = words_of(flat[begin : begin + _AT_ONCE], word)
            moved = np.abs(flip_deltas(words, word))
            sums.append(np.where(np.isnan(moved), np.inf, moved).sum(0))
            count += len(words)
    if not count:
        raise SamplingError("the p of bits comes from values, got none; pass the weights of the network")
    return tuple(_scaled(np.sum(sums, axis=0) / count).tolist())


def bits_from(space: FaultSpace, values: "Mapping[str, ArrayLike]") -> dict[str, tuple[float, ...]]:
    """Return the *bits* of data-aware injection into *space*, from the *values* in each of its sites.

    *values* maps names of sites to arrays or tensors, as ``dict(model.named_parameters())`` does; all words of one
    format count together. Raises :class:`SamplingError` for a site without values, such as an activation.

    >>> from torchfault.space import Site
    >>> bits = bits_from(FaultSpace((Site("a", (3,), word="int8"),)), {"a": np.array([1, 2, 3])})
    >>> [round(p, 3) for p in bits["int8"]]
    [0.0, 0.008, 0.024, 0.056, 0.119, 0.246, 0.5, 0.5]
    """
    parts: dict[str, list[ArrayLike]] = {}
    for site in space.sites:
        if site.name not in values:
            raise SamplingError(
                f"data-aware injection goes by the values in each site, got none for '{site.name}'; "
                "choose weights alone, or data-unaware"
            )
        parts.setdefault(site.word, []).append(values[site.name])
    return {word: _probabilities(held, word) for word, held in parts.items()}


def _scaled(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale distances to 0 to 0.5, outliers at 0.5."""
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.minimum(distances, np.finfo(np.float64).max / 4), [0.25, 0.75])
    usual = distances <= high + 1.5 * (high - low)
    least, most = distances[usual].min(), distances[usual].max()
    scale = (most - least) or 1.0
    return np.where(usual, _WORST * (np.where(usual, distances, least) - least) / scale, _WORST)
