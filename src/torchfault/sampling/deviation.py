"""Sampling by deviation: strata of how far a flip moves its word, and draws where the outcomes so far ask for them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError
from torchfault.sampling.classes import Words, classify
from torchfault.sampling.draws import Draws, History
from torchfault.space import FaultSpace
from torchfault.statistics.allocation import Price, needed_draws
from torchfault.statistics.intervals import check_level
from torchfault.statistics.sequences import Sequence, confidence_sequence

__all__ = ["BEYOND", "LABELS", "Deviation", "Rounds", "price_in", "rounds", "thoughts"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LABELS = 16  # strata of one site: a stratum's number is LABELS times its site's and its label, from 0 up to this; where
# only the model's width is asked for, sites of one kind share their strata
BEYOND = 3  # labels of flips beyond the last edge: upwards, downwards, to NaN
_PRIOR_TRIALS = 2.0  # what is thought of a stratum before it is drawn from counts as so many draws
_QUIETEST, _LIVELY, _LOUD = 1e-4, 0.02, 0.5  # failing shares thought of: least and most deviation, beyond the last edge
_SURE, _UNSURE = 0.2, 10.0  # how many times as often faults are thought to fail on inputs of much and least margin
_ALONE = 0.1  # faults of a larger failing share are not pooled
_AHEAD = 0.1  # at least this share of the draws that a stratum needs is drawn again while its group is unfinished


@dataclass(frozen=True, eq=False)
class Rounds:
    """Counts of *failures* and *trials*, shape (rounds, strata); of each stratum the *site*, its *shares* of the site's
    faults, and the failure probability *thought* of it; and the *price* that trials were allocated by."""

    failures: Floats
    trials: Floats
    site: Ints
    shares: Floats
    thought: Floats
    price: Price | None = None

    def sequence(self, site: int | None, sites: Floats, *, target: float, level: float) -> Sequence:
        """Return the confidence sequence of one site, or of all, which have the shares *sites* of the whole."""
        here = np.ones(len(self.site), dtype=bool) if site is None else self.site == site
        shares = self.shares[here] * (sites[self.site[here]] if site is None else 1.0)
        k, n = self.failures[:, here], self.trials[:, here]
        drawn = n.sum(axis=1) > 0  # sites that are narrow enough are left out of later rounds
        return confidence_sequence(
            k[drawn], n[drawn], shares, target=target, level=level, prior=self.thought[here], price=self.price
        )


def thoughts(edges: int, groups: int = 1) -> Floats:
    """Return what is thought of strata by their label before anything is drawn, by *edges* and *groups* of inputs.

    >>> thoughts(3, groups=2)[:7].round(4).tolist()
    [0.0, 0.0003, 0.004, 0.001, 0.0141, 0.2, 0.5]
    """
    times = np.geomspace(_SURE, _UNSURE, groups) if groups > 1 else np.ones(1)
    lively = (times[:, None] * np.geomspace(_QUIETEST, _LIVELY, edges)).ravel()
    return np.concatenate((lively, np.full(LABELS - len(lively), _LOUD)))


def price_in(pool: int) -> Price | None:
    """Return what a draw costs in lanes, struck in pools of at most *pool*; ``None`` where each has its own lane.

    A pooled draw costs the entropy of its outcome and a fifth.

    >>> price_in(64)(np.array([1e-6, 0.01, 0.5])).round(3)
    array([0.016, 0.097, 1.   ])
    """
    return partial(_price, pool=pool) if pool else None


def _price(p: Floats, *, pool: int) -> Floats:
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return np.where(p > _ALONE, 1.0, np.clip(1.2 * entropy, 1 / pool, 1.0))


def rounds(
    stratum: Ints,
    failed: NDArray[np.bool_],
    *,
    block: int,
    site: Ints,
    shares: Floats,
    thought: Floats,
    price: Price | None = None,
) -> Rounds:
    """Count complete blocks of trials, each in a *stratum*, *failed* or not; *thought* goes by label."""
    whole, strata = len(stratum) // block, len(site)
    cell = np.arange(whole * block) // block * strata + stratum[: whole * block]
    n = np.bincount(cell, minlength=whole * strata).astype(np.float64)
    k = np.bincount(cell[failed[: whole * block]], minlength=whole * strata).astype(np.float64)
    own = thought[np.arange(strata) % LABELS]
    return Rounds(k.reshape(whole, strata), n.reshape(whole, strata), site, shares, own, price)


@dataclass(frozen=True, eq=False)
class Deviation:
    """Draw from strata of how far a flip moves its word, until the interval of every *site*, or the *model*, is narrow.

    *words* are the golden words of all sites (:func:`torchfault.model.golden_words.golden_words`). They tell, without a
    single trial, how far each flip would move its word: faults below ``edges[0]`` times the root mean square of the
    site's values hardly ever fail, and those beyond the last edge nearly always or, downwards, nearly never. Within
    such strata little is left to chance, which is why few draws suffice; nothing is assumed: a stratum in which the
    words mislead costs draws, not truth. *site* and *model* are half-widths at *level*; their intervals hold at every
    look (:func:`torchfault.statistics.confidence_sequence`). *reserve* is what draws are planned to leave of each
    half-width to what shortcuts add to it; the stop goes by what they do add. Each block of *block* draws goes where
    they are needed still (:func:`torchfault.statistics.needed_draws`). With *pool* draws are priced as
    struck in pools of so many (:class:`torchfault.campaign.Shortcuts`); what is left of a block goes to the cheapest.
    *margins*, the golden lead of the best class on each input, shape (inputs,)
    (:func:`torchfault.sensitivity.margins`), part the inputs: small flips fail on the *unsure* ones, the share of least
    margin, which get strata of their own. With a width for the *model* alone, sites of a kind share their strata.

    An activation is drawn with the input that its word belongs to, a parameter with a random one. Weights are p / q
    within the block. Raises :class:`SamplingError` without a half-width, for edges that do not rise, and words that do
    not fit.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (1000,)),))
    >>> values = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    >>> sampler = Deviation({"a": values.view(np.uint32)}, site=0.01)
    >>> sampler.strata(space).shares[:8].round(3)
    array([0.708, 0.243, 0.014, 0.012, 0.014, 0.009, 0.   , 0.   ])
    """

    words: Mapping[str, Words]
    site: float | None = None
    model: float | None = None
    level: float = 0.95
    reserve: float = 0.0
    block: int = 8192
    edges: tuple[float, ...] = (0.125, 2.0, 64.0)
    pool: int = 0
    margins: Floats | None = None
    unsure: tuple[float, ...] = (0.03,)
    _cut: dict[str, "_Strata"] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_level(self.level)
        given = [h for h in (self.site, self.model) if h is not None]
        if not given or not all(self.reserve < h < 0.5 for h in given) or self.reserve < 0:
            raise SamplingError(
                f"Deviation stops by half-widths of site or model between its reserve and 0.5, got {given or 'none'} "
                f"with a reserve of {self.reserve}; one percentage point is 0.01"
            )
        most = LABELS - BEYOND
        if not 0 < len(self.edges) <= most or sorted(set(self.edges)) != list(self.edges) or self.edges[0] <= 0:
            raise SamplingError(f"edges are 1 to {most} numbers above 0 that rise, got {self.edges}")
        if sorted({0.0, *self.unsure, 1.0}) != [0.0, *self.unsure, 1.0] or len(self.edges) * self.groups > most:
            raise SamplingError(
                f"unsure are shares of the inputs between 0 and 1 that rise, few enough for {LABELS} strata of a site, "
                f"got {self.unsure}; (0.03,) keeps the 3 % of least margin apart"
            )
        if self.block < 2 or self.pool < 0:
            raise SamplingError(f"a block has two draws or more, a pool none or more, got {self.block}, {self.pool}")

    @property
    def groups(self) -> int:
        """The number of groups that inputs are parted in by their margin."""
        return 1 if self.margins is None else len(self.unsure) + 1

    @property
    def targets(self) -> dict[str, float]:
        """The half-widths that intervals have to reach, less the reserve, by what they are of."""
        given = {"site": self.site, "model": self.model}
        return {name: h - self.reserve for name, h in given.items() if h is not None}

    def apart(self, stratum: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which trials to keep out of pools, by their *stratum*: errors so large that they may hide others,
        and all but the smallest on inputs that tip over at a touch."""
        label, edges = stratum % LABELS, len(self.edges)
        return np.asarray((label >= edges * self.groups) | ((label >= edges) & (label % edges > 0)))

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws never run out; outcomes decide when it is enough."""
        del space
        return None

    def strata(self, space: FaultSpace) -> "_Strata":
        """Return how *space* is cut: made once for each space."""
        key = space.digest()
        if key not in self._cut:
            self._cut.clear()
            self._cut[key] = _Strata(space, self)
        return self._cut[key]

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return *n* trials of a first block, planned without outcomes."""
        return self.replan(space, _nothing()).draw(space, n, rng=rng, start=start)

    def replan(self, space: FaultSpace, history: History) -> "_Planned":
        """Return the sampler of the block that follows *history*."""
        strata = self.strata(space)
        counts = self._counts(strata, history)
        return _Planned(self, self._allocation(strata, self._unfinished(strata, counts, history), counts))

    def finished(self, space: FaultSpace, history: History) -> str | None:
        """Return why it is enough, or ``None`` while an interval asked for is too wide."""
        strata = self.strata(space)
        if len(history) < self.block or self._open(strata, history):
            return None
        reached = ", ".join(f"{name} ±{h + self.reserve:g}" for name, h in self.targets.items())
        return f"every interval is narrow enough: {reached} ({100 * self.level:g} %, at any time)"

    def _open(self, strata: "_Strata", history: History) -> bool:
        return any(groups.any() for groups in self._unfinished(strata, self._counts(strata, history), history).values())

    def _counts(self, strata: "_Strata", history: History) -> Rounds:
        stratum = history.stratum.astype(np.int64)
        shares, price, thought = strata.shares_of_site, price_in(self.pool), thoughts(len(self.edges), self.groups)
        site, block = strata.site, self.block
        return rounds(stratum, history.failed, block=block, site=site, shares=shares, thought=thought, price=price)

    def _unfinished(self, strata: "_Strata", counts: Rounds, history: History) -> dict[str, NDArray[np.bool_]]:
        """Return which sites, and whether the whole (one entry), have too wide an interval, shortcuts included, or a
        value that has not all its weight yet, and would be biased by a stop (:attr:`Sequence.settled`)."""
        found, sites = {}, strata.sites
        for name, target in self.targets.items():
            groups: list[int | None] = [None] if name == "model" else np.unique(strata.site).tolist()
            open_ = np.zeros(len(sites) if name == "site" else 1, dtype=bool)
            most = np.full(len(open_), 2 * target)
            if history.widening is not None:
                most = 2 * (target + self.reserve) - history.widening(name, self.level)
            for group in groups:
                ends = counts.sequence(group, sites, target=target, level=self.level)
                open_[group or 0] = not ends.enough(most[group or 0])
            found[name] = open_
        return found

    def _allocation(self, strata: "_Strata", unfinished: dict[str, NDArray[np.bool_]], counts: Rounds) -> Ints:
        """Return how many draws of the next block each stratum gets."""
        drawn, failed = counts.trials.sum(axis=0), counts.failures.sum(axis=0)
        p = (failed + _PRIOR_TRIALS * strata.thought) / (drawn + _PRIOR_TRIALS)
        needed = np.zeros(len(p))
        for name, open_ in unfinished.items():
            for group in np.flatnonzero(open_):
                here = strata.shares > 0 if name == "model" else (strata.site == group) & (strata.shares_of_site > 0)
                share = (strata.shares if name == "model" else strata.shares_of_site)[here]
                target = self.targets[name]
                wanted = needed_draws(share, p[here], target=target, level=self.level, price=counts.price)
                needed[here] = np.maximum(needed[here], wanted)
        if not needed.any():
            needed = strata.shares.copy()
        price = None if counts.price is None else counts.price(p)
        return _rounded(np.maximum(needed - drawn, _AHEAD * needed), self.block, price, needed > 0)


