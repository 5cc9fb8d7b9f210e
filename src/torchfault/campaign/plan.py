"""A campaign as a value, and its n-th trial: a function of the campaign, its seed and n, of nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.shortcuts import Shortcuts
from torchfault.errors import CampaignError, SamplingError
from torchfault.sampling import (
    AdaptiveSampler,
    Draws,
    History,
    Importance,
    Learned,
    Sampler,
    Statistical,
    Uniform,
    stream,
)
from torchfault.space import FaultSpace
from torchfault.statistics import AllOf, AnyOf, HalfWidth, Progress
from torchfault.store import Columns

if TYPE_CHECKING:
    from torchfault.criteria import Criterion, Metric
    from torchfault.data import Data, Tree
    from torchfault.engine.executor import Lanes
    from torchfault.faults import FaultModel
    from torchfault.trials import Trials

__all__ = ["Campaign", "Machine", "Plan", "StopRule", "check", "population", "prepare", "reach", "rules", "total"]

StopRule = Callable[[Progress], str | None]

# No batch strikes more faults than this: their numbers, places and masks take about 50 bytes each.
_MOST_FAULTS = 1 << 20
_FAULTS, _MASKS, _INPUTS = 0, 1, 2  # the purposes of the random streams; changing one changes every campaign


class Machine(Protocol):
    """What a campaign needs of an engine; :class:`torchfault.engine.Engine` is one."""

    @property
    def executor(self) -> str:
        """The name of the executor, kept with the results."""
        ...

    @property
    def space(self) -> FaultSpace:
        """Every site that can be struck."""
        ...

    @property
    def data(self) -> "Data":
        """The inputs and labels."""
        ...

    def golden(self) -> "Tree":
        """Return the outputs without faults."""
        ...

    def run(self, trials: "Trials") -> "Iterator[Lanes]":
        """Yield the outcome of every trial exactly once, in any order."""
        ...

    def digest(self) -> str:
        """Return a SHA-256 of the model."""
        ...


def _bit_flip() -> "FaultModel":
    from torchfault.faults import BitFlip

    return BitFlip()


def _top1_change() -> "Criterion":
    from torchfault.criteria import Top1Change

    return Top1Change()


@dataclass(frozen=True, eq=False)
class Campaign:
    """Which faults strike which model on which data, what counts as a failure, and when it is enough.

    *engine* holds the model and the data; *space* is the part of ``engine.space`` to strike. A trial is what *sampler*
    draws, changed by *fault*, on one input: a random one, or each in turn where the sampler enumerates the whole space
    (trial n is then fault ``n // inputs`` on input ``n % inputs``). It fails where *criterion* says so, or by a NaN or
    infinity that golden does not have. With a *metric* every trial runs on the whole data set instead, and its value is
    the drop of the metric below golden; it then counts as failed where the metric changed at all.

    *shortcuts* (:class:`Shortcuts`) find the outcomes of single-bit flips with fewer lanes than trials, under an
    assumption that is audited; they need a block's trials all together, so a batch is then as large as a block.

    *stop* is a rule of :mod:`torchfault.statistics` (:class:`MaxTrials`, :class:`HalfWidth`, :class:`TimeBudget`,
    combined with ``&`` and ``|``); ``None`` runs a sampler with an end to that end. The n-th trial depends on *seed*
    and n alone, so a campaign may be stopped, resumed and extended without changing what it finds; only the moment at
    which a :class:`TimeBudget` ends is not reproducible.

    >>> from torchfault.campaign import run
    >>> from torchfault.engine import Engine
    >>> from torchfault.data import Data
    >>> from torchfault.statistics import MaxTrials
    >>> import torch
    >>> model = torch.nn.Linear(4, 3).eval()
    >>> engine = Engine(model, Data(torch.ones(2, 4)), executor="hooks")
    >>> results = run(Campaign(engine, engine.space.select("weight"), stop=MaxTrials(100)))
    >>> results.estimate().trials
    100
    """

    engine: Machine
    space: FaultSpace
    _: KW_ONLY
    sampler: Sampler = field(default_factory=Uniform)
    shortcuts: Shortcuts | None = None
    fault: "FaultModel" = field(default_factory=_bit_flip)
    criterion: "Criterion" = field(default_factory=_top1_change)
    metric: "Metric | None" = None
    seed: int = 0
    stop: StopRule | None = None

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return len(self.engine.data)


@dataclass(frozen=True, eq=False)
class Plan:
    """Trials that are ready to run: *columns*, whose outcomes are still unset, and *trials*, what the engine takes."""

    columns: Columns
    trials: "Trials"


def population(campaign: Campaign) -> int | None:
    """Return how many trials enumerate everything, ``None`` where the sampler samples instead."""
    return len(campaign.space) * _crossing(campaign) if _enumerates(campaign) else None


def reach(campaign: Campaign) -> float:
    """Return the share of the faults that the sampler can draw: 1 unless it is :class:`Importance` without a floor."""
    sampler = campaign.sampler
    return sampler.support(campaign.space) if isinstance(sampler, Importance) else 1.0


def total(campaign: Campaign) -> int | None:
    """Return the number of trials after which the sampler is done, ``None`` for no end."""
    return population(campaign) or campaign.sampler.total(campaign.space)


def _crossing(campaign: Campaign) -> int:
    """Return the trials that each draw becomes: one per input where everything is enumerated, else one."""
    return campaign.inputs if _enumerates(campaign) and campaign.metric is None else 1


def _enumerates(campaign: Campaign) -> bool:
    """Return whether the sampler takes every fault in order; an adaptive one chooses, even where it ends with all."""
    sampler = campaign.sampler
    return not isinstance(sampler, AdaptiveSampler) and sampler.total(campaign.space) == len(campaign.space)


def prepare(campaign: Campaign, first: int, last: int, *, history: History | None = None) -> Plan:
    """Return trials *first* to *last*, exclusive, or fewer, where these strike more faults than fit into memory.

    For an adaptive sampler *history* holds the outcomes of all trials before *first*, and *last* is in its block.

    Blocks of a sampler are always drawn whole, since they are what a random stream decides; how many trials are asked
    for at a time changes none of them.
    """
    size = campaign.sampler.block * _crossing(campaign)
    parts: list[Plan] = []
    faults = 0
    for number in range(first // size, (last - 1) // size + 1):
        begin, end = max(first - number * size, 0), min(last - number * size, size)
        parts.append(_part(campaign, number, begin, end, history))
        faults += len(parts[-1].columns.faults)
        if faults >= _MOST_FAULTS:
            break
    return Plan(Columns.join([part.columns for part in parts]), _join([part.trials for part in parts]))


@dataclass(frozen=True, eq=False)
class _Block:
    """All trials of one block of a sampler, as they are drawn: together."""

    number: int
    draws: Draws
    struck: "Trials"
    inputs: NDArray[np.int64]


_LATEST: "WeakKeyDictionary[Campaign, _Block]" = WeakKeyDictionary()
"""The block that each campaign drew last: a sample without replacement is one large block for many batches."""


def _block(campaign: Campaign, number: int, history: History | None) -> _Block:
    """Return block *number*, drawn anew unless it was the latest."""
    from torchfault.trials import strike

    latest = _LATEST.get(campaign)
    if latest is not None and latest.number == number:
        return latest
    sampler, space, seed = campaign.sampler, campaign.space, campaign.seed
    start, end = number * sampler.block, sampler.total(space)
    n = sampler.block if end is None else min(sampler.block, end - start)
    if isinstance(sampler, AdaptiveSampler) and number:
        assert history is not None
        sampler = sampler.replan(space, history.take(start))
    draws = sampler.draw(space, n, rng=stream(seed, _FAULTS, number), start=start)
    if len(draws) != n:
        raise SamplingError(f"{type(sampler).__name__} was asked for {n} trials, got {len(draws)}; mend the sampler")
    where = space.locate(draws.index)
    struck = strike(space, where, model=campaign.fault, rng=stream(seed, _MASKS, number), counts=draws.counts)
    inputs = draws.inputs
    if inputs is None:
        inputs = stream(seed, _INPUTS, number).integers(campaign.inputs, size=n, dtype=np.int64)
    _LATEST[campaign] = block = _Block(number, draws, struck, inputs)
    return block


def forget(campaign: Campaign) -> None:
    """Forget the block that *campaign* drew last: other outcomes may lead to another one."""
    _LATEST.pop(campaign, None)


def _part(campaign: Campaign, number: int, first: int, last: int, history: History | None) -> Plan:
    """Return trials *first* to *last* of those that block *number* becomes."""
    block = _block(campaign, number, history)
    draws, struck = block.draws, block.struck
    position = np.arange(first, last, dtype=np.int64)
    crossing = _crossing(campaign)
    order, inputs = position // crossing, position % crossing
    if campaign.metric is not None:
        inputs = np.full(last - first, -1, dtype=np.int64)
    elif crossing == 1:
        inputs = block.inputs[first:last]
    faults, counts = _pick(draws.index, draws.counts, order)
    unset = np.zeros(last - first, dtype=np.bool_)
    columns = Columns(
        faults,
        inputs,
        unset,
        unset,
        weights=None if (draws.weight == 1).all() else draws.weight[order],
        strata=None if (draws.stratum == 0).all() else draws.stratum[order],
        counts=counts,
    )
    return Plan(columns, replace(struck.take(order), inputs=np.maximum(inputs, 0)))


def _pick(
    index: NDArray[np.int64], counts: NDArray[np.int64] | None, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the fault numbers, and their counts, of the draws at positions *order*."""
    if counts is None:
        return index[order], None
    begins = np.cumsum(counts) - counts
    chosen = counts[order]
    within = np.arange(chosen.sum()) - np.repeat(np.cumsum(chosen) - chosen, chosen)
    return index[np.repeat(begins[order], chosen) + within], chosen


def _join(parts: "list[Trials]") -> "Trials":
    from torchfault.trials import Trials

    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(part.offsets[-1] for part in parts[:-1])])
    offsets = [part.offsets[1:] + base for part, base in zip(parts, before, strict=True)]
    names = ("inputs", "site", "element", "keep", "toggle")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Trials(sites=parts[0].sites, offsets=np.concatenate(([0], *offsets)), **columns)


