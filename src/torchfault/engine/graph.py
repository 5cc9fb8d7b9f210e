"""The graph executor: lanes sorted by where they board, swept through the captured program in one growing batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.engine.contract import Lanes
from torchfault.engine.golden import Footprint, Golden, footprint, golden_pass
from torchfault.engine.lanes import Schedule, Sweep, identical_lanes, schedule
from torchfault.engine.plan import Events, events_of, strikes_of
from torchfault.engine.strike import Striker
from torchfault.errors import EngineError
from torchfault.faults import Trials
from torchfault.model.capture import capture
from torchfault.model.data import Data, Tree, concatenate
from torchfault.model.graph_sites import Place, program_sites
from torchfault.model.layout import Layout, lanes_first
from torchfault.model.program import Node, Program, Ref, Value
from torchfault.space import FaultSpace

__all__ = ["GraphExecutor"]

# On a CPU a tensor beyond this leaves the caches, and glibc maps it anew from the system at every allocation.
_CPU_TENSOR_BYTES = 16 << 20
_GPU_TENSOR_BYTES = 512 << 20
_SCOUTED = 512


class GraphExecutor:
    """Runs trials on *model* as captured by ``torch.export``, within *memory* bytes for activations.

    Raises :class:`torchfault.errors.ModelError` where the model cannot be captured, and :class:`EngineError` where a
    single input needs more than *memory*.
    """

    name = "graph"

    def __init__(self, model: nn.Module, data: Data, *, memory: int, buffers: bool = False) -> None:
        self.data, self.memory = data, memory
        program = capture(model, data)
        self.device = next((v.device for v in program.constants.values() if isinstance(v, Tensor)), torch.device("cpu"))
        self.channels_last = self.device.type == "cpu" and _has_images(program)
        self.program = _in_channels_last(program) if self.channels_last else program
        self.plan: Schedule = schedule(self.program)
        with torch.inference_mode():
            one = golden_pass(self.program, data.inputs, 0, 1, channels_last=self.channels_last)
            self.footprint: Footprint = footprint(self.program, one, self.plan.last_reader)
        self._space, self.places = program_sites(model, self.program, one.values, lanes=1, buffers=buffers)
        self.strikes = strikes_of(self.program, self.places)
        self._kept: Golden | None = None
        if self.footprint.golden + int(self.footprint.alive.max()) > memory:
            need = (self.footprint.golden + int(self.footprint.alive.max())) / 2**20
            raise EngineError(
                f"one input needs {need:.0f} MiB for its activations, got a budget of {memory / 2**20:.0f} MiB; raise memory"
            )

    @property
    def space(self) -> FaultSpace:
        """Every parameter and every input and output of an operation."""
        return self._space

    @property
    def chunk(self) -> int:
        """The number of inputs whose golden values are kept at a time: half of the memory."""
        return int(max(1, min(len(self.data), self.memory // 2 // max(self.footprint.golden, 1))))

    def _golden(self, first: int) -> Golden:
        if self._kept is None or self._kept.first != first:
            self._kept = None
            self._kept = golden_pass(
                self.program, self.data.inputs, first, self.chunk, channels_last=self.channels_last
            )
        return self._kept

    @torch.inference_mode()
    def golden(self) -> Tree:
        """Return the outputs without faults, one row per input."""
        parts = []
        for first in range(0, len(self.data), self.chunk):
            golden = self._golden(first)
            index = torch.arange(golden.lanes, device=self.device)
            parts.append(self.program.unflatten(golden.outputs(index)))
        return concatenate(parts)

    def run(self, trials: Trials) -> Iterator[Lanes]:
        """Yield the outcome of every trial, chunk of inputs by chunk of inputs."""
        if len(trials) and not 0 <= trials.inputs.min() <= trials.inputs.max() < len(self.data):
            raise EngineError(f"inputs run from 0 to {len(self.data) - 1}, got {trials.inputs.min()} to "
                              f"{trials.inputs.max()}")  # fmt: skip
        for chunk in np.unique(trials.inputs // self.chunk):
            mine = np.flatnonzero(trials.inputs // self.chunk == chunk)
            for lanes in self._run_chunk(trials.take(mine), int(chunk) * self.chunk):
                yield replace(lanes, trial=mine[lanes.trial])

    def _run_chunk(self, trials: Trials, first: int) -> Iterator[Lanes]:
        events = events_of(trials, self.strikes)
        with torch.inference_mode():
            golden = self._golden(first)
            striker = Striker(self.program, self.places, trials, self.device)
            run = _Run(self, trials, events, golden, striker)
            yield from run.lanes()


class _Run:
    """One chunk's trials: those that change nothing leave at once, the others are packed into sweeps."""

    def __init__(
        self, owner: GraphExecutor, trials: Trials, events: Events, golden: Golden, striker: Striker
    ) -> None:
        self.owner, self.trials, self.events = owner, trials, events
        self.golden, self.striker = golden, striker
        self.rows = torch.from_numpy(trials.inputs - golden.first).to(owner.device)

    def lanes(self) -> Iterator[Lanes]:
        """Yield all outcomes."""
        order = np.argsort(self.events.first, kind="stable")
        waiting: list[NDArray[np.int64]] = []
        for node in np.unique(self.events.first):
            here = order[self.events.first[order] == node]
            for begin in range(0, len(here), _SCOUTED):
                part = here[begin : begin + _SCOUTED]
                stay, silent = self._scout(int(node), part)
                if len(silent):
                    yield self._masked(silent)
                waiting.append(stay)
                capacity = self._capacity(int(self.events.first[waiting[0][0]]) if len(waiting[0]) else int(node))
                while sum(map(len, waiting)) >= capacity:
                    together = np.concatenate(waiting)
                    yield from self._sweep(together[:capacity])
                    waiting = [together[capacity:]]
        rest = np.concatenate(waiting) if waiting else np.zeros(0, dtype=np.int64)
        if len(rest):
            yield from self._sweep(rest)

    def _capacity(self, node: int) -> int:
        """Return how many lanes that board at *node* or later fit into the memory and, on a CPU, into the caches."""
        need = self.owner.footprint
        budget = (self.owner.memory - need.golden * self.golden.lanes) // 2
        largest = _CPU_TENSOR_BYTES if self.owner.device.type == "cpu" else _GPU_TENSOR_BYTES
        by_memory = budget // max(int(need.alive[node]), 1)
        by_tensor = largest // max(int(need.largest[node]), 1)
        return int(max(1, min(by_memory, by_tensor)))

    def _scout(self, node: int, trials: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Split trials that board at *node* into those that change its value and those whose only fault does not."""
        offsets = self.events.offsets
        single = offsets[trials + 1] - offsets[trials] == 1
        silent = np.zeros(len(trials), dtype=bool)
        if single.any():
            mine = trials[single]
            silent[single] = self._unchanged(node, mine, self.events.row[offsets[mine]])
        return trials[~silent], trials[silent]

    def _unchanged(self, node: int, trials: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        program = self.owner.program
        operation = program.nodes[node]
        found = np.zeros(len(trials), dtype=bool)
        if not isinstance(operation.layout, Layout):
            return found
        values: Callable[[int], Value] = self.golden.values.__getitem__
        position = torch.arange(len(trials), device=self.owner.device)
        for group in self.striker.groups(position, rows):
            if group.place.role == "output":
                continue
            inputs = self.rows[torch.from_numpy(trials).to(self.owner.device)][group.lanes]
            patch = self.striker.patch(operation, replace(group, lanes=inputs), values)
            if patch is not None:
                output = lanes_first(values(node), operation.layout)
                same = identical_lanes(patch.result(output, inputs), patch.read(output, inputs))
                found[group.lanes.cpu().numpy()] = same.cpu().numpy()
        return found

    def _sweep(self, trials: NDArray[np.int64]) -> Iterator[Lanes]:
        events, device = self.events, self.owner.device
        offsets = events.offsets
        counts = offsets[trials + 1] - offsets[trials]
        index = np.repeat(offsets[trials] - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(counts.sum())
        lane = np.repeat(np.arange(len(trials)), counts)
        by_node = {int(n): np.flatnonzero(events.node[index] == n) for n in np.unique(events.node[index])}

        def strike(sweep: Sweep, node: Node, value: Value, aboard: int) -> Value:
            mine = by_node[node.position]
            where = torch.searchsorted(sweep.lane, torch.from_numpy(lane[mine]).to(device))
            rows = events.row[index[mine]]
            return self.striker.apply(node, value, where, rows, lambda p: sweep.value(p, aboard), aboard)

        inputs = self.rows[torch.from_numpy(trials).to(device)]
        settled = torch.from_numpy(events.last[trials]).to(device)
        sweep = Sweep(self.owner.plan, self.golden, inputs, events.first[trials].tolist(), settled)
        sweep.run(strike, frozenset(by_node))
        if sweep.masked:
            yield self._masked(trials[torch.cat(sweep.masked).cpu().numpy()])
        if len(sweep.inputs):
            yield self._finished(sweep, trials[sweep.lane.cpu().numpy()])

    def _finished(self, sweep: Sweep, trials: NDArray[np.int64]) -> Lanes:
        program, found = self.owner.program, []
        for output in program.outputs:
            if isinstance(output, Ref):
                layout = program.nodes[output.node].layout
                assert isinstance(layout, Layout)
                found.append(sweep.value(output.node, len(sweep.inputs)).movedim(layout.axis, 0))
            else:
                found.append(output)
        golden = program.unflatten(self.golden.outputs(sweep.inputs))
        masked = np.zeros(len(trials), dtype=bool)
        return Lanes(trials, self.trials.inputs[trials], golden, program.unflatten(found), masked)

    def _masked(self, trials: NDArray[np.int64]) -> Lanes:
        outputs = self.owner.program.unflatten(self.golden.outputs(self.rows[torch.from_numpy(trials).to(self.rows.device)]))
        return Lanes(trials, self.trials.inputs[trials], outputs, outputs, np.ones(len(trials), dtype=bool))


def _has_images(program: Program) -> bool:
    return any(node.op == "conv2d" for node in program.nodes)


def _in_channels_last(program: Program) -> Program:
    """Return *program* with the filters of its 2-d convolutions in the format that oneDNN works in."""
    constants = dict(program.constants)
    for node in program.nodes:
        if node.op == "conv2d" and isinstance(node.args[1], Ref) and node.args[1].node in constants:
            weight = constants[node.args[1].node]
            constants[node.args[1].node] = weight.contiguous(memory_format=torch.channels_last)
    return replace(program, constants=constants)
