"""Monitors: what activations look like with and without faults, and how far the error of each trial travels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Tree
from torchfault.engine.executor import Lanes
from torchfault.engine.graph.golden_pass import Golden
from torchfault.engine.graph.sweep import Sweep
from torchfault.errors import EngineError
from torchfault.model.foreign import of_tensor
from torchfault.model.lane_axis import LaneAxis, identical_lanes, lanes_first, take
from torchfault.model.places import Place
from torchfault.model.program import Node, Ref
from torchfault.model.watch import Moment
from torchfault.names import site_name
from torchfault.space import FaultSpace
from torchfault.statistics import wilson
from torchfault.trials import Trials

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HooksMonitor", "Monitor", "MonitorRun", "SweepMonitor"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_SUMMARY = 5  # smallest, largest and sum of the finite values, their number, and that of the others


@dataclass(eq=False)
class Monitor:
    """Gathers statistics of every output and state in *space* while an engine runs trials, and where their errors end.

    Give it to :meth:`torchfault.Engine.run`, or to several runs, which may take turns; ask for tables at any time: what
    has not been run yet is missing there. Golden statistics are those of the same inputs, once for every lane, so that
    the two stand side by side.

    >>> from torch import nn
    >>> import torchfault as tf
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> engine = tf.Engine(model, tf.Data(torch.randn(5, 4)))
    >>> space = engine.space.select("0.weight", bits=[30])
    >>> from torchfault.faults import BitFlip
    >>> from torchfault.trials import strike
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
    changed: Ints = field(init=False)
    _sites_changed: Ints = field(init=False)
    _positions: Ints = field(init=False)
    _begin: Ints = field(init=False)
    _step: Ints = field(init=False)
    _found: list[tuple[Ints, Ints, Ints]] = field(default_factory=list)
    _ends: list[tuple[Ints, NDArray[np.bool_]]] = field(default_factory=list)
    _struck: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The exponents of blocks stand for the same values as their codes.
        shown = (i for i, site in enumerate(self.space.sites) if site.kind in ("output", "state"))
        listed = [(i, self.space.sites[i]) for i in shown if not site_name(self.space.sites[i].name).block]
        self.sites = tuple(site.name for _, site in listed)
        self._positions = np.array([i for i, _ in listed], dtype=np.int64)
        # One row for each time step of a site, or a single one without a step.
        steps = [np.arange(*site.steps) if site.steps else np.array([-1]) for _, site in listed]
        self._begin = np.cumsum([0, *map(len, steps)])[:-1]
        self._step = np.concatenate([*steps, np.zeros(0)]).astype(np.int64)
        self.golden, self.faulty = (_nothing(len(self._step)) for _ in range(2))
        self.changed, self._sites_changed = (np.zeros(n, dtype=np.int64) for n in (len(self._step), len(listed)))

    @property
    def trials(self) -> int:
        """The number of trials of all runs so far."""
        return sum(len(struck) for struck in self._struck)

    def begin(self, trials: Trials) -> "MonitorRun":
        """Return what gathers for a run of *trials*, which are numbered behind those of runs that began earlier."""
        numbers = self.trials + np.arange(len(trials))
        known = {name: i for i, name in enumerate(self.space.names)}
        place = np.array([known[site.name] for site in trials.sites], dtype=np.int64)
        first = np.full(len(trials), len(known), dtype=np.int64)
        np.minimum.at(first, trials.owner, place[trials.site])
        self._struck.append(first)
        return MonitorRun(self, numbers)

    def add(self, trial: Ints, golden: Tensor, faulty: Tensor, changed: Tensor) -> None:
        """Add lanes: summaries (rows, lanes, 5) and where they *changed* (rows, lanes); *trial* counts over all runs.

        The rows are those of all sites one after the other, one for each time step.
        """
        self.lanes += len(trial)
        _merge(self.golden, golden)
        _merge(self.faulty, faulty)
        differs = changed.cpu().numpy()
        self.changed += differs.sum(1)
        last = step = np.full(len(trial), -1, dtype=np.int64)
        if len(differs):
            sites = np.logical_or.reduceat(differs, self._begin)
            self._sites_changed += sites.sum(1)
            last = np.where(sites.any(0), len(self.sites) - 1 - sites[::-1].argmax(0), -1)
            step = np.where(differs, self._step[:, None], -1).max(0)
        self._found.append((trial, last, step))

    def end(self, trial: Ints, masked: NDArray[np.bool_]) -> None:
        """Note which of the trials, counted over all runs, have golden outputs."""
        self._ends.append((trial, masked))

    def table(self, *, by: Literal["site", "step"] = "site", level: float = 0.95) -> "pd.DataFrame":
        """Return a row per output and state, in execution order: statistics, and the lanes whose error is alive there.

        The columns are site; lanes; changed, the lanes that differ from golden, and their share with its Wilson
        interval (share, low, high); for golden and faulty values the smallest, largest and mean of the finite ones and
        the share of NaN and infinite ones (golden_min, golden_max, golden_mean, golden_non_finite, faulty_min, ...).
        A site with time steps is taken over all of them, *by* step there is a row for each, and a column step.
        """
        import pandas as pd

        names, changed, golden, faulty = list(self.sites), self._sites_changed, self.golden, self.faulty
        steps: dict[str, object] = {}
        if by == "step":
            counts = np.diff([*self._begin, len(self._step)])
            names, changed = [name for name, n in zip(names, counts, strict=True) for _ in range(n)], self.changed
            steps["step"] = _or_nothing(self._step)
        elif names:
            golden, faulty = (_joined(summary, self._begin) for summary in (golden, faulty))
        rows: dict[str, object] = {"site": names, **steps, "lanes": self.lanes, "changed": changed}
        rows["share"] = changed / max(self.lanes, 1)
        rows["low"], rows["high"] = wilson(changed, np.full(len(changed), self.lanes), level=level)
        for side, (low, high, total, count, lost) in (("golden", golden.T), ("faulty", faulty.T)):
            empty = count == 0
            rows[f"{side}_min"], rows[f"{side}_max"] = (np.where(empty, np.nan, x) for x in (low, high))
            rows[f"{side}_mean"] = total / np.where(empty, np.nan, count)
            rows[f"{side}_non_finite"] = lost / np.maximum(count + lost, 1)
        return pd.DataFrame(rows)

    def travel(self) -> "pd.DataFrame":
        """Return a row per trial: how far its error went.

        The columns are trial, counted over all runs in the order in which they began; last_changed, the last site in
        execution order that differed from golden, at whatever time step (empty for none); last_step, the last time step
        at which any site did (missing for none); masked, whether the model's output is golden; and masked_at, for a
        masked trial, the first site behind the last one, from which on all is golden (empty otherwise). All are missing
        for a trial that has not been run yet.
        """
        import pandas as pd

        last, step, masked, pending = self._gathered()
        struck = np.concatenate(self._struck) if self._struck else np.zeros(0, dtype=np.int64)
        following = np.where(last >= 0, last + 1, np.searchsorted(self._positions, struck))
        names = np.array([*self.sites, ""], dtype=object)
        at = np.where(masked, names[np.minimum(following, len(self.sites))], "")
        where, masked_at = names[last], at.astype(object)
        where[pending] = masked_at[pending] = None
        ends = {"last_changed": where, "last_step": _or_nothing(np.where(pending, -1, step))}
        ends |= {"masked": pd.arrays.BooleanArray(masked, pending), "masked_at": masked_at}
        return pd.DataFrame({"trial": np.arange(self.trials), **ends})

    def reach(self) -> Ints:
        """Return how far the error of each trial came, shape (trials,).

        That is the position in :attr:`sites` of the last one that differed from golden, -1 where none did, and their
        number where the model's output differs. Raises :class:`EngineError` while trials have not been run.
        """
        last, _, masked, pending = self._gathered()
        if pending.any():
            raise EngineError(f"{pending.sum()} trials of the monitor have not been run yet; run them first")
        return np.where(masked, last, len(self.sites))

    def _gathered(self) -> tuple[Ints, Ints, NDArray[np.bool_], NDArray[np.bool_]]:
        """Return by trial the last site and step that differed, whether it was masked, and whether it is missing."""
        last, step = (np.full(self.trials, -1, dtype=np.int64) for _ in range(2))
        masked, pending = (np.full(self.trials, value) for value in (False, True))
        for trial, found, when in self._found:
            last[trial], step[trial] = found, when
        for trial, same in self._ends:
            masked[trial], pending[trial] = same, False
        return last, step, masked, pending