def check(campaign: Campaign) -> None:
    """Raise where the campaign cannot run as it is: another model's sites, no end, a rule that means nothing here."""
    for site in campaign.space.sites:
        own = campaign.engine.space.site(site.name)
        if not site.part_of(own):
            raise CampaignError(
                f"the space holds '{site.name}' as {site.word} {site.shape}, the model as {own.word} {own.shape}; "
                "take the space from engine.space.select(...)"
            )
    if campaign.shortcuts is not None:
        _check_shortcuts(campaign, campaign.shortcuts)
    adaptive = isinstance(campaign.sampler, AdaptiveSampler)
    if adaptive and campaign.metric is not None:
        raise CampaignError("an adaptive sampler learns from failures, not from a metric; leave the metric out")
    ends = adaptive and not isinstance(campaign.sampler, Learned)
    if campaign.stop is None and total(campaign) is None and not ends:
        sampler = type(campaign.sampler).__name__
        raise CampaignError(f"{sampler} never ends by itself, so a campaign needs a rule; give stop=MaxTrials(10_000)")
    if any(isinstance(rule, HalfWidth) for rule in rules(campaign.stop)):
        if campaign.metric is not None:
            raise CampaignError("HalfWidth is about a share of failures, not a metric; use MaxTrials or TimeBudget")
        if population(campaign) is not None:
            raise CampaignError("HalfWidth needs randomly drawn faults, not all in order; use Uniform(), or no rule")
        if adaptive:
            raise CampaignError("HalfWidth counts trials alike; give the half-widths to the adaptive sampler instead")
        if isinstance(campaign.sampler, Statistical) and campaign.sampler.method != "network-wise":
            raise CampaignError(
                f"HalfWidth counts trials alike, and {campaign.sampler.method} injection weighs them; "
                "leave the rule out: the margin sets the number of trials"
            )


def _check_shortcuts(campaign: Campaign, shortcuts: Shortcuts) -> None:
    if campaign.metric is not None:
        raise CampaignError("shortcuts find failures, not a metric; leave one of them out")
    if shortcuts.words is None:
        return
    if campaign.fault != _bit_flip():
        raise CampaignError("monotone closure compares single bit flips; use fault=BitFlip(), or pools alone")
    for site in campaign.space.sites:
        held = shortcuts.words.get(site.name)
        if held is None or held.shape not in ((1, site.elements), (campaign.inputs, site.elements)):
            got = "none" if held is None else f"shape {held.shape}"
            raise CampaignError(f"monotone closure needs the words of '{site.name}', got {got}; use golden_words")


def rules(rule: StopRule | None) -> Iterator[StopRule]:
    """Yield *rule* and all the rules inside it."""
    if rule is not None:
        yield rule
        for inner in rule.rules if isinstance(rule, AnyOf | AllOf) else ():
            yield from rules(inner)
