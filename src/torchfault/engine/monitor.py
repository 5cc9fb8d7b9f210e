"""Monitors: what activations look like with and without faults, and how far the error of each trial travels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.engine.contract import Lanes
from torchfault.engine.golden import Golden, identical_lanes
from torchfault.engine.lanes import Sweep
from torchfault.faults import Trials
from torchfault.model.data import leaves
from torchfault.model.graph_sites import Place
from torchfault.model.layout import Layout, lanes_first, take
from torchfault.model.program import Node
from torchfault.model.visit import Moment
from torchfault.space import FaultSpace
from torchfault.statistics import wilson

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HooksMonitor", "Monitor", "SweepMonitor"]

Floats = NDArray[np.float64]
_SUMMARY = 5  # smallest, largest and sum of the finite values, their number, and that of the others


@dataclass(eq=False)
class Monitor:
    """Gathers statistics of every output site of *space* while an engine runs trials, and where their errors end.

    Sites with time steps are left out.

    Give it to :meth:`torchfault.Engine.run`, or to several runs one after the other; ask for tables at any time. Golden
    statistics are those of the same inputs, once for every lane, so that the two stand side by side.

    >>> from torch import nn
    >>> import torchfault as tf
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> engine = tf.Engine(model, tf.Data(torch.randn(5, 4)))
    >>> space = engine.space.select("0.weight", bits=[30])
    >>> from torchfault.faults import BitFlip, strike
    >>> rng = np.random.default_rng(0)
    >>> trials = strike(space, space.locate(np.arange(10)), model=BitFlip(), rng=rng, inputs=np.arange(10) % 5)
    >>> monitor = Monitor(engine.space)
    >>> done = [lanes for lanes in engine.run(trials, monitor=monitor)]
    >>> monitor.table()[["site", "lanes", "changed"]].head(1).to_dict("list")
    {'site': ['0:output'], 'lanes': [10], 'changed': [10]}
    >>> len(monitor.travel())
    10
    """

    space: FaultSpace
    sites: tuple[str, ...] = ()
    lanes: int = 0
    golden: Floats = field(init=False)
    faulty: Floats = field(init=False)
    changed: NDArray[np.int64] = field(init=False)
    _positions: NDArray[np.int64] = field(init=False)
    _numbers: NDArray[np.int64] = field(init=False)
    _found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    _ends: list[tuple[NDArray[np.int64], NDArray[np.bool_]]] = field(default_factory=list)
    _struck: list[NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        outputs = ((i, site) for i, site in enumerate(self.space.sites) if site.kind == "output")
        listed = [(i, site.name) for i, site in outputs if site.steps is None]
        self.sites = tuple(name for _, name in listed)
        self._positions = np.array([i for i, _ in listed], dtype=np.int64)
        self.golden, self.faulty = (_nothing(len(listed)) for _ in range(2))
        self.changed = np.zeros(len(listed), dtype=np.int64)

    @property
    def trials(self) -> int:
        """The number of trials of all runs so far."""
        return sum(len(struck) for struck in self._struck)

    def begin(self, trials: Trials, run: NDArray[np.int64]) -> None:
        """Note the first site that each of *trials* strikes; they are numbered behind those of earlier runs.

        *run* are the trials that an executor will run, numbered by it from 0.
        """
        self._numbers = self.trials + run
        known = {name: i for i, name in enumerate(self.space.names)}
        place = np.array([known[site.name] for site in trials.sites], dtype=np.int64)
        first = np.full(len(trials), len(known), dtype=np.int64)
        np.minimum.at(first, trials.owner, place[trials.site])
        self._struck.append(first)

    def add(self, trial: NDArray[np.int64], golden: Tensor, faulty: Tensor, changed: Tensor) -> None:
        """Add lanes, numbered by the executor: summaries (sites, lanes, 5) and where they *changed* (sites, lanes)."""
        self.lanes += len(trial)
        _merge(self.golden, golden)
        _merge(self.faulty, faulty)
        differs = changed.cpu().numpy()
        self.changed += differs.sum(1)
        last = np.where(differs.any(0), len(self.sites) - 1 - differs[::-1].argmax(0), -1) if len(differs) else -1
        self._found.append((self._numbers[trial], np.broadcast_to(last, len(trial)).astype(np.int64)))

    def finish(self, lanes: Lanes) -> None:
        """Note which finished *lanes* have golden outputs, bit for bit."""
        same = lanes.masked.copy()
        if not same.all():
            pairs = zip(leaves(lanes.golden), leaves(lanes.faulty), strict=True)
            equal = [identical_lanes(a.contiguous(), b.contiguous()).cpu().numpy() for a, b in pairs]
            same |= np.logical_and.reduce(equal)
        self._ends.append((lanes.trial + self.trials - len(self._struck[-1]), same))

    def table(self, *, level: float = 0.95) -> "pd.DataFrame":
        """Return a row per output site, in execution order: statistics, and the lanes whose error is alive there.

        The columns are site; lanes; changed, the lanes that differ from golden, and their share with its Wilson
        interval (share, low, high); for golden and faulty values the smallest, largest and mean of the finite ones and
        the share of NaN and infinite ones (golden_min, golden_max, golden_mean, golden_non_finite, faulty_min, ...).
        """
        import pandas as pd

        rows: dict[str, object] = {"site": list(self.sites), "lanes": self.lanes, "changed": self.changed}
        rows["share"] = self.changed / max(self.lanes, 1)
        rows["low"], rows["high"] = wilson(self.changed, np.full(len(self.changed), self.lanes), level=level)
        for side, (low, high, total, count, lost) in (("golden", self.golden.T), ("faulty", self.faulty.T)):
            empty = count == 0
            rows[f"{side}_min"], rows[f"{side}_max"] = (np.where(empty, np.nan, x) for x in (low, high))
            rows[f"{side}_mean"] = total / np.where(empty, np.nan, count)
            rows[f"{side}_non_finite"] = lost / np.maximum(count + lost, 1)
        return pd.DataFrame(rows)

    def travel(self) -> "pd.DataFrame":
        """Return a row per trial: how far its error went.

        The columns are trial, counted over all runs; last_changed, the last output site in execution order that
        differed from golden (empty for none); masked, whether the model's output is golden; and masked_at, for a masked
        trial, the first output site behind it, from which on all is golden (empty otherwise).
        """
        import pandas as pd

        count = self.trials
        last, masked = np.full(count, -1, dtype=np.int64), np.ones(count, dtype=bool)
        for trial, found in self._found:
            last[trial] = found
        for trial, same in self._ends:
            masked[trial] = same
        struck = np.concatenate(self._struck) if self._struck else np.zeros(0, dtype=np.int64)
        following = np.where(last >= 0, last + 1, np.searchsorted(self._positions, struck))
        names = np.array([*self.sites, ""], dtype=object)
        at = np.where(masked, names[np.minimum(following, len(self.sites))], "")
        return pd.DataFrame({"trial": np.arange(count), "last_changed": names[last], "masked": masked, "masked_at": at})


def _nothing(sites: int) -> Floats:
    return np.tile(np.array([np.inf, -np.inf, 0.0, 0.0, 0.0]), (sites, 1))


def _merge(held: Floats, found: Tensor) -> None:
    """Merge summaries (sites, lanes, 5) into those of the sites, in place."""
    if found.shape[1]:
        new = found.cpu().numpy()
        held[:, 0] = np.minimum(held[:, 0], new[:, :, 0].min(1))
        held[:, 1] = np.maximum(held[:, 1], new[:, :, 1].max(1))
        held[:, 2:] += new[:, :, 2:].sum(1)


def _summary(value: Tensor) -> Tensor:
    """Return the summary of each lane of *value* (lanes first), shape (lanes, 5), float64."""
    flat = value.reshape(len(value), -1)
    flat = flat.float() if flat.element_size() < 4 else flat
    fine = flat.isfinite()
    count = fine.sum(1)
    columns = (
        flat.where(fine, torch.inf).amin(1),
        flat.where(fine, -torch.inf).amax(1),
        flat.where(fine, 0.0).sum(1, dtype=torch.float64),
        count,
        flat.shape[1] - count,
    )
    return torch.stack([column.double() for column in columns], 1)


class SweepMonitor:
    """Fills *monitor* from the sweeps over one chunk, *golden*; *trial* numbers the chunk's trials in their run."""

    def __init__(self, monitor: Monitor, places: Mapping[str, Place], golden: Golden, trial: NDArray[np.int64]) -> None:
        self.monitor, self.golden, self.trial = monitor, golden, trial
        self.at: dict[int, list[tuple[int, int]]] = {}
        for number, name in enumerate(monitor.sites):
            self.at.setdefault(places[name].node, []).append((number, places[name].which))
        shape = (len(monitor.sites), golden.lanes, _SUMMARY)
        device = next((leaf.device for leaf in leaves(list(golden.values.values()))), torch.device("cpu"))
        self.rows = torch.zeros(shape, dtype=torch.float64, device=device)
        for position, found in self.at.items():
            node = golden.program.nodes[position]
            for number, which in found:
                self.rows[number] = _summary(self._part(node, golden.values[position], which, None))

    def begin(self, trials: NDArray[np.int64], rows: Tensor) -> None:
        """Expect a sweep of the chunk's *trials*, on the *rows* of golden."""
        self.trials, self.before = trials, self.rows[:, rows]
        self.after = self.before.clone()
        self.differs = torch.zeros(self.after.shape[:2], dtype=torch.bool, device=rows.device)

    def __call__(self, sweep: Sweep, node: Node) -> None:
        """Look at the value of *node* in the lanes that a fault has reached."""
        value, count = sweep.values.get(node.position, (None, 0))
        if not count:
            return
        for number, which in self.at.get(node.position, ()):
            mine = self._part(node, value, which, None)[:count]
            theirs = self._part(node, self.golden.values[node.position], which, sweep.inputs[:count])
            self.after[number, sweep.lane[:count]] = _summary(mine)
            self.differs[number, sweep.lane[:count]] = ~identical_lanes(mine.contiguous(), theirs.contiguous())

    def end(self) -> None:
        """Hand the lanes of the sweep to the monitor."""
        self.monitor.add(self.trial[self.trials], self.before, self.after, self.differs)

    @staticmethod
    def _part(node: Node, value: object, which: int, index: Tensor | None) -> Tensor:
        part = value[which] if isinstance(value, tuple | list) else value
        layout = node.layout[which] if isinstance(node.layout, tuple) else node.layout
        assert isinstance(part, Tensor)
        assert isinstance(layout, Layout)
        return lanes_first(part if index is None else take(part, layout, index), layout)


