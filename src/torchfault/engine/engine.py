"""The engine: one model on one set of inputs, by the fastest executor that can run it."""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from torchfault.adapters.sources import as_data
from torchfault.data import Data, Tree, rows
from torchfault.engine.effort import effort
from torchfault.engine.executor import Executor, Lanes, check_trials
from torchfault.engine.graph.executor import GraphExecutor
from torchfault.engine.hooks.executor import HooksExecutor
from torchfault.engine.lost_indices import crashed, loses_an_index
from torchfault.engine.memory import looked_at_bytes
from torchfault.engine.monitor import Monitor, MonitorRun
from torchfault.errors import EngineError, ModelError
from torchfault.model.blind_spots import unseen
from torchfault.model.constants import constant_home, is_constant
from torchfault.model.discover import Discovery, check_inference, find
from torchfault.model.golden_words import golden_words, words_bytes
from torchfault.model.memory import homes
from torchfault.model.places import Captured
from torchfault.model.probes import PROBES
from torchfault.model.rounding import rounded_as
from torchfault.model.traits import word_name
from torchfault.model.wrappers import unwrapped
from torchfault.source import source_digest
from torchfault.space import FaultSpace
from torchfault.text import facts_html
from torchfault.trials import Trials

__all__ = ["Engine", "parse_memory"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_memory(memory: int | str) -> int:
    """Return a number of bytes given as such or as text with a unit.

    >>> parse_memory("256MiB") == 256 * 2**20
    True
    """
    if isinstance(memory, int):
        found = memory
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?)?b?\s*", memory.lower())
        if not match:
            raise EngineError(f"memory is a number of bytes or text such as '2GiB' or '500MB', got '{memory}'")
        found = int(float(match[1]) * _UNITS[match[2] or ""])
    if found < 2**20:
        raise EngineError(f"memory needs at least 1 MiB, got {memory}")
    return found


