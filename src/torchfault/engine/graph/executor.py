"""The graph executor: lanes sorted by where they board, swept through the captured program in one growing batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from torchfault.data import Data, Tree, concatenate, leaves
from torchfault.engine.executor import Lanes, check_trials
from torchfault.engine.graph.events import events_of, strikes_of
from torchfault.engine.graph.golden_pass import Footprint, Golden, footprint, give_back_memory, golden_pass
from torchfault.engine.graph.modules import Modules
from torchfault.engine.graph.scheduler import ChunkRun
from torchfault.engine.graph.striker import Striker
from torchfault.engine.graph.sweep import Schedule, schedule
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.engine.monitor import MonitorRun, SweepMonitor
from torchfault.errors import EngineError, ModelError
from torchfault.model.arguments import data_sites
from torchfault.model.constants import find_constants
from torchfault.model.export import capture
from torchfault.model.fold import Fold
from torchfault.model.memory import homes
from torchfault.model.observe import probe_inputs
from torchfault.model.places import Place, program_sites
from torchfault.model.program import Program, Ref
from torchfault.model.states import find_cells
from torchfault.space import FaultSpace
from torchfault.storages import Stored
from torchfault.trials import Trials

__all__ = ["Captured", "GraphExecutor"]


@dataclass(frozen=True, eq=False)
class Captured:
    """A *program* with its sites and their *places*.

    *stored* tells how parameters are kept, by their nodes; *modules* finds what the modules that the operations of
    *program* run keep to themselves.
    """

    program: Program
    fold: Fold
    places: dict[str, Place]
    stored: Mapping[int, Stored] = field(default_factory=dict)
    modules: Modules | None = None


class GraphExecutor:
    """Runs trials on *model* within *memory* bytes for activations, as captured by ``torch.export`` unless told.

    Raises :class:`torchfault.errors.ModelError` where the model cannot be captured, and :class:`EngineError` where a
    single input needs more than *memory*.
    """

    name = "graph"

    def __init__(
        self, model: nn.Module, data: Data, *, memory: int, buffers: bool = False, captured: Captured | None = None
    ) -> None:
        self.model, self.data, self.memory, self.buffers = model, data, memory, buffers
        captured = captured or _exported(model, data, buffers=buffers)
        tensors = (*model.parameters(), *leaves(data.inputs))
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self.channels_last = self.device.type == "cpu" and _has_images(captured.program)
        self.program = _in_channels_last(captured.program) if self.channels_last else captured.program
        self.plan: Schedule = schedule(self.program)
        with torch.inference_mode():
            one = golden_pass(self.program, data.inputs, 0, 1, channels_last=self.channels_last)
            self.footprint: Footprint = footprint(self.program, one, self.plan.last_reader)
        self._fold, self.places = captured.fold, captured.places
        self.strikes = strikes_of(self.program, self.places)
        parts, places = self._fold.parts, self.places
        self.watched = {name: [places[p] for p in parts.get(name, (name,)) if p in places] for name in self.space.names}
        self.stored, self.modules = captured.stored, captured.modules
        self._kept: Golden | None = None
        if self.footprint.golden + int(self.footprint.alive.max()) > memory:
            need = (self.footprint.golden + int(self.footprint.alive.max())) / 2**20
            raise EngineError(
                f"one input needs {need:.0f} MiB for its activations, got a budget of {memory / 2**20:.0f} MiB; "
                "raise memory, or ask for executor='hooks'"
            )

    @property
    def space(self) -> FaultSpace:
        """Every input of the model, every parameter, and every input and output of an operation."""
        return self._fold.space

    @property
    def chunk(self) -> int:
        """The number of inputs whose golden values are kept at a time, in a third of the memory."""
        return int(max(1, min(len(self.data), self.memory // 3 // max(self.footprint.golden, 1))))

    def _golden(self, first: int) -> Golden:
        if self._kept is None or self._kept.first != first:
            if self._kept is not None:
                self.forget()
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
            parts.append(golden.outputs(index))
        return concatenate(parts)

    def forget(self) -> None:
        """Drop what is kept of the golden pass, and give its memory back."""
        self._kept = None
        give_back_memory()

    def run(self, trials: Trials, monitor: MonitorRun | None = None) -> Iterator[Lanes]:
        """Yield the outcomes of all trials, chunk of inputs by chunk of inputs.

        Those for which the program raises run under hooks at the end: whether the model does is what counts.
        """
        check_trials(trials, self._fold.space, len(self.data))
        return self._checked(trials, monitor)

    def _checked(self, trials: Trials, monitor: MonitorRun | None) -> Iterator[Lanes]:
        left = []
        for lanes in self._run(self._fold.unfold(trials), monitor):
            if lanes.crashed.any():
                left.append(lanes.trial)
            else:
                yield lanes
        if left:
            self.forget()  # the budget is for one executor at a time
            rest = np.concatenate(left)
            for lanes in self.hooks.run(trials.take(rest), None if monitor is None else monitor.take(rest)):
                yield replace(lanes, trial=rest[lanes.trial])

    @cached_property
    def hooks(self) -> HooksExecutor:
        """The executor that runs the model itself."""
        return HooksExecutor(self.model, self.data, memory=self.memory, buffers=self.buffers)

    def _run(self, trials: Trials, monitor: MonitorRun | None) -> Iterator[Lanes]:
        for chunk in np.unique(trials.inputs // self.chunk):
            mine = np.flatnonzero(trials.inputs // self.chunk == chunk)
            for lanes in self._run_chunk(trials.take(mine), int(chunk) * self.chunk, mine, monitor):
                yield replace(lanes, trial=mine[lanes.trial])

    def _run_chunk(
        self, trials: Trials, first: int, numbers: NDArray[np.int64], monitor: MonitorRun | None
    ) -> Iterator[Lanes]:
        events = events_of(trials, self.strikes)
        with torch.inference_mode():
            golden = self._golden(first)
            striker = Striker(self.program, self.places, trials, self.device, self.stored, self.modules)
            room = self.memory - self.footprint.golden * golden.lanes
            looking = None if monitor is None else SweepMonitor(monitor.take(numbers), self.watched, golden)
            found = ChunkRun(trials, events, golden, striker, self.plan, self.footprint, room, looking).lanes()
        while True:
            with torch.inference_mode():  # for our own work, and not for what happens to the lanes in between
                lanes = next(found, None)
            if lanes is None:
                return
            yield lanes


def _exported(model: nn.Module, data: Data, *, buffers: bool) -> Captured:
    kept = homes(model)
    if hidden := [home for home in kept if home.stored is None]:
        name = next(iter(hidden[0].words))
        raise ModelError(f"the captured graph does not show the stored words of '{name}'; hooks strike them")
    cells = find_cells(model, probe_inputs(data))
    if buffers and (numbers := find_constants(model, cells, probe_inputs(data))):
        raise ModelError(f"the captured graph has '{numbers[0]}' as a fixed number; hooks strike it")
    program = capture(model, data, cells=cells)
    with torch.inference_mode():
        one = golden_pass(program, data.inputs, 0, 1, channels_last=False)
        given = data_sites(model, data)
        sites, places = program_sites(model, program, one.values, lanes=1, buffers=buffers, given=given, cells=cells)
    nodes = program.parameters
    stored = {nodes[h.parameter]: h.stored for h in kept if h.stored is not None and h.parameter in nodes}
    return Captured(program, sites, places, stored)


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