@dataclass(frozen=True, eq=False)
class MonitorRun:
    """What *monitor* gathers of one run; *numbers* are those that it gives the trials of the executor."""

    monitor: Monitor
    numbers: Ints

    def take(self, trial: Ints) -> "MonitorRun":
        """Return the same for an executor that is given some of the trials."""
        return MonitorRun(self.monitor, self.numbers[trial])

    def finish(self, lanes: Lanes) -> None:
        """Note which finished *lanes* have golden outputs, as executors with a monitor know; crashed ones have none."""
        self.monitor.end(self.numbers[lanes.trial], lanes.masked & ~lanes.crashed)


def _or_nothing(step: Ints) -> "pd.arrays.IntegerArray":
    """Return a column of time steps, in which -1 is missing."""
    import pandas as pd

    return pd.arrays.IntegerArray(step, step < 0)


def _joined(rows: Floats, begin: Ints) -> Floats:
    """Return the summaries of sites from those of their time steps."""
    low, high = np.minimum.reduceat(rows[:, 0], begin), np.maximum.reduceat(rows[:, 1], begin)
    return np.column_stack([low, high, np.add.reduceat(rows[:, 2:], begin)])


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
    """Fills the monitor of *run*, that of the chunk's trials, from the sweeps over one chunk, *golden*.

    *places* tells where a site is, at each of its time steps.
    """

    def __init__(self, run: MonitorRun, places: Mapping[str, Sequence[Place]], golden: Golden) -> None:
        self.run, self.golden = run, golden
        self.at: dict[int, list[tuple[int, int]]] = {}
        watched = [place for name in run.monitor.sites for place in places[name]]
        for number, place in enumerate(watched):
            self.at.setdefault(place.node, []).append((number, place.which))
        shape = (len(watched), golden.lanes, _SUMMARY)
        self.rows = torch.zeros(shape, dtype=torch.float64, device=golden.device)
        for position, found in self.at.items():
            node = golden.program.nodes[position]
            for number, which in found:
                self.rows[number] = _summary(self._part(node, golden.values[position], which, None))

    def begin(self, trials: Ints, rows: Tensor, struck: Mapping[int, Tensor]) -> None:
        """Expect a sweep of the chunk's *trials*, on the *rows* of golden; *struck* are the lanes struck at a node."""
        self.trials, self.before, self.struck = trials, self.rows[:, rows], struck
        self.after = self.before.clone()
        self.differs = torch.zeros(self.after.shape[:2], dtype=torch.bool, device=rows.device)
        self.alive: dict[int, Tensor] = {}

    def __call__(self, sweep: Sweep, node: Node) -> None:
        """Look at the value of *node* in the lanes that a fault has reached.

        Only what is struck, or reads what differs, can differ: another shape than that of the golden pass rounds
        otherwise, and must not bring an error back to life that has ended.
        """
        value, count = sweep.values.get(node.position, (None, 0))
        if not count:
            return
        lanes, reached = sweep.lane[:count], self._reached(node)
        if not reached[lanes].any():
            return
        golden, parts = self.golden.take(node.position, sweep.inputs[:count]), dict[int, Tensor]()
        for which in self._parts(node):
            mine = self._part(node, value, which, None)[:count].contiguous()
            theirs = self._part(node, golden, which, None).contiguous()
            parts[which] = reached[lanes] & ~identical_lanes(mine, theirs)
        differs = torch.stack([*parts.values(), torch.zeros_like(reached[lanes])]).any(0)
        self.alive[node.position] = torch.zeros_like(reached).index_put((lanes,), differs)
        for number, which in self.at.get(node.position, ()):
            changed = lanes[parts[which]]
            self.after[number, changed] = _summary(self._part(node, value, which, None)[:count][parts[which]])
            self.differs[number, changed] = True

    def _reached(self, node: Node) -> Tensor:
        """Return which lanes are struck at *node*, or differ from golden in what it reads, shape (lanes,)."""
        reached = torch.zeros(len(self.trials), dtype=torch.bool, device=self.rows.device)
        if node.position in self.struck:
            reached[self.struck[node.position]] = True
        for source in node.reads:
            if source in self.alive:
                reached |= self.alive[source]
        return reached

    def masked(self, lanes: Tensor) -> NDArray[np.bool_]:
        """Return which of the sweep's *lanes* give golden outputs."""
        ends = [part.node for part in self.golden.program.outputs if isinstance(part, Ref)]
        differs = [self.alive[node][lanes] for node in ends if node in self.alive]
        return ~torch.stack([*differs, torch.zeros_like(lanes, dtype=torch.bool)]).any(0).cpu().numpy()

    def end(self) -> None:
        """Hand the lanes of the sweep to the monitor."""
        self.run.monitor.add(self.run.numbers[self.trials], self.before, self.after, self.differs)

    @staticmethod
    def _parts(node: Node) -> list[int]:
        """Return the tensors of a node's value that have a row for each lane."""
        layouts = node.layout if isinstance(node.layout, tuple) else (node.layout,)
        return [which for which, layout in enumerate(layouts) if isinstance(layout, LaneAxis)]

    @staticmethod
    def _part(node: Node, value: object, which: int, index: Tensor | None) -> Tensor:
        part = value[which] if isinstance(value, tuple | list) else value
        layout = node.layout[which] if isinstance(node.layout, tuple) else node.layout
        assert isinstance(part, Tensor)
        assert isinstance(layout, LaneAxis)
        return lanes_first(part if index is None else take(part, layout, index), layout)


