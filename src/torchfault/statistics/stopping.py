"""When a campaign has enough: frozen rules, asked at block borders, composed with ``|`` (either) and ``&`` (both)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import StatisticsError
from torchfault.statistics.estimators import proportion
from torchfault.statistics.intervals import check_level, find_interval

__all__ = [
    "AllOf",
    "AnyOf",
    "Dropped",
    "HalfWidth",
    "MaxTrials",
    "Progress",
    "Rule",
    "StoppingRule",
    "TimeBudget",
    "rules",
]


Widths = Callable[[str, float, str], NDArray[np.float64]]
"""Takes a grouping, a level and a method; returns the half-width of the interval of each of its groups: infinite where
nothing is known, or where a stop would bias the value."""


@dataclass(frozen=True)
class Progress:
    """How far a campaign has come: trials run, failures among them, seconds spent, and the half-widths of intervals.

    Without *widths*, the trials count as independent and equally weighted. *drops*, of a campaign of a metric, returns
    how many trials have lowered it by so much or more.

    >>> round(Progress(trials=1000, failures=3, seconds=2.5).half_width("model", level=0.95, method="wilson"), 4)
    0.0039
    """

    trials: int
    failures: float
    seconds: float
    widths: Widths | None = None
    drops: Callable[[float], int] | None = None

    def half_width(self, by: str, *, level: float, method: str) -> float:
        """Return the largest half-width of the intervals of the groups of *by*."""
        if self.widths is not None:
            return float(self.widths(by, level, method).max(initial=0.0))
        if by != "model":
            raise StatisticsError(f"half-widths by {by} come from a campaign, got counts alone; ask for the model's")
        return float(proportion(self.failures, self.trials, method=method, level=level).half_width)


class StoppingRule(ABC):
    """A callable from :class:`Progress` to a reason to stop, or ``None`` to go on; plain callables compose with it.

    >>> rule = MaxTrials(1000) & HalfWidth(0.01) | TimeBudget(3600)
    >>> rule(Progress(trials=1000, failures=3, seconds=2.5))
    '1000 of 1000 trials run and half-width 0.0039 of at most 0.01 reached by model (95 %)'
    """

    @abstractmethod
    def __call__(self, progress: Progress, /) -> str | None:
        """Return why to stop, or ``None`` to go on."""

    def __or__(self, other: "Rule") -> "AnyOf":
        return AnyOf((self, other))

    def __ror__(self, other: "Rule") -> "AnyOf":
        return AnyOf((other, self))

    def __and__(self, other: "Rule") -> "AllOf":
        return AllOf((self, other))

    def __rand__(self, other: "Rule") -> "AllOf":
        return AllOf((other, self))


Rule: TypeAlias = StoppingRule | Callable[[Progress], str | None]


@dataclass(frozen=True)
class AnyOf(StoppingRule):
    """Stop as soon as one of the rules says so, with the first one's reason; what ``|`` makes.

    >>> AnyOf((MaxTrials(10), TimeBudget(1.0)))(Progress(trials=5, failures=0, seconds=2.0))
    'time budget of 1 s spent'
    """

    rules: tuple[Rule, ...]

    def __call__(self, progress: Progress, /) -> str | None:
        return next((reason for rule in self.rules if (reason := rule(progress)) is not None), None)


@dataclass(frozen=True)
class AllOf(StoppingRule):
    """Stop once every one of the rules says so, with all their reasons; what ``&`` makes.

    >>> AllOf((MaxTrials(10), TimeBudget(1.0)))(Progress(trials=5, failures=0, seconds=2.0)) is None
    True
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise StatisticsError("AllOf needs at least one rule, got none, which would stop at once; pass a rule")

    def __call__(self, progress: Progress, /) -> str | None:
        reasons = []
        for rule in self.rules:
            reason = rule(progress)
            if reason is None:
                return None
            reasons.append(reason)
        return " and ".join(reasons)


