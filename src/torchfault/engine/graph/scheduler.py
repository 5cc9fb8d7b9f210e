"""All trials on one chunk of inputs: the silent leave at once, the local go on in boxes, the rest fills sweeps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.engine.crashes import separated
from torchfault.engine.device_memory import free_bytes, tensor_bytes
from torchfault.engine.executor import Lanes
from torchfault.engine.graph.boxes import Local, LocalLanes, has_windows, is_small, receptive_window
from torchfault.engine.graph.channels import Channel, ChannelLanes, in_channels
from torchfault.engine.graph.events import Events
from torchfault.engine.graph.golden_pass import Footprint, Golden
from torchfault.engine.graph.groups import Group
from torchfault.engine.graph.parts import Part, PartialLanes, walk
from torchfault.engine.graph.patches import Patch
from torchfault.engine.graph.striker import Striker
from torchfault.engine.graph.sweep import Schedule, Sweep
from torchfault.engine.monitor import SweepMonitor
from torchfault.errors import lacks_memory
from torchfault.model.lane_axis import LaneAxis, identical_lanes, lanes_first
from torchfault.model.places import lane_arguments
from torchfault.model.program import Node, Ref, Value
from torchfault.trials import Trials

__all__ = ["ChunkRun"]

_AT_ONCE = 512

Ints = NDArray[np.int64]
Strike = Callable[[Sweep, Node, Value, int], Value]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Trials that board at one node, with the parts of values that they have computed already, if any."""

    trials: Ints
    parts: Mapping[int, Part] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


