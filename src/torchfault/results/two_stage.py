"""Estimates from words drawn in two stages: what the channels left out, and the words left out of each, leave unknown.

They are over the inputs given, so that these add no sampling error. Source: DeepVigor+, arXiv 2410.15742, equations 12
to 15, for the means; Cochran, Sampling Techniques, 3rd ed. 1977, chapter 10, for their variance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from torchfault.cells import Axis
from torchfault.sampling.design import Design
from torchfault.sampling.flips import flips_by_group, masks_of
from torchfault.site import Site
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate, wilson
from torchfault.statistics.intervals import quantile
from torchfault.store import Columns

__all__ = ["Factor", "SiteFactors", "factor_estimates", "site_factors", "weighted_factor"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Factor:
    """A factor before its interval is made: *value*, its sampling *variance*, degrees of *freedom*, and *trials*.

    *known* is the share of what was to be tried that has been; of the rest any part may fail.
    """

    value: float
    variance: float
    freedom: float
    trials: int
    known: float = 1.0

    def estimate(self, level: float = 0.95) -> Estimate:
        """Return the factor with a score interval of as many trials as would have this variance.

        Without a variance seen (all words alike) every word counts as one trial. Where nothing was left out the
        interval has no width.

        >>> print(Factor(0.02, 0.001**2, inf, 1000).estimate())
        0.0200 [0.0181, 0.0221]
        """
        if self.known == 0:
            return Estimate(nan, 0.0, 1.0, 0, "two-stage-score", level)
        if self.variance == 0 and self.freedom == inf:
            whole = Estimate(self.value, self.value, self.value, self.trials, "complete", level)
            return _with_missing(whole, self.known)
        trials = float(self.trials)
        if self.freedom < 1 or not isfinite(self.variance):
            trials = 1.0
        elif self.variance > 0:
            narrower = quantile(level) / -float(stdtrit(self.freedom, (1 - level) / 2)) if isfinite(self.freedom) else 1
            trials = self.value * (1 - self.value) / self.variance * narrower**2
        low, high = (float(bound) for bound in wilson(self.value * trials, trials, level=level))
        found = Estimate(self.value, min(low, self.value), max(high, self.value), self.trials, "two-stage-score", level)
        return _with_missing(found, self.known)


def _with_missing(estimate: Estimate, known: float) -> Estimate:
    if known >= 1:
        return estimate
    low, high = estimate.low * known, estimate.high * known + 1 - known
    return replace(estimate, low=min(low, estimate.value), high=max(high, estimate.value))


def weighted_factor(factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
    """Return the mean of *factors* by *weights*, which need not sum to 1; degrees of freedom after Satterthwaite.

    Those of which nothing is known count as missing.

    >>> weighted_factor([Factor(0.01, 0.0, inf, 10), Factor(0.04, 0.0, inf, 30)], [1, 2])
    Factor(value=0.03, variance=0.0, freedom=inf, trials=40, known=1.0)
    """
    seen = [(factor, weight) for factor, weight in zip(factors, weights, strict=True) if factor.known > 0]
    if not seen:
        return Factor(nan, inf, 0.0, 0, 0.0)
    known = sum(factor.known * weight for factor, weight in seen) / sum(weights)
    held = [factor for factor, _ in seen]
    share = np.array([weight for _, weight in seen], dtype=np.float64)
    share /= share.sum()
    value = float(share @ [factor.value for factor in held])
    parts = share**2 * np.array([factor.variance for factor in held])
    variance, trials = float(parts.sum()), sum(factor.trials for factor in held)
    freedom = np.array([factor.freedom for factor in held])
    if not isfinite(variance):
        return Factor(value, inf, 0.0, trials, known)
    if variance == 0:
        return Factor(value, 0.0, float(freedom.min()), trials, known)
    some = parts > 0
    return Factor(value, variance, float(variance**2 / (parts[some] ** 2 / freedom[some]).sum()), trials, known)


@dataclass(frozen=True, eq=False)
class SiteFactors:
    """The factors of the *channels* drawn of one *site*, and how many *words* of each were drawn on every input."""

    site: Site
    channels: Ints
    words: int
    factors: tuple[Factor, ...]

    @property
    def whole(self) -> Factor:
        """The factor of the site: the mean over its channels, of which some may have been left out."""
        if not self.factors:
            return Factor(nan, inf, 0.0, 0, 0.0)
        values = np.array([factor.value for factor in self.factors])
        within = float(np.mean([factor.variance for factor in self.factors]))
        share, trials = len(values) / self.site.channels, sum(factor.trials for factor in self.factors)
        known, mean = float(np.mean([factor.known for factor in self.factors])), float(values.mean())
        if share == 1:
            freedom = self.factors[0].freedom * len(values)
            return Factor(mean, within / len(values), freedom, trials, known)
        if len(values) < 2:
            return Factor(mean, inf, 0.0, trials, known)
        between = float(values.var(ddof=1))
        variance = ((1 - share) * between + share * within) / len(values)
        return Factor(mean, variance, len(values) - 1.0, trials, known)


def site_factors(
    space: FaultSpace, design: Design, columns: Columns, axis: Axis, *, flag: str = "failed", repeats: int = 1
) -> dict[tuple[int, int], SiteFactors]:
    """Return the factors of each site and group of *axis* that its bits fall into, by their numbers.

    *flag* names the outcome; each draw has run on *repeats* inputs, one after the other. Groups of an axis that are
    smaller than cells are not told apart.
    """
    found = dict[tuple[int, int], SiteFactors]()
    if not len(columns):
        return found
    flags, layouts = masks_of(columns, flag), dict[int, _Layout]()
    total, weight = (design.total or 0) * repeats, columns.weight
    mass = dict(zip(design.strata.group.tolist(), design.strata.mass.tolist(), strict=True))
    for part in flips_by_group(space, columns, space.axis("model") if axis.of_cell is None else axis):
        site, rows = space.sites[part.site], part.rows
        if part.site not in layouts:
            channel = site.channel_of(space.locate(columns.faults[rows]).element)
            expected = round(mass[part.site] / weight[rows[0]] * total)
            known = min(len(rows) / expected, 1.0) if expected else 1.0
            layouts[part.site] = _Layout(site, channel, columns.inputs[rows], repeats, known)
        found[part.site, int(part.code[0])] = layouts[part.site].factors(part.count(flags) / part.bits)
    return found


class _Layout:
    """Where the words of a *site* stand: in which *channel* and on which *image* each is, in the order of draws.

    Each word has run on *repeats* inputs, one after the other; *known* is the share of them that have run.
    """

    def __init__(self, site: Site, channel: Ints, image: Ints, repeats: int, known: float) -> None:
        self.site, self.known = site, known
        self.channels, code = np.unique(channel, return_inverse=True)
        code, image = code.reshape(-1), np.unique(image, return_inverse=True)[1].reshape(-1)
        self.draw = None
        if repeats > 1:  # the same word on all inputs is one draw
            self.draw = np.arange(len(code)) // repeats
            code, image = code[::repeats], np.zeros(self.draw[-1] + 1, dtype=np.int64)
        self.shape = len(self.channels), int(image.max(initial=0)) + 1
        self.key = code * self.shape[1] + image
        self.order = np.argsort(self.key, kind="stable")
        self.alike = np.diff(self.key[self.order]) == 0
        self.count = self._sums(self.key, np.ones(len(self.key)))
        self.trials = np.bincount(code, minlength=len(self.channels)) * repeats

    def _sums(self, key: Ints, values: Floats) -> Floats:
        """Return the sum of *values* by channel and image."""
        sums = np.bincount(key, values, self.shape[0] * self.shape[1])
        return sums.astype(np.float64).reshape(self.shape)

    def factors(self, share: Floats) -> SiteFactors:
        """Return the factors of the channels: *share* is the failing share of each word on its image."""
        if self.draw is not None:
            share = np.bincount(self.draw, share) / np.bincount(self.draw)
        half = np.diff(share[self.order]) ** 2 / 2
        total, square = (
            self._sums(self.key, share),
            self._sums(self.key[self.order][1:][self.alike], half[self.alike]),
        )
        words = int(self.count.max())
        values = total.sum(axis=1) / self.count.sum(axis=1)
        variance, freedom = _within(words, self.site.elements // self.site.channels, total, square)
        rows = zip(values.tolist(), variance.tolist(), self.trials.tolist(), strict=True)
        found = tuple(Factor(value, spread, freedom, n, self.known) for value, spread, n in rows)
        return SiteFactors(self.site, self.channels, words, found)


def _within(words: int, of: int, total: Floats, square: Floats) -> tuple[Floats, float]:
    """Return the variance of each channel's factor from words left out, and its degrees of freedom.

    It is from differences between neighbours in the order by which words were drawn (Wolter, Introduction to Variance
    Estimation, 2nd ed. 2007, section 8.2).
    """
    channels, images = total.shape
    if words >= of:
        return np.zeros(channels), inf
    left = _left(words, of)
    if words == 1:  # one word on each image: images count as drawn too, which errs on the wide side
        if images < 2:
            return np.full(channels, inf), 0.0
        return left * total.var(axis=1, ddof=1) / images, images - 1.0
    spread = square / (words - 1)
    return left * spread.sum(axis=1) / words / images**2, float(images * (words - 1))


def _left(words: int, of: int) -> float:
    """Return the variance of a word drawn from its run, over half the mean squared difference between neighbours.

    It is for values in no order, and errs on the wide side where they are in one. Where runs are whole numbers long it
    is the share of the words left out; else a word at the border of two runs may be drawn twice.

    >>> _left(3, 12), round(_left(4, 5), 3)
    (0.75, 0.462)
    """
    length, cut = of / words, np.arange(words + 1) * of % words / words
    begin, end = np.where(cut[:-1] > 0, 1 - cut[:-1], 0.0), cut[1:]
    alike = (begin**2 + end**2 + (length - begin - end)) / length**2  # two draws from one run are the same word
    twice = end[:-1] * begin[1:] / length**2
    return float((1 - alike.mean()) / (1 - (twice.mean() if len(twice) else 0.0)))


def factor_estimates(
    space: FaultSpace, design: Design, columns: Columns, axis: Axis, *, flag: str, repeats: int, level: float
) -> list[Estimate]:
    """Return the estimate of every group of *axis*, whose groups are channels where they are smaller than cells."""
    found = site_factors(space, design, columns, axis, flag=flag, repeats=repeats)
    nothing = Factor(nan, inf, 0.0, 0, 0.0)
    if axis.of_cell is None:
        estimates = [nothing.estimate(level)] * len(axis)
        before = np.cumsum([site.channels for site in space.sites]) - [site.channels for site in space.sites]
        for (site, _), mine in found.items():
            for channel, factor in zip(mine.channels.tolist(), mine.factors, strict=True):
                estimates[before[site] + channel] = factor.estimate(level)
        return estimates
    faults, cells = np.zeros((len(space.sites), len(axis)), dtype=np.int64), space.cells
    np.add.at(faults, (cells.group, axis.of_cell), cells.sizes)
    estimates = []
    for group in range(len(axis)):
        sites = np.flatnonzero(faults[:, group]).tolist()
        parts = [found[site, group].whole if (site, group) in found else nothing for site in sites]
        estimates.append(weighted_factor(parts, faults[sites, group].tolist()).estimate(level))
    return estimates
