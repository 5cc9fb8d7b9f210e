"""Selective protection: which bits, words, channels or layers to protect for a budget, and what then still fails."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SamplingError, StatisticsError, did_you_mean
from torchfault.results import Results
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate, proportion

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Protection", "front", "protect", "residual"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Cost = Callable[[Mapping[str, object]], float]
FIELDS = ("layer", "site", "channel", "word", "bit")
_CHUNK, _MOST = 2**20, 2**27


@dataclass(frozen=True, eq=False)
class Protection:
    """What to protect: the groups *chosen* of those told apart by *by*, at a *cost*, with *bits* of all bits in them.

    *removed* is the share of all failures that end with it, *residual* the probability that a fault still fails; both
    are from trials that had no part in the choice, with a one-sided bound: the lower end of *removed* and the upper end
    of *residual* hold at their level, each for itself.
    """

    by: tuple[str, ...]
    chosen: "pd.DataFrame"
    cost: float
    bits: float
    removed: Estimate
    residual: Estimate
    codes: Ints


def protect(
    results: Results,
    by: str | Sequence[str] = ("site", "bit"),
    *,
    budget: float,
    cost: Cost | None = None,
    exact: bool = True,
    level: float = 0.95,
) -> Protection:
    """Return what to protect so that most failures end, for a *budget*.

    *by* tells groups apart by one or more of ``layer``, ``site``, ``channel``, ``word`` and ``bit``. *cost* is called
    with the columns of a group, *bits* among them, and returns what its protection costs, in any unit; unless told, it
    is the group's share of all bits, and *budget* a share too. Every second trial chooses, by integer programming, or
    greedily unless *exact*; the others tell what is left. Raises :class:`SamplingError` for trials of several faults or
    of unequal weights, and :class:`StatisticsError` for a budget that pays for no group in which anything failed, a
    level that is not above 0.5, or where nothing failed.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> found = protect(run(example_campaign(trials=2000)), "bit", budget=1 / 32)
    >>> found.chosen["bit"].tolist(), found.residual.high < 0.3
    ([30], True)
    """
    if not budget > 0:
        raise StatisticsError(f"protection needs a budget above 0, got {budget:g}")
    _check_level(level)
    groups, trials = _groups(results, by, cost), _trials(results, by)
    failures = groups.failures(trials)
    picked = _exactly(failures, groups.cost, budget) if exact else _greedily(failures, groups.cost, budget)
    if not len(picked):
        raise StatisticsError(
            f"a budget of {budget:g} pays for no group in which a trial failed: the cheapest costs "
            f"{groups.cost[failures > 0].min():.3g}; raise the budget, or tell smaller groups apart, such as by site "
            "and bit"
        )
    return groups.protection(picked, trials, level)


def front(
    results: Results,
    by: str | Sequence[str] = ("site", "bit"),
    *,
    cost: Cost | None = None,
    level: float = 0.95,
    points: int = 20,
) -> "pd.DataFrame":
    """Return the Pareto front of protection: for growing budgets, the cost, the share *removed* and what is left.

    The greedy choices end at the cost at which every failure that was seen is in a group that is protected; *points*
    of them are told. Arguments and errors are those of :func:`protect`.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> table = front(run(example_campaign(trials=2000)), "bit")
    >>> table.columns.tolist()
    ['groups', 'cost', 'bits', 'removed', 'removed_low', 'residual', 'residual_high']
    """
    import pandas as pd

    _check_level(level)
    groups, trials = _groups(results, by, cost), _trials(results, by)
    failures = groups.failures(trials)
    order = _by_worth(failures, groups.cost)
    sizes = np.unique(np.linspace(1, len(order), min(points, len(order))).round().astype(int))
    rows = []
    for size in sizes.tolist():
        found = groups.protection(order[:size], trials, level)
        bounds = (found.removed.value, found.removed.low, found.residual.value, found.residual.high)
        rows.append((size, found.cost, found.bits, *bounds))
    columns = ["groups", "cost", "bits", "removed", "removed_low", "residual", "residual_high"]
    return pd.DataFrame(rows, columns=columns)


def residual(protection: Protection, results: Results, *, level: float = 0.95) -> Estimate:
    """Return how likely a fault of other *results* on the same space fails in spite of *protection*, measured anew.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> found = protect(run(example_campaign(trials=1000)), "bit", budget=1 / 32)
    >>> residual(found, run(example_campaign(trials=1000, seed=9))).value <= found.residual.high
    True
    """
    trials = _trials(results, protection.by)
    left = trials.failed & ~np.isin(trials.codes, protection.codes)
    return proportion(int(left.sum()), len(left), method="clopper-pearson", level=level)


@dataclass(frozen=True, eq=False)
class _Trials:
    """The group that each trial struck, as a code, and whether it failed."""

    codes: Ints
    failed: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Groups:
    """All groups of a space: their codes, in order, their columns and costs."""

    by: tuple[str, ...]
    codes: Ints
    table: "pd.DataFrame"
    cost: Floats

    def failures(self, trials: _Trials) -> Floats:
        """Return the failures in each group among the trials that choose."""
        struck = np.searchsorted(self.codes, trials.codes[::2][trials.failed[::2]])
        if not len(struck):
            raise StatisticsError("none of the trials that choose failed, so nothing tells what to protect; run more")
        return np.bincount(struck, minlength=len(self.codes)).astype(np.float64)

    def protection(self, picked: Ints, trials: _Trials, level: float) -> Protection:
        codes, failed = self.codes[np.sort(picked)], trials.failed[1::2]
        kept = np.isin(trials.codes[1::2], codes)
        removed = _one_sided(int((failed & kept).sum()), int(failed.sum()), level)
        left = _one_sided(int((failed & ~kept).sum()), len(failed), level)
        chosen, every = self.table.iloc[np.sort(picked)].reset_index(drop=True), float(self.table["bits"].sum())
        spent = float(self.cost[picked].sum())
        return Protection(self.by, chosen, spent, float(chosen["bits"].sum()) / every, removed, left, codes)


def _check_level(level: float) -> None:
    if not 0.5 < level < 1:
        raise StatisticsError(f"a bound on one side has a level between 0.5 and 1, got {level:g}; 0.95 is usual")


def _one_sided(hits: int, n: int, level: float) -> Estimate:
    """Return a share whose two bounds each hold at *level*."""
    return replace(proportion(hits, n, method="clopper-pearson", level=2 * level - 1), level=level)


def _trials(results: Results, by: str | Sequence[str]) -> _Trials:
    columns, space = results.columns, results.space
    if not isinstance(space, FaultSpace) or columns.unit == "word" or len(columns.faults) != len(columns.failed):
        raise SamplingError("protection is chosen from trials of one fault each, in tensors; run such a campaign")
    if len(columns.weight) and np.ptp(columns.weight) > 1e-9 * columns.weight.max():
        raise SamplingError("protection is chosen from draws of equal weight; run a campaign with sampler uniform")
    return _Trials(_codes(space, columns.faults, _fields(by)), columns.failed.astype(bool))


def _fields(by: str | Sequence[str]) -> tuple[str, ...]:
    asked = (by,) if isinstance(by, str) else tuple(by)
    if not asked:
        raise SamplingError(f"groups are told apart by one or more of {', '.join(FIELDS)}, got none")
    for field in asked:
        if field not in FIELDS:
            raise SamplingError(
                f"groups are told apart by {', '.join(FIELDS)}, got '{field}'{did_you_mean(field, FIELDS)}"
            )
    return tuple(field for field in FIELDS if field in asked)


def _parts(space: FaultSpace, faults: Ints) -> dict[str, Ints]:
    where = space.locate(faults)
    layers = {name: i for i, name in enumerate(dict.fromkeys(site.module for site in space.sites))}
    layer = np.array([layers[site.module] for site in space.sites])
    site = where.site.astype(np.int64)
    inner = {
        "layer": layer[site],
        "site": site,
        "channel": space.channels(where) + 1,
        "bit": where.bit.astype(np.int64),
    }
    return inner | {"word": where.element.astype(np.int64)}


def _radix(space: FaultSpace) -> dict[str, int]:
    widest = max(site.elements for site in space.sites)
    return {"layer": len(space.sites), "site": len(space.sites), "channel": widest + 2, "word": widest, "bit": 64}


def _codes(space: FaultSpace, faults: Ints, by: tuple[str, ...]) -> Ints:
    """Return a number for the group of each fault, the same for all faults of a group."""
    parts, radix = _parts(space, faults), _radix(space)
    code = parts["site"] if {"channel", "word"} & set(by) else np.zeros(len(faults), dtype=np.int64)
    for field in by:
        code = code * radix[field] + parts[field]
    return code


def _groups(results: Results, by: str | Sequence[str], cost: Cost | None) -> _Groups:
    import pandas as pd

    space, fields = results.space, _fields(by)
    if not isinstance(space, FaultSpace) or len(space) > _MOST:
        raise SamplingError(f"groups are made of a space of tensors with up to {_MOST:,} faults; choose fewer sites")
    codes, first, bits = _counted(space, fields)
    where, parts = space.locate(first), _parts(space, first)
    sites = [space.sites[i] for i in where.site.tolist()]
    named: dict[str, object] = {"layer": [site.module for site in sites], "site": [site.name for site in sites]}
    named |= {"channel": parts["channel"] - 1, "word": parts["word"], "bit": parts["bit"]}
    known = [*dict.fromkeys(("site", *fields) if {"channel", "word"} & set(fields) else fields)]
    table = pd.DataFrame({name: named[name] for name in known} | {"bits": bits})
    if cost is None:
        costs = bits / bits.sum()
    else:
        rows: list[dict[Any, Any]] = table.to_dict("records")
        costs = np.array([float(cost(row)) for row in rows])
        if not (np.isfinite(costs).all() and (costs >= 0).all()):
            raise StatisticsError("a cost is a finite number of 0 or more, got others; mend the function")
    return _Groups(fields, codes, table, costs)


def _counted(space: FaultSpace, by: tuple[str, ...]) -> tuple[Ints, Ints, Ints]:
    """Return the codes of all groups, a fault of each, and their sizes."""
    found: list[tuple[Ints, Ints, Ints]] = []
    for start in range(0, len(space), _CHUNK):
        faults = np.arange(start, min(start + _CHUNK, len(space)))
        codes, first, counts = np.unique(_codes(space, faults, by), return_index=True, return_counts=True)
        found.append((codes, faults[first], counts))
    codes, firsts, counts = (np.concatenate(column) for column in zip(*found, strict=True))
    every, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return every, firsts[first], np.bincount(inverse, counts).astype(np.int64)


def _by_worth(failures: Floats, cost: Floats) -> Ints:
    """Return the groups in which anything failed, those with most failures for their cost first."""
    worth = np.divide(failures, cost, out=np.full(len(cost), np.inf), where=cost > 0)
    order = np.argsort(-worth, kind="stable")
    return order[failures[order] > 0]


def _within(cost: Any, budget: float) -> Any:
    """Return whether a cost is in a budget, but for the rounding of sums."""
    return cost <= budget * (1 + 1e-12)


def _greedily(failures: Floats, cost: Floats, budget: float) -> Ints:
    picked, spent = [], 0.0
    for group in _by_worth(failures, cost).tolist():
        if _within(spent + cost[group], budget):
            picked.append(group)
            spent += cost[group]
    return np.array(picked, dtype=np.int64)


def _exactly(failures: Floats, cost: Floats, budget: float) -> Ints:
    """Return the groups with most failures within the budget, by integer programming over those with any."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    able = np.flatnonzero((failures > 0) & _within(cost, budget))
    if not len(able):
        return able
    limit = LinearConstraint(cost[able][None] / budget, -np.inf, 1.0)
    solved = milp(
        -failures[able], constraints=limit, bounds=Bounds(0, 1), integrality=np.ones(len(able), dtype=np.int64)
    )
    if solved.x is None:  # no optimum was found in time: the greedy choice is within the budget too
        return _greedily(failures, cost, budget)
    return able[solved.x > 0.5]
