"""A campaign as a value: which faults strike what, what counts as a failure, and when it is enough."""

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.description import describe, show
from torchfault.cells import Space
from torchfault.criteria import Criterion, Metric, Top1Change, by_top_class
from torchfault.data import Data, Tree
from torchfault.errors import CampaignError
from torchfault.expressions import beside_metric
from torchfault.faults import BitFlip, FaultModel
from torchfault.measures import UNIFORM, Measure
from torchfault.resolve import Direct, Resolver, certifies
from torchfault.sampling import Design, Population, Sampler, Uniform
from torchfault.space import FaultSpace
from torchfault.statistics import HalfWidth, Rule, rules
from torchfault.statistics.intervals import check_level
from torchfault.text import facts_html

if TYPE_CHECKING:
    from torchfault.engine.executor import Lanes
    from torchfault.engine.monitor import Monitor
    from torchfault.trials import Trials

__all__ = [
    "DEFAULT_CRITERION",
    "Campaign",
    "Machine",
    "UpsetModel",
    "check",
    "goals_of",
    "level_of",
    "population_of",
    "repeats_of",
    "sees_every_lane",
]

_LONGEST = 200  # letters of a part in a notebook
_SEEN = ("failed", "due", "crash", "proven", "checked", "disproved")
_FLAGS = (*_SEEN, "vouched", "audited", "refuted", "pooled", "controlled", "hidden")


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
    def data(self) -> Data:
        """The inputs and labels."""
        ...

    @property
    def memory(self) -> int:
        """The memory budget, in bytes."""
        ...

    def golden(self) -> Tree:
        """Return the outputs without faults."""
        ...

    def run(self, trials: "Trials", *, monitor: "Monitor | None" = None) -> "Iterator[Lanes]":
        """Yield the outcome of every trial exactly once, in any order; *monitor*, if given, looks on."""
        ...

    def digest(self) -> str:
        """Return a SHA-256 of the model."""
        ...


