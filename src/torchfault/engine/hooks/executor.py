"""The executor for any module: full forward passes, in which every lane still has its own faults."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.data import Data, Tree, call, concatenate, leaves, map_tensors, rows
from torchfault.engine.crashes import separated
from torchfault.engine.executor import Lanes, check_trials
from torchfault.engine.hooks.replay import Part, replaying
from torchfault.engine.hooks.strikes import Strike, strike_of, striking, together
from torchfault.engine.memory import lanes_within
from torchfault.engine.monitor import HooksMonitor, MonitorRun
from torchfault.engine.stored import Memory, edited
from torchfault.errors import ModelError
from torchfault.model.discover import Discovery, find
from torchfault.model.disturb import contents, plain_kernels, put_back, reset_states, undisturbed
from torchfault.model.lane_axis import identical_lanes
from torchfault.model.traits import leaf_paths, varies
from torchfault.model.watch import visiting
from torchfault.names import site_name
from torchfault.space import FaultSpace, Site
from torchfault.trials import Trials, edits_by_site, equal_trials

__all__ = ["HooksExecutor"]

_SEED = 0
_MONITORED = 8


_Done = tuple[NDArray[np.int64], Tree | None, NDArray[np.bool_] | None]  # trials, outputs, which a monitor saw masked


class HooksExecutor:
    """Runs trials by plain forward passes of *model* under hooks; the sites are those *found*, looked for unless given.

    Lanes share a pass, each with its own faults in activations. So do lanes with faults in the weights of a module that
    alone reads them: for them that module runs once more. Faults in other weights and buffers change the model in
    place, for a pass that only lanes with equal ones share. *memory* bounds the bytes of activations. A model
    that lets chance or the rest of the batch have a part, or that decides by values what to compute, runs lane by lane,
    from the same random state each time; :attr:`alone` says why, and is empty for any other.

    Raises :class:`ModelError` for a model that does not give one row of output per input.

    >>> from torchfault.faults import BitFlip
    >>> from torchfault.trials import strike
    >>> engine = HooksExecutor(nn.Linear(3, 2).eval(), Data(torch.randn(4, 3)), memory=2**20)
    >>> signs = engine.space.locate([31, 6 * 32 + 31])
    >>> trials = strike(engine.space, signs, model=BitFlip(), rng=np.random.default_rng(0))
    >>> [lanes.trial.tolist() for lanes in engine.run(trials)]
    [[0, 1]]
    """

    name = "hooks"

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        *,
        memory: int = 2**30,
        device: torch.device | str | None = None,
        buffers: bool = False,
        found: Discovery | None = None,
    ) -> None:
        self.model, self.data = model, data
        tensors = [*model.parameters(), *model.buffers()]
        home = tensors[0].device if tensors else torch.device("cpu")
        self.device = torch.device(device) if device is not None else home
        if self.device.type != home.type:
            raise ModelError(
                f"the model is on {home} and the lanes on {self.device}; move it with model.to('{self.device}')"
            )
        found = find(model, data, buffers=buffers) if found is None else found
        self._layouts, self._memory = found.layouts, Memory(model)
        self._fold, self._cells, self._axes = found.fold, found.cells, found.axes
        self.alone = _why_alone(model, found)
        self._known: tuple[tuple[Site, ...], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] | None = None
        self._batch = 1
        self._golden: Tree | None = None
        few = rows(data.inputs, slice(0, 1 if found.conduct.alone else 2))
        with undisturbed(model) as changed, plain_kernels():
            batch = lanes_within(model, self._here(few), memory=memory)
            self._stateful = changed()
        # A module that changes its state must not run twice.
        self._owners = {} if self.alone or self._stateful else dict(found.owners)
        self._paths = {path: i for i, path in enumerate(dict.fromkeys(self._owners.values()))}
        self._batch = 1 if self.alone else batch
        if self.alone:
            self._check_alone()

    @property
    def space(self) -> FaultSpace:
        """Every site of the model, in execution order."""
        return self._fold.space

    def golden(self) -> Tree:
        """Return the outputs without faults, one row per input, computed once."""
        if self._golden is None:
            starts = range(0, len(self.data), self._batch)
            index = torch.arange(len(self.data), device="cpu")
            self._golden = concatenate([self._forward(index[i : i + self._batch]) for i in starts])
        return self._golden

    def run(self, trials: Trials, monitor: MonitorRun | None = None) -> Iterator[Lanes]:
        """Yield the outcome of every trial exactly once, in any order."""
        check_trials(trials, self._fold.space, len(self.data))
        self.golden()
        seen = None if monitor is None else HooksMonitor(monitor, self._layouts, self._fold.parts)
        return self._run(self._fold.unfold(trials), seen)

    def _check_alone(self) -> None:
        try:
            self._forward(torch.zeros(1, dtype=torch.int64, device="cpu"))
        except Exception as error:
            raise ModelError(
                f"{type(self.model).__name__} lets chance or the rest of the batch decide, so it must run on one input "
                f"alone; got {type(error).__name__}: {error}; call model.eval()"
            ) from error

    def _run(self, trials: Trials, monitor: HooksMonitor | None) -> Iterator[Lanes]:
        done: list[_Done] = []
        lanes, rest = 0, [home for module in self.model.modules() for home in contents(module)]
        # A monitor holds all activations of a batch twice over.
        batch = self._batch if monitor is None else max(1, self._batch // _MONITORED)
        for group in equal_trials(trials.where(self._shared(trials))):
            for start in range(0, len(group), batch):
                chunk = group[start : start + batch]
                for part, outputs in separated(chunk, lambda part: self._struck(trials.take(part), monitor)):
                    if outputs is None:
                        put_back(rest)  # what the model was about to do when it raised
                    masked = None if monitor is None or outputs is None else _identical(monitor.outputs, outputs)
                    done.append((part, outputs, masked))
                    if monitor is not None:
                        monitor.end(part)
                lanes += len(chunk)
                if lanes >= self._batch:
                    yield self._lanes(trials, done)
                    done, lanes = [], 0
        if done:
            yield self._lanes(trials, done)

    def _lanes(self, trials: Trials, done: Sequence[_Done]) -> Lanes:
        """Return the finished parts as lanes; those without outputs crashed, and have golden's."""
        order = np.concatenate([part for part, _, _ in done])
        crashed = np.repeat([outputs is None for _, outputs, _ in done], [len(part) for part, _, _ in done])
        golden = self._golden_rows(trials.inputs[order])
        found = [self._golden_rows(trials.inputs[part]) if outputs is None else outputs for part, outputs, _ in done]
        faulty = concatenate(found)
        seen = [masked for _, _, masked in done if masked is not None]
        same = _identical(golden, faulty)
        if seen:
            same[~crashed] = np.concatenate(seen)
        return Lanes(order, trials.inputs[order], golden, faulty, same & ~crashed, crashed)

    def _golden_rows(self, inputs: NDArray[np.int64]) -> Tree:
        return rows(self.golden(), torch.from_numpy(inputs).to(self.device))

    def _shared(self, trials: Trials) -> NDArray[np.bool_]:
        """Return which rows change the model for all lanes of a pass: those in stored words that no module owns alone.

        A trial that also strikes an operation inside the owner cannot have that module run again.
        """
        path, inside, active = (column[trials.site] for column in self._kinds(trials.sites))
        width = len(self._paths) + 1
        both = np.intersect1d((trials.owner * width + path)[path >= 0], (trials.owner * width + inside)[inside >= 0])
        return ~active & ((path < 0) | np.isin(trials.owner, both // width))

    def _kinds(self, sites: tuple[Site, ...]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return by site the module that owns it, the one it is an operation in (-1: none), and if it is active."""
        if self._known is None or self._known[0] is not sites:
            owner = [self._paths.get(self._owners.get(site.name, ""), -1) for site in sites]
            parent = [site_name(s.name).owner if s.kind in ("input", "output") else "" for s in sites]
            inside = [self._paths.get(path, -1) for path in parent]
            columns = (np.array(owner), np.array(inside), np.array([site.is_activation for site in sites]))
            self._known = (sites, columns)
        return self._known[1]

    def _struck(self, trials: Trials, monitor: HooksMonitor | None) -> Tree:
        """Return the outputs of *trials*, whose shared faults are all the same, as one batch."""
        shared = self._shared(trials)
        active = self._kinds(trials.sites)[2][trials.site]
        common = trials.where(shared).take(np.zeros(1, dtype=np.int64))
        strikes = [
            strike_of(self.model, name, edits=[edits], site=self._fold.apart.site(name), layout=self._layouts[name])
            for name, edits in edits_by_site(trials.where(active), lanes=True, device=self.device).items()
        ]
        index = torch.from_numpy(trials.inputs)
        parts = self._parts(trials.where(~active & ~shared))
        if monitor is not None:  # it compares the same modules on the same lanes: other shapes round otherwise
            plain = {path: [replace(part, stored=()) for part in mine] for path, mine in parts.items()}
            monitor.begin(self._forward(index, parts=plain, monitor=monitor))
        with edited(self._memory.targets(common)):
            return self._forward(index, together(strikes), parts, monitor)

    def _parts(self, trials: Trials) -> dict[str, list[Part]]:
        """Return what each module must run again, for lanes struck in the words that it alone reads."""
        path = self._kinds(trials.sites)[0][trials.site]
        names = list(self._paths)
        parts: dict[str, list[Part]] = {}
        for number in np.unique(path):
            mine = trials.where(path == number)
            for lanes in equal_trials(mine):
                if mine.offsets[lanes[0] + 1] > mine.offsets[lanes[0]]:
                    stored = self._memory.targets(mine.take(lanes[:1]))
                    parts.setdefault(names[number], []).append(Part(torch.from_numpy(lanes).to(self.device), stored))
        return parts

    def _forward(
        self,
        index: Tensor,
        strikes: Sequence[Strike] = (),
        parts: Mapping[str, Sequence[Part]] | None = None,
        monitor: HooksMonitor | None = None,
    ) -> Tree:
        inputs = self._here(rows(self.data.inputs, index))
        with ExitStack() as scopes:
            scopes.enter_context(torch.no_grad())
            scopes.enter_context(plain_kernels())
            if self.alone or self._stateful:
                scopes.enter_context(undisturbed(self.model))
                reset_states(self.model)
            if self.alone:
                torch.manual_seed(_SEED)
            scopes.enter_context(replaying(self.model, parts or {}, self._layouts))
            # Behind, so that it sees what a replay gives.
            scopes.enter_context(striking(self.model, strikes, self._cells, all_of_them=False))
            if monitor is not None:
                leaf = leaf_paths(self.model)
                watch = visiting(self.model, monitor, modules=leaf, operations=None, read=(), cells=self._cells)
                scopes.enter_context(watch)
            axes = iter(self._axes)
            return map_tensors(lambda leaf: leaf.movedim(next(axes), 0), call(self.model, inputs))

    def _here(self, tree: Tree) -> Tree:
        return map_tensors(lambda leaf: leaf.to(self.device), tree)


def _why_alone(model: nn.Module, found: Discovery) -> str:
    """Return why lanes cannot share a pass of *model*, empty where they can."""
    if found.mixes:
        return found.mixes
    if found.conduct.alone:
        return "it runs on one input alone"
    if found.conduct.decides:  # one lane's fault could change the path of others
        return f"it decides by values what to compute ('{found.conduct.decides}')"
    by_chance = next((path for path, module in model.named_modules() if varies(module)), None)
    return "" if by_chance is None else f"'{by_chance}' lets chance or the rest of the batch have a part"


def _identical(golden: Tree, faulty: Tree) -> NDArray[np.bool_]:
    """Return which rows agree bit for bit in every output."""
    pairs = zip(leaves(golden), leaves(faulty), strict=True)
    return np.asarray(torch.stack([identical_lanes(a, b) for a, b in pairs]).all(0).cpu().numpy())