@dataclass(eq=False)
class HooksMonitor:
    """Fills *monitor* from full passes: a golden one over the inputs of a batch of lanes, then the faulty one."""

    monitor: Monitor
    layouts: Mapping[str, Layout]
    golden: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, moment: Moment) -> Sequence[Tensor] | None:
        """Keep what the call gives."""
        role = moment.role.partition("#")[0]  # of a cell that is called once
        if role.rstrip("0123456789") == "output":
            for i, tensor in enumerate(moment.tensors):
                name = f"{moment.base}:{role}{i or ''}"
                if name in self.layouts:
                    self.seen[name] = lanes_first(tensor, self.layouts[name]).detach().clone()
        return None

    def begin(self) -> None:
        """Take what was seen since the last call for golden."""
        self.golden, self.seen = self.seen, {}

    def end(self, trial: NDArray[np.int64]) -> None:
        """Hand the lanes of the two passes to the monitor; *trial* numbers them in their run."""
        pairs = [(self.golden[name], self.seen[name]) for name in self.monitor.sites]
        before, after = (torch.stack([_summary(pair[i]) for pair in pairs]) for i in range(2))
        differs = torch.stack([~identical_lanes(a.contiguous(), b.contiguous()) for a, b in pairs])
        self.monitor.add(trial, before, after, differs)
        self.golden, self.seen = {}, {}