@dataclass(frozen=True)
class MaxTrials(StoppingRule):
    """Stop once *n* trials have run.

    >>> MaxTrials(1000)(Progress(trials=1024, failures=3, seconds=2.5))
    '1024 of 1000 trials run'
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise StatisticsError(f"MaxTrials takes a number of trials from 1 up, got {self.n}; leave the rule out")

    def __call__(self, progress: Progress, /) -> str | None:
        return f"{progress.trials} of {self.n} trials run" if progress.trials >= self.n else None


@dataclass(frozen=True)
class HalfWidth(StoppingRule):
    """Stop once the intervals of all groups of *by* are *h* or less to each side, after *minimum* trials.

    *h* is a fraction: 0.01 for one percentage point; *by* is ``model`` (all faults together), ``site``, ``layer``,
    ``bit`` or another grouping of the space. Adaptive samplers draw towards it, and their intervals hold at every look.

    Those of other samplers are made for a number of trials fixed in advance. Stopping at a moment that the data choose
    costs them a little coverage, since samples that happen to hold few failures stop early. Simulated at 95 % over h of
    0.01 to 0.1 and proportions of 0.002 to 0.5, asked every 100 trials: Wilson's and Jeffreys' cover in at least 91 %,
    hardly below what they do at a fixed number, and Clopper-Pearson's loses its guarantee (93.9 %); asked every 10
    trials, Jeffreys' loses 3 points more than Wilson's. The value of a uniform campaign that ends so is unbiased all
    the same (:func:`torchfault.statistics.after_looks`). To rule the former out, fix the number beforehand
    (:func:`~torchfault.statistics.wilson_trials`, :class:`MaxTrials`), or sample adaptively.
    Raises :class:`StatisticsError` for a half-width outside 0 to 0.5 or an unknown method.

    >>> HalfWidth(0.01)(Progress(trials=1000, failures=3, seconds=2.5))
    'half-width 0.0039 of at most 0.01 reached by model (95 %)'
    >>> HalfWidth(0.01)(Progress(trials=1000, failures=300, seconds=2.5)) is None
    True
    """

    h: float
    by: str = "model"
    method: str = "wilson"
    level: float = 0.95
    minimum: int = 100

    def __post_init__(self) -> None:
        find_interval(self.method)
        check_level(self.level)
        h: object = self.h
        if not isinstance(h, float | int) or not 0 < self.h < 0.5 or self.minimum < 1:
            raise StatisticsError(
                f"HalfWidth takes a fraction between 0 and 0.5 and a minimum of trials from 1 up, got h={self.h!r}, "
                f"minimum={self.minimum}; one percentage point is 0.01"
            )

    def narrow(self, failures: NDArray[np.float64], trials: int) -> NDArray[np.bool_]:
        """Return at which of the counts *failures* of *trials* the rule stops, shape of *failures*.

        >>> HalfWidth(0.01).narrow(np.array([3.0, 300.0]), 1000)
        array([ True, False])
        """
        if trials < self.minimum:
            return np.zeros(len(failures), dtype=np.bool_)
        low, high = find_interval(self.method)(failures, trials, level=self.level)
        return (high - low) / 2 <= self.h

    def __call__(self, progress: Progress, /) -> str | None:
        if progress.trials < self.minimum:
            return None
        reached = progress.half_width(self.by, level=self.level, method=self.method)
        if reached > self.h:
            return None
        return f"half-width {reached:.2g} of at most {self.h:g} reached by {self.by} ({100 * self.level:g} %)"


@dataclass(frozen=True)
class Dropped(StoppingRule):
    """Stop once *n* trials have lowered the metric by *drop* or more, an absolute number.

    >>> Dropped(0.2)(Progress(trials=30, failures=9, seconds=2.5, drops=lambda least: 1))
    '1 found that lower the metric by 0.2 or more, of 1 asked for'
    """

    drop: float
    n: int = 1

    def __post_init__(self) -> None:
        if not self.drop > 0 or self.n < 1:
            raise StatisticsError(f"Dropped takes a drop above 0 and 1 fault or more, got {self.drop:g} and {self.n}")

    def __call__(self, progress: Progress, /) -> str | None:
        if progress.drops is None:
            raise StatisticsError("drops are those of a metric, got a campaign without one; give metric=accuracy")
        found = progress.drops(self.drop)
        if found < self.n:
            return None
        return f"{found} found that lower the metric by {self.drop:.3g} or more, of {self.n} asked for"


@dataclass(frozen=True)
class TimeBudget(StoppingRule):
    """Stop once *seconds* have been spent, by the clock of the campaign that asks.

    >>> TimeBudget(60)(Progress(trials=10, failures=0, seconds=61.2))
    'time budget of 60 s spent'
    """

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise StatisticsError(f"TimeBudget takes seconds above 0, got {self.seconds}; for no limit leave it out")

    def __call__(self, progress: Progress, /) -> str | None:
        return f"time budget of {self.seconds:g} s spent" if progress.seconds >= self.seconds else None


def rules(rule: Rule | None) -> Iterator[Rule]:
    """Yield *rule* and all the rules inside it.

    >>> len(list(rules(MaxTrials(1000) & HalfWidth(0.01) | TimeBudget(3600))))
    5
    """
    if rule is not None:
        yield rule
        for inner in rule.rules if isinstance(rule, AnyOf | AllOf) else ():
            yield from rules(inner)
