"""From trials to outcomes: a verdict per lane, or a metric of the whole data set per trial."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.plan import Campaign, Machine, Plan
from torchfault.campaign.shortcuts import Shortcuts, resolve
from torchfault.errors import CampaignError, CriterionError, EngineError
from torchfault.sampling import Deviation, stream
from torchfault.store import Columns

if TYPE_CHECKING:
    from torchfault.data import Tree
    from torchfault.engine.executor import Lanes
    from torchfault.trials import Trials

__all__ = ["Reference", "measure", "reference"]

_MOST_BYTES = 1 << 28  # of outputs that are gathered for metrics at a time

Seen = Callable[[int], None]
Before = tuple[int, Columns | None]
_SHORTCUTS = 3  # the purpose of their random stream, after those in plan.py


@dataclass(frozen=True, eq=False)
class Reference:
    """What a metric is compared with: the outputs for the whole data set without faults, and their metric."""

    outputs: "Tree"
    metric: float

    def batch(self, lanes: int) -> int:
        """Return how many trials make a batch of about *lanes* lanes whose gathered outputs fit into memory."""
        from torchfault.data import leaves

        outputs = leaves(self.outputs)
        size = sum(leaf.numel() * leaf.element_size() for leaf in outputs)
        return max(1, min(lanes // len(outputs[0]), _MOST_BYTES // max(size, 1)))


def reference(campaign: Campaign) -> Reference | None:
    """Return the reference of a campaign with a metric, ``None`` for one without."""
    if campaign.metric is None:
        return None
    outputs = campaign.engine.golden()
    metric = _number(campaign, outputs)
    if not math.isfinite(metric):
        raise CampaignError(f"the metric of the model without faults must be a finite number, got {metric}; check it")
    return Reference(outputs, metric)


def measure(
    campaign: Campaign, plan: Plan, *, golden: Reference | None, seen: Seen, before: Before = (0, None)
) -> Columns:
    """Run the trials of *plan* and return its columns with outcomes; *seen* is told of trials as they are done.

    *before* counts and, for a campaign with shortcuts, holds the finished trials ahead of those of *plan*.
    """
    columns, trials = plan.columns, plan.trials
    if campaign.shortcuts is not None:
        return _resolved(campaign, campaign.shortcuts, plan, before, seen)
    if golden is None:
        failed, due = _verdicts(campaign, trials, seen)
        return replace(columns, failed=failed, due=due)
    metric, due = _metrics(campaign, trials, golden, seen)
    drop = golden.metric - metric
    return replace(columns, failed=due | ~(drop == 0), due=due, values=drop, metric=metric)


def _resolved(campaign: Campaign, shortcuts: Shortcuts, plan: Plan, before: Before, seen: Seen) -> Columns:
    """Find the outcomes of *plan* by shortcuts; lanes are no trials, so all of these are told of at the end."""
    if plan.columns.counts is not None:
        raise CampaignError("shortcuts find the outcomes of single faults, got trials of several; use another sampler")
    first, earlier = before

    def verdicts(trials: "Trials") -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return _verdicts(campaign, trials, lambda _: seen(0))

    sampler, strata = campaign.sampler, plan.columns.strata
    apart = sampler.apart(strata) if isinstance(sampler, Deviation) and strata is not None else None
    columns = resolve(
        shortcuts,
        campaign.space,
        plan.columns,
        plan.trials,
        verdicts,
        before=earlier or Columns.empty(),
        rng=stream(campaign.seed, _SHORTCUTS, first),
        apart=apart,
    )
    seen(len(columns))
    return columns


def _verdicts(campaign: Campaign, trials: "Trials", seen: Seen) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    import torch

    from torchfault.criteria import judge
    from torchfault.data import rows

    failed, due = np.zeros(len(trials), dtype=np.bool_), np.zeros(len(trials), dtype=np.bool_)
    labels = campaign.engine.data.labels
    for lanes in _each_once(campaign.engine, trials):
        own = rows(labels, torch.from_numpy(lanes.inputs))
        outcomes = judge(campaign.criterion, lanes.golden, lanes.faulty, own, crashed=lanes.crashed)
        failed[lanes.trial], due[lanes.trial] = outcomes.failed, outcomes.due
        seen(len(lanes.trial))
    return failed, due


def _each_once(engine: Machine, trials: "Trials") -> "Iterator[Lanes]":
    """Run *trials* and hold the engine to its word: a trial lost or repeated would bias every result unseen."""
    runs = np.zeros(len(trials), dtype=np.int64)
    for lanes in engine.run(trials):
        np.add.at(runs, lanes.trial, 1)
        yield lanes
    if (runs != 1).any():
        wrong = int(np.flatnonzero(runs != 1)[0])
        raise EngineError(f"an engine runs every trial once, got {runs[wrong]} runs of trial {wrong}; mend the engine")


def _metrics(
    campaign: Campaign, trials: "Trials", golden: Reference, seen: Seen
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Run every trial on all inputs; gather its outputs, in rows of golden ones, until all of them are there."""
    import torch

    from torchfault.criteria import NonFinite, judge
    from torchfault.data import map_tensors, rows

    inputs = campaign.inputs
    metric, due = np.full(len(trials), golden.metric), np.zeros(len(trials), dtype=np.bool_)
    left = np.full(len(trials), inputs)
    gathered: dict[int, Tree] = {}
    for lanes in _each_once(campaign.engine, trials.on(np.arange(inputs))):
        owner = lanes.trial // inputs
        changed = np.flatnonzero(~lanes.masked)
        if changed.size:
            some, gone = torch.from_numpy(changed), lanes.crashed[changed]
            outcomes = judge(NonFinite(), rows(lanes.golden, some), rows(lanes.faulty, some), None, crashed=gone)
            np.logical_or.at(due, owner[changed], outcomes.due)
        for trial in np.unique(owner[changed]).tolist():
            if trial not in gathered:
                gathered[trial] = map_tensors(torch.clone, golden.outputs)
            mine = changed[owner[changed] == trial]
            _put(gathered[trial], lanes.inputs[mine], rows(lanes.outputs, torch.from_numpy(mine)))
        np.subtract.at(left, owner, 1)
        done = [int(trial) for trial in np.unique(owner) if not left[trial]]
        for trial in done:
            if trial in gathered:
                metric[trial] = _number(campaign, gathered.pop(trial))
        seen(len(done))
    return metric, due


def _put(into: "Tree", inputs: NDArray[np.int64], part: "Tree") -> None:
    import torch

    from torchfault.data import leaves

    for target, source in zip(leaves(into), leaves(part), strict=True):
        target[torch.from_numpy(inputs)] = source.to(target.device)


def _number(campaign: Campaign, outputs: "Tree") -> float:
    assert campaign.metric is not None
    value: object = campaign.metric(outputs, campaign.engine.data.labels)
    try:
        return float(value)  # type: ignore[arg-type]  # a tensor of one element is welcome
    except (TypeError, ValueError, RuntimeError):
        raise CriterionError(f"a metric returns one number, got {type(value).__name__}; reduce it to one") from None