def _rounded(wanted: Floats, block: int, price: Floats | None, open_: NDArray[np.bool_]) -> Ints:
    """Return whole numbers of draws that sum to *block*, one at least for each open stratum."""
    if 2 * open_.sum() > block:
        raise SamplingError(f"a block of {block} is too small for {open_.sum()} strata; use {4 * open_.sum()} or more")
    spare = block - int(open_.sum())
    if wanted.sum() < spare and price is not None:  # what is left over goes where draws are cheapest
        cheapest = open_ & (price <= price[open_].min())
        wanted = wanted + cheapest * (spare - wanted.sum()) / cheapest.sum()
    reached = np.floor(np.cumsum(wanted) / wanted.sum() * spare + 1e-6).astype(np.int64)
    reached[-1] = spare
    return np.asarray(open_.astype(np.int64) + np.diff(reached, prepend=0))


def _nothing() -> History:
    return History(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_))


class _Strata:
    """How a space is cut: *site* and *label* of each stratum, numbered site by site.

    Where no site has a half-width of its own, *site* counts kinds of sites instead: all parameters of one word format
    share their strata, and all activations do, which leaves fewer strata to draw from in every block.
    """

    def __init__(self, space: FaultSpace, sampler: Deviation) -> None:
        known = {name: np.asarray(words) for name, words in sampler.words.items()}
        if missing := [name for name in space.names if name not in known]:
            raise SamplingError(f"Deviation needs the words of '{missing[0]}', got none; make them by golden_words")
        inputs = _by_margin(sampler, max(len(known[name]) for name in space.names))
        self.inputs = sum(len(some) for some in inputs)
        self.parts = [classify(site, known[site.name], sampler.edges, inputs) for site in space.sites]
        alike = list(range(len(self.parts)))
        if sampler.site is None:
            kinds = [(site.is_activation, site.word) for site in space.sites]
            alike = [kinds.index(kind) for kind in kinds]
        first, of = np.unique(alike, return_inverse=True)
        self.members = [np.flatnonzero(of == group) for group in range(len(first))]
        self.site = np.repeat(np.arange(len(first)), LABELS)
        self.label = np.tile(np.arange(LABELS), len(first))
        self.sites = np.bincount(of, space.sizes) / len(space)
        self.thought = thoughts(len(sampler.edges), sampler.groups)[self.label]
        held = [np.bincount(np.arange(len(part.sizes)), part.sizes, LABELS) / part.sizes.sum() for part in self.parts]
        self.of_site = np.stack(held) * (space.sizes / len(space))[:, None]
        self.shares_of_site = np.concatenate(
            [self.of_site[some].sum(axis=0) / size for some, size in zip(self.members, self.sites, strict=True)]
        )

    def draw(self, stratum: int, n: int, *, rng: np.random.Generator) -> Iterator[tuple[int, Ints, Ints, Ints]]:
        """Yield the site, elements, bits and inputs of *n* faults of *stratum*, each of them equally likely."""
        members, label = self.members[stratum // LABELS], stratum % LABELS
        counts = np.array([n])
        if len(members) > 1:
            share = self.of_site[members, label]
            counts = rng.multinomial(n, share / share.sum())
        for site, count in zip(members.tolist(), counts.tolist(), strict=True):
            if count:
                yield site, *self.parts[site].draw(label, count, rng=rng)

    @cached_property
    def shares(self) -> Floats:
        """The share of each stratum in the space."""
        return np.asarray(self.shares_of_site * self.sites[self.site])


def _by_margin(sampler: Deviation, inputs: int) -> tuple[Ints, ...]:
    """Return the inputs parted by their margin: those of least margin last."""
    if sampler.margins is None:
        return (np.arange(inputs),)
    margins = np.asarray(sampler.margins, dtype=np.float64)
    if inputs == 1 < len(margins):  # parameters alone: their words do not tell how many inputs there are
        inputs = len(margins)
    if margins.shape != (inputs,):
        raise SamplingError(f"margins have shape ({inputs},), one for each input, got {margins.shape}")
    order = np.argsort(-np.nan_to_num(margins, nan=-np.inf), kind="stable")
    return tuple(np.split(order, [inputs - int(np.ceil(share * inputs)) for share in reversed(sampler.unsure)]))


@dataclass(frozen=True, eq=False)
class _Planned:
    """One block of :class:`Deviation`: so many *draws* from each stratum, in random order."""

    sampler: Deviation
    draws: Ints

    @property
    def block(self) -> int:
        """The number of trials."""
        return self.sampler.block

    def total(self, space: FaultSpace) -> int | None:
        """Return ``None``: draws never run out."""
        del space
        return None

    def draw(self, space: FaultSpace, n: int, *, rng: np.random.Generator, start: int = 0) -> Draws:
        """Return the first *n* trials of the block; *start* does not matter, since blocks are independent."""
        del start
        if n > self.draws.sum():
            raise SamplingError(f"a block has {self.draws.sum()} trials, got {n}; draw block after block")
        strata = self.sampler.strata(space)
        index, given = [], []
        for one in np.flatnonzero(self.draws).tolist():
            for site, element, bit, row in strata.draw(one, int(self.draws[one]), rng=rng):
                index.append(space.number(np.full(len(element), site), element, bit))
                given.append(row)
        order = rng.permutation(int(self.draws.sum()))
        stratum = np.repeat(np.arange(len(self.draws)), self.draws)[order]
        weight = (strata.shares * (self.draws.sum() / np.maximum(self.draws, 1)))[stratum]
        inputs = np.concatenate(given)[order] if strata.inputs > 1 else None
        drawn = Draws(np.concatenate(index)[order], weight, stratum.astype(np.int32), None, inputs)
        return drawn.take(0, n)