class Engine:
    """Runs trials on *model* with *data*, every fault on its own lane.

    *data* is whatever :func:`torchfault.adapters.sources.as_data` takes: a tensor, (inputs, labels), a data set. Of a
    model that ``torch.compile`` made, the one behind it runs.
    *executor* is ``graph`` (``torch.export``, the fast one), ``hooks`` (any module) or ``auto``: graph, and hooks where
    the model cannot be captured; then :attr:`fallback` says why. Where inputs of one batch could change each other's
    outcomes, every lane runs by itself, and :attr:`alone` says why; else it is empty. *memory* bounds the bytes for
    activations. *device* moves the model (in place, as torch does) and the data. *training* admits batch-norm and
    dropout in training mode, *buffers* makes buffers sites too, and the thresholds and decay constants that neurons
    keep as plain numbers. A warning tells where the model has words that are no sites; :attr:`unseen` lists them with
    the reasons. *trials* tells about how many will run: ``auto`` takes hooks for so few that a capture does not pay.

    Raises :class:`ModelError` for a model in training mode, or one that ``graph`` was asked for and cannot capture.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> engine = Engine(model, Data(torch.randn(5, 4)))
    >>> engine.executor, engine.fallback, engine.space.names[:3]
    ('graph', None, ('input:data', '0.weight', '0.bias'))
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data | Tree,
        *,
        executor: Literal["auto", "graph", "hooks"] = "auto",
        memory: int | str = "1GiB",
        device: torch.device | str | None = None,
        training: bool = False,
        buffers: bool = False,
        trials: int | None = None,
    ) -> None:
        if executor not in ("auto", "graph", "hooks"):
            raise EngineError(f"executor is 'auto', 'graph' or 'hooks', got '{executor}'")
        model, data = unwrapped(model), as_data(data)
        if not training:
            check_inference(model)
        if device is not None:
            model = model.to(device)
        data = data.to(next((t.device for t in (*model.parameters(), *model.buffers())), "cpu"))
        self.model, self.data, self.memory = model, data, parse_memory(memory)
        self.fallback: str | None = None
        self.alone = ""
        self._options = {"training": training, "buffers": buffers}
        self._tell_of_memory()
        self._executor = self._choose(executor, find(model, data, buffers=buffers), trials)
        self._homes = {name: home for home in homes(model) for name in home.words}
        self._homes |= {name: constant_home(model, name) for name in self.space.names if is_constant(name)}
        self.unseen = unseen(model)
        if self.unseen:
            listed = "; ".join(f"'{name}': {why}" for name, why in list(self.unseen.items())[:3])
            rest = f"; and {len(self.unseen) - 3} more, see Engine.unseen" if len(self.unseen) > 3 else ""
            warnings.warn(
                f"some words of the model are no sites, so no fault lands there: {listed}{rest}", stacklevel=2
            )

    def _tell_of_memory(self) -> None:
        """Warn where to look at the model takes more than the budget, which is kept as soon as trials run."""
        need = looked_at_bytes(self.model, rows(self.data.inputs, slice(0, 1)))
        if need > self.memory:
            warnings.warn(
                f"to look at {type(self.model).__name__} takes about {need / 2**20:,.0f} MiB for a moment, more than "
                f"the memory budget of {self.memory / 2**20:,.0f} MiB: {PROBES} inputs run together, and the "
                "activations of one are held; raise memory, or take smaller inputs",
                stacklevel=3,
            )

    def _choose(self, executor: str, found: Discovery, trials: int | None) -> Executor:
        if executor == "auto" and trials is not None:
            work = effort(self.model, rows(self.data.inputs, slice(0, 1)))
            if work.sooner_without_capture(trials + len(self.data)):
                self.fallback = f"{trials:,} trials are sooner done than the {work.calls:,} operations captured"
        if executor != "hooks" and self.fallback is None:
            try:
                return GraphExecutor(self.model, self.data, memory=self.memory, found=found)
            except ModelError as error:
                if executor == "graph":
                    raise
                self.fallback = str(error)
        hooks = HooksExecutor(self.model, self.data, memory=self.memory, found=found)
        self.alone = hooks.alone
        if self.fallback and self.alone:
            why = "" if self.alone in self.fallback else f": {self.alone}"
            self.fallback += f"; lanes run one by one{why}"
        return hooks

    def __repr__(self) -> str:
        lanes = f", lane by lane: {self.alone}" if self.alone else ""
        return (
            f"Engine({type(self.model).__name__}, {len(self.data)} inputs, {self.executor}{lanes}; "
            f"{len(self.space):,} faults in {len(self.space.sites):,} sites)"
        )

    def _repr_html_(self) -> str:
        """Return what the engine holds as a table, for notebooks."""
        kinds = {kind: sum(site.kind == kind for site in self.space.sites) for kind in self.space.axis("kind").keys}
        return facts_html(
            f"Engine of {type(self.model).__name__}",
            [
                ("inputs", f"{len(self.data):,}"),
                ("executor", self.executor),
                ("why no graph", self.fallback or ""),
                ("lane by lane", self.alone or ""),
                ("faults", f"{len(self.space):,}"),
                ("sites", ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())),
                ("memory", self.recomputed or f"{self.memory / 2**20:,.0f} MiB"),
            ],
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Return how to make this engine anew elsewhere: of the same model and data, with the same executor."""
        where = next((str(t.device) for t in (*self.model.parameters(), *self.model.buffers())), "cpu")
        return _engine, (_saved((self.model, self.data)), self.executor, self.memory, where, self._options)

    @property
    def executor(self) -> str:
        """The name of the executor at work: ``graph`` or ``hooks``."""
        return self._executor.name

    @property
    def batch(self) -> int:
        """How many inputs may share a forward pass: one where the inputs of a batch change each other's outcomes."""
        return 1 if self.alone else 64

    @property
    def space(self) -> FaultSpace:
        """Every site that can be struck, in execution order."""
        return self._executor.space

    @property
    def captured(self) -> Captured | None:
        """The model as ``torch.export`` captured it, with the places of sites; ``None`` where lanes run otherwise."""
        return None if self.graph is None else self.graph.captured

    @property
    def graph(self) -> GraphExecutor | None:
        """The executor that holds golden values of what it captured; ``None`` where lanes run otherwise."""
        return self._executor if isinstance(self._executor, GraphExecutor) else None

    @property
    def recomputed(self) -> str:
        """Which golden values are computed again wherever a batch of trials needs them; empty where all are kept."""
        graph = self.graph
        if graph is None or graph.chunk >= len(self.data):
            return ""
        needed = math.ceil(graph.ample / 2**20)
        needed, unit = (math.ceil(needed / 2**10), "GiB") if needed >= 2**10 else (needed, "MiB")
        return (
            f"golden values of {graph.chunk:,} of {len(self.data):,} inputs fit into {self.memory / 2**20:,.0f} MiB of "
            f"memory, those of all into {needed:,} {unit}"
        )

    def golden(self) -> Tree:
        """Return the outputs without faults, one row per input."""
        return self._executor.golden()

    def words(self, space: FaultSpace) -> Mapping[str, NDArray[np.unsignedinteger]]:
        """Return the :func:`~torchfault.model.golden_words.golden_words` of *space*; warn of more than the budget."""
        need = 2 * words_bytes(space, len(self.data))  # what is made of them, such as their order, takes as much again
        if need > self.memory:
            warnings.warn(
                f"the golden words of {len(space.sites):,} sites on {len(self.data):,} inputs, and what is made of "
                f"them, take about {need / 2**20:,.0f} MiB, more than the memory budget of {self.memory / 2**20:,.0f} "
                "MiB: any of them may be drawn next, so all are held; choose fewer inputs, or weights alone",
                stacklevel=2,
            )
        return golden_words(self.model, self.data, space, batch=self.batch)

    def run(self, trials: Trials, *, monitor: Monitor | None = None) -> Iterator[Lanes]:
        """Yield the outcome of every trial exactly once, in any order.

        A trial in which the model raises an exception, or finds that a stored index points to nowhere, has crashed and
        has no outputs (:attr:`Lanes.crashed`). A *monitor* gathers on the way what activations look like and how far
        errors travel; it slows lanes. Raises :class:`EngineError` for a site or an input that the engine does not have,
        or a monitor of another space.
        """
        check_trials(trials, self.space, len(self.data))
        if monitor is None:
            return self._run(trials, None)
        if monitor.space.digest() != self.space.digest():
            raise EngineError("a monitor needs the space of its engine, got another one; use Monitor(engine.space)")
        return self._watched(trials, monitor.begin(trials))

    def _run(self, trials: Trials, monitor: MonitorRun | None) -> Iterator[Lanes]:
        lost = loses_an_index(trials, self._homes)
        if not lost.any():
            yield from self._executor.run(trials, monitor)
            return
        yield from crashed(trials, np.flatnonzero(lost), self.golden())
        sound = np.flatnonzero(~lost)
        for lanes in self._executor.run(trials.take(sound), None if monitor is None else monitor.take(sound)):
            yield replace(lanes, trial=sound[lanes.trial])

    def _watched(self, trials: Trials, monitor: MonitorRun) -> Iterator[Lanes]:
        for lanes in self._run(trials, monitor):
            monitor.finish(lanes)
            yield lanes

    def digest(self) -> str:
        """Return a SHA-256 over the code of the model's modules, its rounding, and all bytes of its state by name."""
        digest = hashlib.sha256(type(self.model).__qualname__.encode())
        for name, module in self.model.named_modules():
            kind = type(module)
            if kind.__module__.partition(".")[0] != "torch":  # other code with the same weights is another model
                digest.update(f"{name} {kind.__qualname__} {source_digest(kind)}\n".encode())
        # Not the state dict, which leaves out buffers that are not persistent.
        words = {name: tensor.detach() for name, tensor in self.model.named_parameters() if word_name(tensor)}
        words |= dict(self.model.named_buffers()) | {name: home.words[name] for name, home in self._homes.items()}
        digest.update("".join(f"{name} {how}\n" for name, how in rounded_as(self.model)).encode())
        for name, tensor in sorted(words.items()):
            plain = tensor.detach().cpu().contiguous()
            digest.update(repr((name, str(plain.dtype), tuple(plain.shape))).encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
        return digest.hexdigest()


def _saved(held: object) -> bytes:
    """Return *held* as bytes: tensors that share memory go on doing so, which pickle alone would lose."""
    file = io.BytesIO()
    torch.save(held, file, pickle_module=cloudpickle)
    return file.getvalue()


def _engine(
    held: bytes, executor: Literal["graph", "hooks"], memory: int, device: str, options: dict[str, bool]
) -> Engine:
    model, data = torch.load(io.BytesIO(held), map_location="cpu", weights_only=False)
    return Engine(model, data, executor=executor, memory=memory, device=device, **options)