@runtime_checkable
class UpsetModel(Protocol):
    """What the upsets of a space of its own do to the words of a model."""

    def strikes(self, space: Space, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of faults *index* become a trial, shape (n,).

        The others change no word; their outcomes are those without faults.
        """
        ...

    def parts(
        self,
        space: Space,
        index: NDArray[np.int64],
        inputs: NDArray[np.int64],
        *,
        words: NDArray[np.uint64],
        engine: Machine,
    ) -> "Iterator[tuple[Trials, NDArray[np.int64]]]":
        """Yield the trials that faults *index* become on *inputs*, shape (n,), and the positions of theirs, in parts.

        *words*, shape (n,), are random words for what is left to chance.
        """
        ...

    def fitting(self, space: Space, index: NDArray[np.int64], *, engine: Machine) -> int:
        """Return how many of the first of faults *index* fit into memory as trials, 1 at least."""
        ...

    def check(self, space: Space, mass: NDArray[np.float64], engine: Machine) -> None:
        """Raise :class:`torchfault.errors.TorchfaultError` unless *space* is one of upsets in the model of *engine*.

        *mass* are the probabilities of its cells, 0 for what has no trial.
        """
        ...


DEFAULT_CRITERION = Top1Change()  # this very value: one that was given is told from it


@dataclass(frozen=True, eq=False)
class Campaign:
    """Which faults strike which model on which data, what counts as a failure, and when it is enough.

    *engine* holds the model and the data; *space* is what is struck: a part of ``engine.space``, or the upsets of an
    accelerator. A trial is what *sampler* draws by *measure* (uniform unless told), changed by *fault*, on an input:
    each draw runs on *inputs_per_fault* random inputs, or on all of them (``None``; always so where the sampler
    enumerates the whole space). It fails where *criterion* says so, or by a NaN or infinity that golden does not have,
    or an exception; further *verdicts*, criteria by name, are recorded beside, those that have ``observes = True`` as
    they are, NaN or not. With a *metric* every trial runs on the
    whole data set instead, and its value is the drop of the metric below golden; it then counts as failed where the
    metric changed at all, and *criterion*, *verdicts* and *inputs_per_fault*, which would have no say, are refused.

    *resolver* says how outcomes become known: by a lane for each trial, or with fewer lanes under an assumption that is
    audited (:mod:`torchfault.resolve`). With a *monitor* every lane is watched on its way, and how far its error came
    is recorded beside its outcome (:func:`torchfault.results.travel`); lanes are dearer then. *facts*, plain JSON, are
    what is known of the model beforehand: they are kept with the results, and decide nothing.

    *stop* is a rule of :mod:`torchfault.statistics` (:class:`MaxTrials`, :class:`HalfWidth`, :class:`TimeBudget`,
    combined with ``&`` and ``|``); ``None`` runs a sampler with an end to that end. The n-th trial depends on *seed*
    and n alone (and, where the sampler adapts, on earlier outcomes), so a campaign may be stopped, resumed and extended
    without changing what it finds; only the moment at which a :class:`TimeBudget` ends is not reproducible. *level* is
    the confidence of intervals, unless half-widths of *stop* say another.

    >>> from torchfault.campaign import run
    >>> from torchfault.engine import Engine
    >>> from torchfault.statistics import MaxTrials
    >>> import torch
    >>> model = torch.nn.Linear(4, 3).eval()
    >>> engine = Engine(model, Data(torch.ones(2, 4)), executor="hooks")
    >>> results = run(Campaign(engine, engine.space.select("weight"), stop=MaxTrials(100)))
    >>> results.estimate().trials
    100
    """

    engine: Machine
    space: Space
    _: KW_ONLY
    sampler: Sampler = field(default_factory=Uniform)
    measure: Measure = UNIFORM
    fault: "FaultModel | UpsetModel" = field(default_factory=BitFlip)
    criterion: Criterion = DEFAULT_CRITERION
    verdicts: Mapping[str, Criterion] = field(default_factory=dict)
    metric: Metric | None = None
    resolver: Resolver = field(default_factory=Direct)
    monitor: bool = False
    inputs_per_fault: int | None = 1
    seed: int = 0
    stop: Rule | None = None
    level: float = 0.95
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return len(self.engine.data)

    def __post_init__(self) -> None:
        for name, kind, example in _EXPECTED:
            value = getattr(self, name)
            if isinstance(value, type) or not isinstance(value, kind):
                raise CampaignError(
                    f"{name} of a campaign is a value such as {example}, got {_shown(value)}; "
                    "names of things stand in configurations"
                )
        functions: dict[str, Any] = {
            "criterion": self.criterion,
            "metric": self.metric,
            "stop": self.stop,
            **self.verdicts,
        }
        for name, value in functions.items():
            if isinstance(value, type) or not (callable(value) or (value is None and name in ("metric", "stop"))):
                example = {"stop": "MaxTrials(1000)", "metric": "accuracy"}.get(name, "Top1Change()")
                raise CampaignError(
                    f"{name} of a campaign is a value such as {example}, got {_shown(value)}; pass that"
                )
        check_level(self.level)
        if self.inputs_per_fault is not None and not 1 <= self.inputs_per_fault <= self.inputs:
            raise CampaignError(
                f"a fault runs on 1 to {self.inputs} inputs, as many as there are, got {self.inputs_per_fault}; "
                "None takes all"
            )
        if self.metric is not None:
            conflict = beside_metric(
                criterion=self.criterion is not DEFAULT_CRITERION,
                verdicts=bool(self.verdicts),
                inputs_per_fault=self.inputs_per_fault not in (1, None),
            )
            if conflict:
                raise CampaignError(conflict)

    def __repr__(self) -> str:
        """Return one line; the parts have their own."""
        what = f"{type(self.sampler).__name__} of {len(self.space):,} faults on {self.inputs} inputs"
        return f"<Campaign: {what}, {self.engine.executor} executor, seed {self.seed}>"

    def _repr_html_(self) -> str:
        """Return the parts as a table, for notebooks."""
        parts = ("sampler", "measure", "fault", "resolver", "stop")
        values = [(name, show(describe(getattr(self, name)))[:_LONGEST]) for name in parts]
        judged = ("metric", self.metric) if self.metric is not None else ("criterion", self.criterion)
        facts = [("faults", f"{len(self.space):,}"), ("inputs", f"{self.inputs:,}"), *values]
        facts += [(judged[0], show(describe(judged[1]))[:_LONGEST]), ("seed", str(self.seed))]
        return facts_html(f"Campaign, {self.engine.executor} executor", facts)


_EXPECTED: tuple[tuple[str, Any, str], ...] = (
    ("space", Space, "engine.space.select('conv1.weight')"),
    ("sampler", Sampler, "Uniform()"),
    ("measure", Measure, "ProductMeasure(...)"),
    ("fault", (FaultModel, UpsetModel), "BitFlip()"),
    ("resolver", Resolver, "Direct()"),
    ("seed", int, "0"),
)


def _shown(value: object) -> str:
    return f"the class {value.__name__} itself" if isinstance(value, type) else f"{str(value)[:40]!r}"


def goals_of(campaign: Campaign) -> dict[str, float]:
    """Return the half-widths that the stop rule asks for, by grouping: the smallest of each."""
    goals: dict[str, float] = {}
    for rule in rules(campaign.stop):
        if isinstance(rule, HalfWidth):
            goals[rule.by] = min(rule.h, goals.get(rule.by, rule.h))
    return goals


def level_of(campaign: Campaign) -> float:
    """Return the confidence level of a campaign: that of its half-widths, its own without any."""
    return max((rule.level for rule in rules(campaign.stop) if isinstance(rule, HalfWidth)), default=campaign.level)


def population_of(campaign: Campaign) -> Population:
    """Return what is sampled, and towards what."""
    return Population(
        campaign.space, campaign.measure, campaign.inputs, goals=goals_of(campaign), level=level_of(campaign)
    )


def repeats_of(campaign: Campaign, design: Design) -> int:
    """Return the number of trials that each draw becomes, one for each of its inputs."""
    if campaign.metric is not None:
        return 1
    return campaign.inputs if design.enumerates else campaign.inputs_per_fault or campaign.inputs


def check(campaign: Campaign, design: Design) -> None:
    """Raise :class:`CampaignError` where the campaign cannot run as it is: another model's sites, no end, ..."""
    if isinstance(campaign.fault, UpsetModel):
        _check_upsets(campaign, campaign.fault)
    else:
        _check_sites(campaign)
    if campaign.stop is None and design.total is None:
        sampler = type(campaign.sampler).__name__
        raise CampaignError(f"{sampler} never ends by itself, so a campaign needs a rule; give stop=MaxTrials(10_000)")
    if design.sample is not None and not design.replacement and repeats_of(campaign, design) != 1:
        raise CampaignError("a search strikes every fault once, on one input, got several; leave inputs_per_fault at 1")
    for by in goals_of(campaign):
        campaign.space.axis(by)
    if taken := set(campaign.verdicts) & set(_FLAGS):
        raise CampaignError(f"every campaign has a verdict '{taken.pop()}' of its own; give yours another name")
    if campaign.monitor:
        _check_monitor(campaign, design)
    if campaign.metric is not None:
        _check_metric(campaign, design)
    elif campaign.resolver.assumption and campaign.verdicts:
        names = ", ".join(campaign.verdicts)
        raise CampaignError(f"{_resolver(campaign)} leaves lanes out, so that {names} stay unknown; take Direct()")
    elif certifies(campaign.resolver):
        _check_certified(campaign)


def _check_upsets(campaign: Campaign, fault: UpsetModel) -> None:
    fault.check(campaign.space, campaign.measure.mass(campaign.space), campaign.engine)
    if campaign.metric is not None:
        raise CampaignError("an upset changes other words on each input, not one for all, got a metric; take verdicts")
    if not sees_every_lane(campaign):
        raise CampaignError(f"{_resolver(campaign)} strikes words, not upsets of an accelerator; take Direct()")


def _check_certified(campaign: Campaign) -> None:
    judged = {"the criterion": campaign.criterion, **campaign.verdicts}
    if others := [name for name, criterion in judged.items() if not by_top_class(criterion)]:
        raise CampaignError(
            f"Certified proves that the top class stays, which says nothing of {others[0]}; judge by Top1Change or "
            "Misclassified, or take Direct()"
        )


def _check_monitor(campaign: Campaign, design: Design) -> None:
    if campaign.metric is not None:
        raise CampaignError("a monitor follows single lanes, not a metric over all inputs; leave one of them out")
    if not sees_every_lane(campaign):
        raise CampaignError(f"{_resolver(campaign)} leaves lanes out that a monitor would follow; take Direct()")
    if design.unit == "word":
        raise CampaignError("a monitor follows single faults, got draws of whole words; draw single faults")


def _check_metric(campaign: Campaign, design: Design) -> None:
    if not sees_every_lane(campaign):
        raise CampaignError(f"{_resolver(campaign)} finds failures, not a metric; leave one of them out")
    if design.unit == "word":
        raise CampaignError("a metric tells words apart, not the flips in them; draw single faults")
    if design.adapts:
        raise CampaignError("a sampler that learns goes by failures, not by a metric; leave the metric out")


def sees_every_lane(campaign: Campaign) -> bool:
    """Whether no outcome is told without its lane but those of trials that change nothing at all."""
    return not campaign.resolver.assumption and not certifies(campaign.resolver)


def _resolver(campaign: Campaign) -> str:
    return type(campaign.resolver).__name__


def _check_sites(campaign: Campaign) -> None:
    space = campaign.space
    if not isinstance(space, FaultSpace):
        raise CampaignError(
            f"{type(campaign.fault).__name__} changes words of sites, got a {type(space).__name__}; "
            "take the fault model that belongs to it"
        )
    for site in space.sites:
        own = campaign.engine.space.site(site.name)
        if not site.part_of(own):
            raise CampaignError(
                f"the space holds '{site.name}' as {site.word} {site.shape}, the model as {own.word} {own.shape}; "
                "take the space from engine.space.select(...)"
            )
