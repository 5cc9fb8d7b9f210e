"""The graph executor: lanes sorted by where they board, swept through the captured program in one growing batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from torchfault.data import Data, Tree, concatenate, leaves, rows
from torchfault.engine.device_memory import give_back_memory, tensor_bytes
from torchfault.engine.executor import Lanes, check_trials
from torchfault.engine.graph.events import events_of, strikes_of
from torchfault.engine.graph.golden_pass import Footprint, Golden, footprint, golden_pass
from torchfault.engine.graph.kernels import for_processor, has_images
from torchfault.engine.graph.modules import Modules
from torchfault.engine.graph.scheduler import ChunkRun
from torchfault.engine.graph.segments import segments
from torchfault.engine.graph.spared import Reused, Spares, spares
from torchfault.engine.graph.striker import Striker
from torchfault.engine.graph.sweep import Schedule, schedule
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.engine.monitor import MonitorRun, SweepMonitor
from torchfault.engine.stored import Memory
from torchfault.errors import EngineError
from torchfault.model.discover import Discovery, find
from torchfault.model.disturb import plain_kernels
from torchfault.model.export import capture
from torchfault.model.memory import homes
from torchfault.model.opaque.trace import trace
from torchfault.model.places import Captured
from torchfault.model.program import Value
from torchfault.space import FaultSpace
from torchfault.trials import Trials

__all__ = ["GraphExecutor"]

_AT_ONCE = 4096
_FIRST = np.zeros(1, dtype=np.int64)
_AMPLE = 256 << 20  # bytes, half of which is more than sweeps take beside golden values
_SMALL = 16  # a part of the memory that outputs without faults may take for good


class GraphExecutor:
    """Runs trials on *model* within *memory* bytes for activations, swept through its captured graph.

    The sites are those of *found*, looked for unless given. A fault in stored words that no operation reads is masked
    for certain. What the graph does not show runs under hooks: words that modules keep to themselves, numbers that it
    has as constants, what concerns all lanes of a pass. *traced* captures by ``torch.fx`` (whole modules as operations)
    instead of ``torch.export``; so are, unless told, models whose modules keep words to themselves.

    Raises :class:`torchfault.errors.ModelError` where the model cannot be captured, and :class:`EngineError` where a
    single input needs more than *memory*.
    """

    name = "graph"

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        *,
        memory: int,
        buffers: bool = False,
        found: Discovery | None = None,
        traced: bool | None = None,
    ) -> None:
        self.model, self.data, self.memory = model, data, memory
        self.found = find(model, data, buffers=buffers) if found is None else found
        kept, self.stored, self.modules = homes(model), {}, None
        self.captured: Captured | None = None
        if traced or (traced is None and any(home.stored is None for home in kept)):
            followed = trace(model, data, self.found)
            program, self.places = followed.program, followed.places
            self.modules = Modules(Memory(model), followed.rows)
        else:
            self.captured = captured = capture(model, data, self.found)
            program, self.places = captured.program, captured.places
            nodes = program.parameters
            self.stored = {nodes[h.parameter]: h.stored for h in kept if h.stored is not None and h.parameter in nodes}
        tensors = (*model.parameters(), *leaves(data.inputs))
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        on_processor = self.device.type == "cpu"
        self.channels_last = on_processor and has_images(program)
        self.program = for_processor(program) if on_processor else program
        self.plan: Schedule = schedule(self.program)
        with torch.inference_mode(), plain_kernels():
            one = golden_pass(self.program, data.inputs, _FIRST, channels_last=self.channels_last)
            self.segments = segments(self.program, one.values, self.plan.last_reader, most=memory // 3)
            self.spares = self._spares(one.values)
            held = self.spares or self.segments
            self.footprint: Footprint = footprint(self.program, one, self.plan.last_reader, held.nbytes)
            del one
        step = max(1, tensor_bytes(self.device) // max(int(self.footprint.largest[0]), 1))
        self.reused = None if self.spares is None else Reused(self.spares.nodes, self.chunk, step)
        self.strikes = strikes_of(self.program, self.places)
        parts, places = self.found.fold.parts, self.places
        self.watched = {name: [places[p] for p in parts.get(name, (name,)) if p in places] for name in self.space.names}
        self._kept: Golden | None = None
        self._outputs: Tree | None = None
        if self.footprint.golden + int(self.footprint.alive.max()) > memory:
            need = (self.footprint.golden + int(self.footprint.alive.max())) / 2**20
            raise EngineError(
                f"one input needs {need:.0f} MiB for its activations, got a budget of {memory / 2**20:.0f} MiB; "
                "raise memory, or ask for executor='hooks'"
            )

    @property
    def space(self) -> FaultSpace:
        """Every site of the model, in execution order."""
        return self.found.space

    def _spares(self, one: Mapping[int, Value]) -> Spares | None:
        """Return what is not held of golden values where those of all inputs, each as large as *one*, do not fit."""
        if len(self.segments.starts) > 1 or self.segments.nbytes * len(self.data) <= self._most:
            return None
        return spares(self.program, one, self.plan.last_reader)

    @property
    def _most(self) -> int:
        """The bytes for golden values within which those of all inputs are kept."""
        return self.memory // (2 if self.memory >= _AMPLE else 3)

    @property
    def chunk(self) -> int:
        """The number of inputs of whose golden values something is kept at a time.

        All, if half of an ample memory holds them, or a third of another: lanes of ResNet-20 whose activations are
        emulated take a quarter of the time where golden values fit. Else as many as three quarters of that hold,
        where less is held of each (:mod:`torchfault.engine.graph.spared`): what lanes leave lies in pieces, up to a
        quarter of the memory. A quarter of the memory where not, since what is used again lies in pieces too.
        """
        each, every = max(self.footprint.golden, 1), len(self.data)
        if self._most // each >= every:
            return every
        return int(max(1, (3 * self._most // 4 if self.spares is not None else self.memory // 4) // each))

    @property
    def ample(self) -> int:
        """The bytes of memory that would keep for all inputs what is held of each."""
        every = self.footprint.golden * len(self.data)
        return 2 * every if 2 * every >= _AMPLE else min(3 * every, _AMPLE)

    @torch.inference_mode()
    @plain_kernels()
    def held(self, inputs: NDArray[np.int64]) -> Golden:
        """Return the golden values of *inputs*, one of :meth:`chunks`, and maybe of more; kept until others are due."""
        return self._golden(inputs)

    def _golden(self, inputs: NDArray[np.int64]) -> Golden:
        if self._kept is None or not np.isin(inputs, self._kept.inputs).all():
            # Memory of the same size is used again; giving it back and asking for it costs as much as the pass.
            larger = self._kept is not None and self.reused is None and len(inputs) > self._kept.lanes
            self._kept = None
            if larger:
                give_back_memory()
            self._kept = golden_pass(
                self.program,
                self.data.inputs,
                inputs,
                channels_last=self.channels_last,
                plan=self.reused or self.segments,
            )
        return self._kept

    def chunks(self, inputs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the parts in which golden values are kept for *inputs*: all of the data if they fit, else these."""
        every = np.arange(len(self.data))
        needed = every if self.chunk >= len(every) else np.unique(inputs)
        return np.array_split(needed, range(self.chunk, len(needed), self.chunk)) if len(inputs) else []

    @torch.inference_mode()
    @plain_kernels()
    def golden(self) -> Tree:
        """Return the outputs without faults, one row per input; they are kept where they are small."""
        if self._outputs is not None:
            return self._outputs
        parts = []
        for inputs in self.chunks(np.arange(len(self.data))):
            golden = self._golden(inputs)
            index = torch.from_numpy(golden.rows(inputs)).to(self.device)
            parts.append(golden.outputs(index))
        found = concatenate(parts)
        if sum(leaf.numel() * leaf.element_size() for leaf in leaves(found)) <= self.memory // _SMALL:
            self._outputs = found
        return found

    def forget(self) -> None:
        """Drop what is kept of the golden pass, and give its memory back."""
        self._kept = None
        if self.reused is not None:
            self.reused.forget()
        give_back_memory()

    def run(self, trials: Trials, monitor: MonitorRun | None = None) -> Iterator[Lanes]:
        """Yield the outcome of every trial exactly once, in any order.

        Those for which the program raises run under hooks at the end: whether the model does is what counts.
        """
        check_trials(trials, self.space, len(self.data))
        return self._run(trials, monitor)

    def _run(self, trials: Trials, monitor: MonitorRun | None) -> Iterator[Lanes]:
        apart = self.found.fold.unfold(trials)
        hidden = np.array([site.name not in self.places for site in apart.sites], dtype=bool)[apart.site]
        unread = np.array([not self.strikes.get(site.name) for site in apart.sites], dtype=bool)[apart.site] & ~hidden
        slow = np.bincount(trials.owner[hidden], minlength=len(trials)) > 0
        struck = apart.where(~unread)
        none = (np.diff(struck.offsets) == 0) & ~slow
        if monitor is not None:  # to which every lane must be shown
            slow |= none if self._shows(monitor.monitor.sites) else True
        yield from self._masked(trials, np.flatnonzero(none & ~slow))
        fast, left = np.flatnonzero(~slow & ~none), [np.flatnonzero(slow)]
        for lanes in self._swept(struck.take(fast), None if monitor is None else monitor.take(fast)):
            if lanes.crashed.any():
                left.append(fast[lanes.trial])
            else:
                yield replace(lanes, trial=fast[lanes.trial])
        if len(rest := np.concatenate(left)):
            self.forget()  # the budget is for one executor at a time
            for lanes in self.hooks.run(trials.take(rest), None if monitor is None else monitor.take(rest)):
                yield replace(lanes, trial=rest[lanes.trial])

    def _shows(self, sites: Sequence[str]) -> bool:
        """Whether the values of every one of *sites* are to be seen, at all of its time steps, and are no codes."""
        parts = self.found.fold.parts
        return self.modules is None and all(len(self.watched[name]) == len(parts.get(name, (name,))) for name in sites)

    def _masked(self, trials: Trials, which: NDArray[np.int64]) -> Iterator[Lanes]:
        """Yield the trials at the positions *which*, of which no fault is read."""
        for begin in range(0, len(which), _AT_ONCE):
            chunk = which[begin : begin + _AT_ONCE]
            golden = rows(self.golden(), torch.from_numpy(trials.inputs[chunk]).to(self.device))
            yield Lanes(chunk, trials.inputs[chunk], golden, golden, np.ones(len(chunk), dtype=bool))

    @cached_property
    def hooks(self) -> HooksExecutor:
        """The executor that runs the model itself."""
        return HooksExecutor(self.model, self.data, memory=self.memory, found=self.found)

    def _swept(self, trials: Trials, monitor: MonitorRun | None) -> Iterator[Lanes]:
        for inputs in self.chunks(trials.inputs):
            mine = np.flatnonzero(np.isin(trials.inputs, inputs))
            for lanes in self._run_chunk(trials.take(mine), inputs, mine, monitor):
                yield replace(lanes, trial=mine[lanes.trial])

    def _run_chunk(
        self, trials: Trials, inputs: NDArray[np.int64], numbers: NDArray[np.int64], monitor: MonitorRun | None
    ) -> Iterator[Lanes]:
        events = events_of(trials, self.strikes)
        with torch.inference_mode(), plain_kernels():
            golden = self._golden(inputs)
            striker = Striker(self.program, self.places, trials, self.device, self.stored, self.modules)
            held = golden.lanes if self.reused is None else self.chunk
            room = self.memory - self.footprint.golden * held
            looking = None if monitor is None else SweepMonitor(monitor.take(numbers), self.watched, golden)
            found = ChunkRun(trials, events, golden, striker, self.plan, self.footprint, room, looking).lanes()
        while True:
            with torch.inference_mode(), plain_kernels():  # for our own work, not for what happens to lanes in between
                lanes = next(found, None)
            if lanes is None:
                return
            yield lanes