class ChunkRun:
    """Runs *trials*, all of whose inputs *golden* holds, in at most *memory* bytes besides golden.

    *monitor*, if there is one, looks on.
    """

    def __init__(
        self,
        trials: Trials,
        events: Events,
        golden: Golden,
        striker: Striker,
        plan: Schedule,
        footprint: Footprint,
        memory: int,
        monitor: SweepMonitor | None = None,
    ) -> None:
        self.trials, self.events, self.golden, self.striker = trials, events, golden, striker
        self.plan, self.footprint, self.monitor = plan, footprint, monitor
        self.device = striker.device
        self.memory = min(memory, free_bytes(self.device))  # asked once: to ask makes the host wait
        self.rows = self._tensor(golden.rows(trials.inputs))
        self.begin = events.offsets[:-1].copy()  # the first event of each trial that is not known to change nothing
        self.waiting: dict[int, list[_Waiting]] = {}
        self.most = len(trials)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def lanes(self) -> Iterator[Lanes]:
        """Yield the outcome of every trial."""
        order = np.argsort(self.events.first, kind="stable")
        nodes, starts = np.unique(self.events.first[order], return_index=True)
        boarding = dict(zip(nodes.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
        # What is silent is told together, for to judge a few lanes takes as long: 6 % of upsets on 1,000 images.
        gone, most = [order[:0]], self._at_once(0)
        while boarding:
            node = min(boarding)
            here = boarding.pop(node)
            step = self._at_once(node)
            for begin in range(0, len(here), step):
                silent, later = self._prepared(node, here[begin : begin + step])
                gone.append(silent)
                if sum(map(len, gone)) >= most:
                    yield self._masked(np.concatenate(gone))
                    gone = [order[:0]]
                for at in np.unique(self.events.node[self.begin[later]]).tolist():
                    mine = later[self.events.node[self.begin[later]] == at]
                    boarding[at] = np.concatenate([boarding.get(at, mine[:0]), mine])
                yield from self._sweep_full()
        if sum(map(len, gone)):
            yield self._masked(np.concatenate(gone))
        yield from self._sweep_rest()

    def _prepared(self, node: int, trials: Ints) -> tuple[Ints, Ints]:
        """Prepare *trials*; where there is no memory for that, let them all wait for a sweep."""
        waiting = {at: list(queue) for at, queue in self.waiting.items()}
        try:
            return self._prepare(node, trials)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
        self.waiting = waiting
        self._wait(node, trials)
        return trials[:0], trials[:0]

    def _prepare(self, node: int, trials: Ints) -> tuple[Ints, Ints]:
        """Let trials that board at *node* wait for a sweep, but for those that turn out to change nothing there.

        Returns those of which nothing else happens, and those whose word another operation reads later.
        """
        begin, none = self.begin[trials], trials[:0]
        left = self.events.offsets[trials + 1] - begin
        alone = (left == 1) | (np.diff(self.trials.offsets)[trials] == 1)  # one word, read once or by several
        if self.monitor is not None:  # every lane is looked at in the sweep, from where it is struck
            alone[:] = False
        self._wait(node, trials[~alone])
        if not alone.any():
            return none, none
        mine, silent = trials[alone], []
        rows = self.events.row[begin[alone]]
        operation = self.plan.program.nodes[node]
        for group in self.striker.groups(torch.arange(len(mine), device=self.device), rows):
            members = mine[group.lanes.cpu().numpy()]
            inputs = replace(group, lanes=self.rows[self._tensor(members)])
            silent.append(self._prepare_group(operation, inputs, members))
        unchanged = np.concatenate(silent)
        self.begin[unchanged] += 1
        ended = self.begin[unchanged] == self.events.offsets[unchanged + 1]
        return unchanged[ended], unchanged[~ended]

    def _prepare_group(self, node: Node, group: Group, trials: Ints) -> Ints:
        """Prepare trials struck once, in one site; *group* has the rows of golden as lanes."""
        local = self._first_box(node, group)
        if local is not None:
            return self._walked(LocalLanes(self.golden, group.lanes, self.plan.last_reader), node, local, trials)
        patch = None
        if group.place.role != "output" and isinstance(node.layout, LaneAxis):
            patch = self.striker.patch(node, group, self.golden.values.__getitem__)
        if patch is None:
            self._wait(node.position, trials)
            return trials[:0]
        return self._prepare_patched(node, patch, group.lanes, trials)

    def _prepare_patched(self, node: Node, patch: Patch, rows: Tensor, trials: Ints) -> Ints:
        """Prepare trials whose strike has a closed form; those that nothing else strikes go on in the one channel."""
        value = self.golden.values[node.position]
        assert isinstance(node.layout, LaneAxis)
        before = patch.read(lanes_first(value, node.layout), rows)
        after = patch.onto(before)
        same, goes = identical_lanes(after, before), in_channels(node, value, patch, before, after)
        goes &= ~same & self._tensor(self.events.offsets[trials + 1] - self.begin[trials] == 1)
        alike, local = same.cpu().numpy(), goes.cpu().numpy()
        silent: Ints = trials[alike]
        self._wait(node.position, trials[~alike & ~local])
        if not local.any():
            return silent
        lanes = ChannelLanes(self.golden, rows[goes], self.plan.last_reader)
        masked = self._walked(lanes, node, Channel(patch.index[0][goes], after[goes].unsqueeze(1)), trials[local])
        return np.concatenate([silent, masked])

    def _first_box(self, node: Node, group: Group) -> Local | None:
        """Return the box in which the value of *node* changes, where that is known to be a small part of it."""
        if group.place.role == "parameter" or not has_windows(node, self.golden.like(node.position)):
            return None
        lanes = LocalLanes(self.golden, group.lanes, self.plan.last_reader)
        if group.place.role == "output":
            return self._struck_box(lanes, node.position, group)
        operands = lane_arguments(node, self.plan.program)
        source = operands[group.place.which]
        if operands.count(source) > 1 or not has_windows(self.plan.program.nodes[source], self.golden.like(source)):
            return None
        if node.op.startswith("conv") and node.args[0] == Ref(source) and not group.place.part:
            return self._patched_box(lanes, node, group, source)
        struck = self._struck_box(lanes, source, group)
        return None if struck is None else lanes.first_step(node, source, struck)

    def _struck_box(self, lanes: LocalLanes, node: int, group: Group) -> Local | None:
        """Return the box of the pixels that are edited: one, or those of a block, if they are a small part of all."""
        value = self.golden.values[node]
        found = self.striker.editor.changed(group, value, LaneAxis(0))
        if found is None:
            return None
        channel, *places = torch.unravel_index(found[0], value.shape[1:])
        place, image = torch.stack(places, 2), tuple(value.shape[2:])
        low, high = place.amin(1), place.amax(1)
        size = tuple((high - low).amax(0).add(1).tolist())
        if found[0].shape[1] > 1 and not is_small(size, image):
            return None
        offset = low.minimum(torch.tensor([n - s for n, s in zip(image, size, strict=True)], device=self.device))
        data, lane = lanes.box(node, offset, size), torch.arange(len(low), device=self.device)[:, None]
        data[(lane, *(place - offset[:, None]).unbind(2), channel)] = found[1]
        return Local(offset, data)

    def _patched_box(self, lanes: LocalLanes, node: Node, group: Group, source: int) -> Local | None:
        """Return the box of a convolution's output that one changed input reaches, from the closed form."""
        value = self.golden.values[node.position]
        shape = self.golden.values[source].shape[1:]
        place = torch.stack(torch.unravel_index(self.striker.editor.edits(group).element, shape)[1:], 1)
        found = receptive_window(node, self.plan.program, place, (1,) * place.shape[1], tuple(value.shape[2:]))
        patch = self.striker.patch(node, group, self.golden.values.__getitem__) if found else None
        if found is None or patch is None:
            return None
        offset, size = found
        data = lanes.box(node.position, offset, size)
        channel, *reached = patch.index
        relative = [p - offset[:, axis].view(-1, 1, 1) for axis, p in enumerate(reached)]
        lane = torch.arange(len(offset), device=self.device).view(-1, 1, 1)
        inside = [r.clamp(0, n - 1) for r, n in zip(relative, size, strict=True)]
        data[(lane, *inside, channel)] = patch.result(value, group.lanes)
        return Local(offset, data)

    def _walked(self, lanes: PartialLanes, node: Node, part: Part, trials: Ints) -> Ints:
        """Go on in parts from *node* as far as that goes; return the trials that nothing is left of."""
        walk(lanes, node.position, part)
        kept = lanes.index.cpu().numpy()
        if len(kept):
            if not lanes.values:  # nothing that anyone reads has changed
                return trials
            self._wait(lanes.at, trials[kept], lanes.values)
        gone: Ints = np.delete(trials, kept)
        return gone

    def _wait(self, node: int, trials: Ints, parts: Mapping[int, Part] | None = None) -> None:
        if len(trials):
            self.waiting.setdefault(node, []).append(_Waiting(trials, parts or {}))

    def _capacity(self, node: int) -> int:
        """Return how many lanes that board at *node* or later fit into the memory and, on a CPU, into the caches."""
        # A sixth: gathering, joining and comparing values hold copies beside what is alive.
        by_memory = self.memory // 6 // max(int(self.footprint.alive[node]), 1)
        by_tensor = tensor_bytes(self.device) // max(int(self.footprint.largest[node]), 1)
        return int(max(1, min(by_memory, by_tensor, self.most)))

    def _at_once(self, node: int) -> int:
        """Return how many lanes may be prepared together: their boxes are at most about half of a value each."""
        return int(max(1, min(_AT_ONCE, self.memory // 16 // max(int(self.footprint.largest[node]) // 2, 1))))

    def _sweep_full(self) -> Iterator[Lanes]:
        """Run sweeps for nodes at which enough lanes wait, or for all where their boxes take too much memory."""
        for at in [at for at, queue in self.waiting.items() if sum(len(w.trials) for w in queue) >= self._capacity(at)]:
            yield from self._sweep_queue([(at, w) for w in self.waiting.pop(at)])
        if sum(w.nbytes for queue in self.waiting.values() for w in queue) > self.memory // 10:
            yield from self._sweep_rest()

    def _sweep_rest(self) -> Iterator[Lanes]:
        queue = [(at, w) for at in sorted(self.waiting) for w in self.waiting[at]]
        self.waiting = {}
        yield from self._sweep_queue(queue)

    def _sweep_queue(self, queue: Sequence[tuple[int, _Waiting]]) -> Iterator[Lanes]:
        """Cut groups that wait, sorted by node, into sweeps that fit."""
        batch: list[tuple[int, _Waiting]] = []
        room = 0
        for at, group in queue:
            begin = 0
            while begin < len(group.trials):
                if not batch:
                    room = self._capacity(at)
                part = _part(group, begin, begin + room)
                batch.append((at, part))
                begin, room = begin + len(part.trials), room - len(part.trials)
                if not room:
                    yield from self._sweep_all(batch)
                    batch = []
        if batch:
            yield from self._sweep_all(batch)

    def _sweep_all(self, batch: Sequence[tuple[int, _Waiting]]) -> Iterator[Lanes]:
        """Run a sweep, and again in parts where it raises, until the lanes to blame are alone."""
        lanes = np.arange(sum(len(group.trials) for _, group in batch))
        for part, found in separated(lanes, lambda part: self._sweep(_cut(batch, int(part[0]), int(part[-1]) + 1))):
            yield from self._crashed(_cut(batch, int(part[0]), int(part[0]) + 1)) if found is None else found

    def _sweep(self, batch: Sequence[tuple[int, _Waiting]]) -> list[Lanes]:
        """Run one sweep; where it finds no memory, later ones have half as many lanes."""
        try:
            return self._swept(batch)
        except (RuntimeError, MemoryError) as error:
            if lacks_memory(error):
                self.most = max(1, sum(len(group.trials) for _, group in batch) // 2)
            raise

    def _swept(self, batch: Sequence[tuple[int, _Waiting]]) -> list[Lanes]:
        trials = np.concatenate([group.trials for _, group in batch])
        boards = np.repeat([at for at, _ in batch], [len(group.trials) for _, group in batch])
        parted = np.repeat([bool(group.parts) for _, group in batch], [len(group.trials) for _, group in batch])
        strike, struck = self._strikes(trials, ~parted)
        settled = np.where(parted, boards, self.events.last[trials])
        inputs = self.rows[self._tensor(trials)]
        sweep = Sweep(self.plan, self.golden, inputs, boards.tolist(), settled, _boarding_parts(batch))
        if self.monitor is None:
            sweep.run(strike, frozenset(struck))
        else:
            self.monitor.begin(trials, inputs, struck)
            sweep.run(strike, frozenset(struck), self.monitor)
            self.monitor.end()
        found = [self._masked(trials[torch.cat(sweep.masked).cpu().numpy()])] if sweep.masked else []
        return [*found, self._finished(sweep, trials[sweep.lane.cpu().numpy()])] if len(sweep.inputs) else found

    def _strikes(self, trials: Ints, open_lanes: NDArray[np.bool_]) -> tuple[Strike, dict[int, Tensor]]:
        """Return what applies the events of the *open_lanes*, and the lanes by the nodes at which it must be called."""
        events = self.events
        first = self.begin[trials]
        counts = events.offsets[trials + 1] - first
        counts = np.where(open_lanes, counts, 0)
        index = np.repeat(first - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(counts.sum())
        lane = np.repeat(np.arange(len(trials)), counts)
        node_of = events.node[index]
        order = np.argsort(node_of, kind="stable")
        nodes, starts = np.unique(node_of[order], return_index=True)
        by_node = dict(zip(nodes.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}

        def strike(sweep: Sweep, node: Node, value: Value, aboard: int) -> Value:
            mine = by_node[node.position]
            where = torch.searchsorted(sweep.lane, self._tensor(lane[mine]))
            return self.striker.apply(node, value, where, events.row[index[mine]], lambda p: sweep.value(p, aboard))

        return strike, {node: self._tensor(lane[mine]) for node, mine in by_node.items()}

    def _finished(self, sweep: Sweep, trials: Ints) -> Lanes:
        faulty = self.plan.program.output(lambda node: sweep.value(node, len(sweep.inputs)))
        masked = np.zeros(len(trials), dtype=bool) if self.monitor is None else self.monitor.masked(sweep.lane)
        return Lanes(trials, self.trials.inputs[trials], self.golden.outputs(sweep.inputs), faulty, masked)

    def _masked(self, trials: Ints) -> Lanes:
        outputs = self.golden.outputs(self.rows[self._tensor(trials)])
        return Lanes(trials, self.trials.inputs[trials], outputs, outputs, np.ones(len(trials), dtype=bool))

    def _crashed(self, batch: Sequence[tuple[int, _Waiting]]) -> Iterator[Lanes]:
        for _, group in batch:
            all_of_them = np.ones(len(group.trials), dtype=bool)
            yield replace(self._masked(group.trials), masked=~all_of_them, crashed=all_of_them)


def _cut(batch: Sequence[tuple[int, _Waiting]], begin: int, end: int) -> list[tuple[int, _Waiting]]:
    """Return the lanes *begin* to *end* of a batch."""
    found, first = [], 0
    for at, group in batch:
        low, high = max(begin - first, 0), min(end - first, len(group.trials))
        if low < high:
            found.append((at, _part(group, low, high)))
        first += len(group.trials)
    return found


def _part(group: _Waiting, begin: int, end: int) -> _Waiting:
    """Return the trials *begin* to *end* of a group that waits, with their boxes."""
    if begin == 0 and end >= len(group.trials):
        return group
    end = min(end, len(group.trials))
    parts = {node: part.pick(slice(begin, end)) for node, part in group.parts.items()}
    return _Waiting(group.trials[begin:end], parts)


def _boarding_parts(batch: Sequence[tuple[int, _Waiting]]) -> dict[int, list[tuple[slice, Mapping[int, Part]]]]:
    """Return, for every node, the parts of those who board there, and which of them they belong to."""
    found: dict[int, list[tuple[slice, Mapping[int, Part]]]] = {}
    boarded: dict[int, int] = {}
    for at, group in batch:
        begin = boarded.get(at, 0)
        boarded[at] = begin + len(group.trials)
        if group.parts:
            found.setdefault(at, []).append((slice(begin, boarded[at]), group.parts))
    return found
