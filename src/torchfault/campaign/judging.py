"""From lanes to verdicts: what became of every lane that an engine ran, and of an input without faults."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchfault.campaign.campaign import Campaign, Machine
from torchfault.criteria import (
    NonFinite,
    answers,
    bounds,
    changes,
    check_fit,
    golden_metric,
    higher_is_better,
    judge,
    metric_of,
    unusable_inputs,
)
from torchfault.criteria.compose import verdict
from torchfault.data import Tree, concatenate, leaves, map_tensors, rows
from torchfault.engine.executor import Lanes
from torchfault.engine.monitor import Monitor
from torchfault.errors import CampaignError, EngineError
from torchfault.resolve import Verdicts
from torchfault.trials import Runs, Trials, all_at_once

__all__ = ["Judge", "Meter", "Seen", "check_golden", "golden_facts"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Seen = Callable[[int], None]

_MOST_BYTES = 1 << 28  # of outputs that are gathered for metrics at a time
_ENOUGH, _ENOUGH_BYTES = 512, 1 << 22  # lanes, or bytes of their outputs, that are judged together


@dataclass(frozen=True, eq=False)
class Judge:
    """Runs trials of *campaign*, a lane each, and returns their verdicts."""

    campaign: Campaign
    details: bool

    def __call__(self, runs: Runs, seen: Seen) -> Verdicts:
        """Return ``failed``, ``due``, ``crash`` and the further verdicts of the campaign, shape (lanes,) each.

        With *details* also the ``answer``, the class that the outputs name, and their ``change``; with a monitor how
        far errors ``reach``. *seen* is told of lanes as they end.
        """
        verdicts: dict[str, Any] = {}
        monitor = Monitor(self.campaign.engine.space) if self.campaign.monitor else None
        for trials, at in (runs if monitor is None else all_at_once(runs)).parts():
            for lanes in _together(_each_once(self.campaign.engine, trials, monitor), seen):
                for name, values in self._verdicts(lanes).items():
                    verdicts.setdefault(name, np.zeros(len(runs), dtype=values.dtype))[at[lanes.trial]] = values
        if monitor is not None:
            verdicts["reach"] = monitor.reach().astype(np.int32)
        return verdicts

    def golden(self) -> Verdicts:
        """Return the verdicts on every input without faults, shape (inputs,) each."""
        outputs, every = self.campaign.engine.golden(), np.arange(self.campaign.inputs)
        verdicts = dict(self._verdicts(Lanes(every, every, outputs, outputs, np.ones(len(every), dtype=np.bool_))))
        if self.campaign.monitor:
            verdicts["reach"] = np.full(len(every), -1, dtype=np.int32)
        return verdicts

    def _verdicts(self, lanes: Lanes) -> Verdicts:
        labels = rows(self.campaign.engine.data.labels, torch.from_numpy(lanes.inputs))
        of = partial(judge, golden=lanes.golden, faulty=lanes.faulty, labels=labels, crashed=lanes.crashed)
        outcomes = of(self.campaign.criterion)
        own = {"failed": outcomes.failed, "due": outcomes.due, "crash": lanes.crashed}
        if self.details:
            named = answers(self.campaign.criterion, lanes.faulty)
            own |= {} if named is None else {"answer": np.where(lanes.crashed, -1, named.cpu().numpy())}
            own["change"] = np.where(lanes.crashed, np.inf, changes(lanes.golden, lanes.faulty).numpy())
        for name, criterion in self.campaign.verdicts.items():
            if getattr(criterion, "observes", False):
                # what it says is no failure, and neither are numbers that are not finite
                told = verdict(criterion, lanes.golden, lanes.faulty, labels).cpu().numpy()
                own[name] = told & ~np.asarray(lanes.crashed, dtype=np.bool_)
            else:
                own[name] = of(criterion).failed
        return own


def _each_once(engine: Machine, trials: Trials, monitor: Monitor | None = None) -> Iterator[Lanes]:
    """Run *trials* and hold the engine to its word: a trial lost or repeated would bias every result unseen."""
    runs = np.zeros(len(trials), dtype=np.int64)
    for lanes in engine.run(trials) if monitor is None else engine.run(trials, monitor=monitor):
        np.add.at(runs, lanes.trial, 1)
        yield lanes
    if (runs != 1).any():
        wrong = int(np.flatnonzero(runs != 1)[0])
        raise EngineError(f"an engine runs every trial once, got {runs[wrong]} runs of trial {wrong}; mend the engine")


def _together(finished: Iterator[Lanes], seen: Seen) -> Iterator[Lanes]:
    """Yield lanes in larger parts, and tell *seen* of them as they end.

    To judge a few takes as long as hundreds: campaigns of weights on ResNet-20 take 8 % less time, of upsets 4 %.
    """
    parts, count, size = list[Lanes](), 0, 0
    for lanes in finished:
        seen(len(lanes.trial))
        parts.append(lanes)
        count += len(lanes.trial)
        size += sum(leaf.numel() * leaf.element_size() for leaf in leaves(lanes.faulty))
        if count >= _ENOUGH or size >= _ENOUGH_BYTES:
            yield _joined(parts)
            parts, count, size = [], 0, 0
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[Lanes]) -> Lanes:
    if len(parts) == 1:
        return parts[0]
    golden, faulty = concatenate([part.golden for part in parts]), concatenate([part.faulty for part in parts])
    columns = ([getattr(part, name) for part in parts] for name in ("trial", "inputs", "masked", "crashed"))
    trial, inputs, masked, crashed = map(np.concatenate, columns)
    return Lanes(trial, inputs, golden, faulty, masked, crashed)


@dataclass(frozen=True, eq=False)
class Meter:
    """Measures the metric of *campaign* over the whole data set, trial by trial.

    Raises :class:`torchfault.errors.CriterionError` where the metric without faults is no finite number.
    """

    campaign: Campaign

    @cached_property
    def outputs(self) -> Tree:
        """The outputs without faults."""
        return self.campaign.engine.golden()

    @cached_property
    def golden(self) -> float:
        """The metric without faults."""
        assert self.campaign.metric is not None
        return golden_metric(self.campaign.metric, self.outputs, self.campaign.engine.data.labels)

    @property
    def bounds(self) -> list[float] | None:
        """The least and the largest drop there can be, ``None`` where the metric knows no end."""
        assert self.campaign.metric is not None
        ends = [float(end) for end in self.drop(np.array(bounds(self.campaign.metric)))]
        return sorted(ends) if all(map(math.isfinite, ends)) else None

    def drop(self, metric: Floats) -> Floats:
        """Return by how much *metric* is worse than without faults: a rise, of metrics that are better where lower."""
        assert self.campaign.metric is not None
        return self.golden - metric if higher_is_better(self.campaign.metric) else metric - self.golden

    def batch(self, lanes: int) -> int:
        """Return how many trials make a batch of about *lanes* lanes whose gathered outputs fit into memory."""
        size = sum(leaf.numel() * leaf.element_size() for leaf in leaves(self.outputs))
        return max(1, min(lanes // self.campaign.inputs, _MOST_BYTES // max(size, 1)))

    def __call__(self, runs: Runs, seen: Seen) -> tuple[Floats, Bools]:
        """Return the metric of every trial, and which trials gave no answer on some input, shape (trials,) each.

        Every trial runs on all inputs; its outputs are gathered, in rows of golden ones, until all of them are there.
        """
        inputs, of, labels = self.campaign.inputs, self.campaign.metric, self.campaign.engine.data.labels
        assert of is not None
        trials = all_at_once(runs)
        metric, due = np.full(len(trials), self.golden), np.zeros(len(trials), dtype=np.bool_)
        left = np.full(len(trials), inputs)
        gathered: dict[int, Tree] = {}
        for lanes in _each_once(self.campaign.engine, trials.on(np.arange(inputs))):
            owner = lanes.trial // inputs
            changed = np.flatnonzero(~lanes.masked)
            if changed.size:
                some, gone = torch.from_numpy(changed), lanes.crashed[changed]
                outcomes = judge(NonFinite(), rows(lanes.golden, some), rows(lanes.faulty, some), None, crashed=gone)
                np.logical_or.at(due, owner[changed], outcomes.due)
            for trial in np.unique(owner[changed]).tolist():
                if trial not in gathered:
                    gathered[trial] = map_tensors(torch.clone, self.outputs)
                mine = changed[owner[changed] == trial]
                _put(gathered[trial], lanes.inputs[mine], rows(lanes.outputs, torch.from_numpy(mine)))
            np.subtract.at(left, owner, 1)
            done = [int(trial) for trial in np.unique(owner) if not left[trial]]
            for trial in done:
                if trial in gathered:
                    metric[trial] = metric_of(of, gathered.pop(trial), labels)
            seen(len(done))
        return metric, due


def check_golden(golden: Tree) -> int:
    """Return on how many inputs the *golden* outputs are not finite, and warn where that are some.

    Raises :class:`CampaignError` where it are all of them.
    """
    lacking = unusable_inputs(golden)
    unusable = int(lacking.sum())
    if unusable == len(lacking):
        raise CampaignError(
            "the outputs without faults are not finite on any input, so that no fault can be told from them; "
            "check the model, its weights and the data"
        )
    if unusable:
        warnings.warn(
            f"the outputs without faults are not finite on {unusable} of {len(lacking)} inputs, on which faults "
            "cannot be told from them; leave these inputs out",
            stacklevel=6,
        )
    return unusable


def golden_facts(campaign: Campaign, judge: Judge, meter: Meter | None) -> dict[str, Any]:
    """Return what there is to know of the model without faults: its metric, or on which inputs it fails already.

    Raises :class:`CampaignError` by :func:`check_golden`, and :class:`CriterionError` where a criterion or metric does
    not fit the outputs.
    """
    golden, data = campaign.engine.golden(), campaign.engine.data
    unusable = check_golden(golden)
    if meter is not None:
        return {"unusable": unusable, "metric": meter.golden, "drop_bounds": meter.bounds}
    for criterion in (campaign.criterion, *campaign.verdicts.values()):
        check_fit(criterion, golden, data.labels, data.inputs)
    verdicts: dict[str, Any] = dict(judge.golden())
    flags = {name: values for name, values in verdicts.items() if values.dtype == np.bool_}
    facts: dict[str, Any] = {name: np.flatnonzero(values).tolist() for name, values in flags.items()}
    facts |= {"answers": verdicts["answer"].tolist()} if "answer" in verdicts else {}
    facts |= {"monitored": list(Monitor(campaign.engine.space).sites)} if campaign.monitor else {}
    return facts | {"unusable": unusable}


def _put(into: Tree, inputs: NDArray[np.int64], part: Tree) -> None:
    for target, source in zip(leaves(into), leaves(part), strict=True):
        target[torch.from_numpy(inputs)] = source.to(target.device)