@dataclass(eq=False)
class HooksMonitor:
    """Fills the monitor of *run* from full passes: a golden one over the inputs of a batch, then the faulty one.

    *parts* names the sites with time steps as they are called at each.
    """

    run: MonitorRun
    layouts: Mapping[str, LaneAxis]
    parts: Mapping[str, Sequence[str]]
    golden: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    outputs: Tree = None

    def __call__(self, moment: Moment) -> Sequence[Tensor] | None:
        """Keep what the call gives, or the state that it leaves."""
        if moment.kind in ("output", "state"):
            for i, tensor in enumerate(moment.tensors):
                name = moment.name(i)
                if name in self.layouts:
                    room = of_tensor(tensor)
                    plain = tensor if room is None else room.values(tensor)
                    self.seen[name] = lanes_first(plain, self.layouts[name]).detach().clone()
        return None

    def begin(self, outputs: Tree) -> None:
        """Take what was seen since the last call for golden, and the *outputs* that it ended in."""
        self.golden, self.seen, self.outputs = self.seen, {}, outputs

    def end(self, trial: Ints) -> None:
        """Hand the lanes of the two passes to the monitor; *trial* numbers them in their run."""
        names = [part for name in self.run.monitor.sites for part in self.parts.get(name, (name,))]
        columns = zip(*(self._pair(name, len(trial)) for name in names), strict=True)
        # Layers may stand on several devices, and what no pass has reached on none.
        before, after, differs = (torch.stack([part.cpu() for part in column]) for column in columns)
        self.run.monitor.add(self.run.numbers[trial], before, after, differs)
        self.golden, self.seen = {}, {}

    def _pair(self, name: str, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summaries of a site in the golden and the faulty pass, and in which lanes they differ.

        A pass that ended early, in an error that is detected, has changed nothing behind it. What no pass has reached
        has no values; what only the faulty one has reached differs.
        """
        golden = self.golden.get(name)
        faulty = self.seen.get(name, golden)
        none = torch.from_numpy(_nothing(lanes))
        if faulty is None:
            return none, none, torch.zeros(lanes, dtype=torch.bool, device="cpu")
        if golden is None:
            return none, _summary(faulty), torch.ones(lanes, dtype=torch.bool, device="cpu")
        return _summary(golden), _summary(faulty), ~identical_lanes(golden.contiguous(), faulty.contiguous())
