"""The executor for any module: full forward passes, in which every lane still has its own faults."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.engine.contract import Lanes
from torchfault.engine.footprint import lanes_within
from torchfault.engine.inject import edited, stored_tensor
from torchfault.engine.masks import Mask, edits_by_site
from torchfault.engine.strikes import Strike, address, striking
from torchfault.errors import EngineError, ModelError
from torchfault.faults import Trials
from torchfault.model.data import Data, Tree, call, concatenate, leaves, map_tensors, rows
from torchfault.model.disturb import undisturbed
from torchfault.model.sites import find
from torchfault.model.visit import unfused
from torchfault.space import FaultSpace
from torchfault.words import word

__all__ = ["HooksExecutor"]

_SEED = 0


class HooksExecutor:
    """Runs trials by plain forward passes of *model* under hooks.

    Lanes struck in activations share a pass, each with faults of its own; lanes with equal faults in weights or buffers
    share one too. *memory* bounds the bytes of activations. A model in training mode, or one that lets the inputs of a
    batch influence each other, runs lane by lane, from the same random state each time.

    Raises :class:`ModelError` for a model that does not give one row of output per input.

    >>> from torchfault.faults import BitFlip, strike
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
    ) -> None:
        self.model, self.data = model, data
        tensors = [*model.parameters(), *model.buffers()]
        home = tensors[0].device if tensors else torch.device("cpu")
        self.device = torch.device(device) if device is not None else home
        if self.device.type != home.type:
            raise ModelError(
                f"the model is on {home} and the lanes on {self.device}; move it with model.to('{self.device}')"
            )
        found = find(model, data, buffers=buffers)
        self._layouts = found.layouts
        self._space = found.space
        self._careful = found.mixes or any(module.training for module in model.modules())
        self._batch = 1
        self._golden: Tree | None = None
        few = rows(data.inputs, slice(0, 2))
        with undisturbed(model) as changed, unfused():
            batch = lanes_within(model, self._here(few), memory=memory)
            self._stateful = changed()
        self._batch = 1 if self._careful else batch

    @property
    def space(self) -> FaultSpace:
        """Every site of the model, in execution order."""
        return self._space

    def golden(self) -> Tree:
        """Return the outputs without faults, one row per input, computed once."""
        if self._golden is None:
            starts = range(0, len(self.data), self._batch)
            parts = [self._forward(torch.arange(i, min(i + self._batch, len(self.data))), []) for i in starts]
            self._golden = concatenate(parts)
        return self._golden

    def run(self, trials: Trials) -> Iterator[Lanes]:
        """Yield the outcome of every trial exactly once, in any order."""
        self._check(trials)
        self.golden()
        return self._run(trials)

    def _check(self, trials: Trials) -> None:
        for position in np.unique(trials.site):
            site = trials.sites[position]
            mine = self._space.site(site.name)
            if (mine.shape, mine.word) != (site.shape, site.word):
                raise EngineError(
                    f"'{site.name}' has {mine.word} words in shape {mine.shape}, got {site.word} in {site.shape}; "
                    "draw trials from this engine's space"
                )
        if len(trials) and (trials.inputs.min() < 0 or trials.inputs.max() >= len(self.data)):
            raise EngineError(
                f"inputs run from 0 to {len(self.data) - 1}, got {trials.inputs.min()} to {trials.inputs.max()}"
            )

    def _run(self, trials: Trials) -> Iterator[Lanes]:
        done: list[tuple[NDArray[np.int64], Tree]] = []
        lanes = 0
        for group in _alike(trials):
            for start in range(0, len(group), self._batch):
                chunk = group[start : start + self._batch]
                done.append((chunk, self._struck(trials.take(chunk))))
                lanes += len(chunk)
                if lanes >= self._batch:
                    yield self._lanes(trials, done)
                    done, lanes = [], 0
        if done:
            yield self._lanes(trials, done)

    def _lanes(self, trials: Trials, done: Sequence[tuple[NDArray[np.int64], Tree]]) -> Lanes:
        order = np.concatenate([chunk for chunk, _ in done])
        inputs = trials.inputs[order]
        golden = rows(self.golden(), torch.from_numpy(inputs).to(self.device))
        faulty = concatenate([outputs for _, outputs in done])
        return Lanes(order, inputs, golden, faulty, _identical(golden, faulty))

    def _struck(self, trials: Trials) -> Tree:
        """Return the outputs of *trials*, whose faults in weights and buffers are all the same, as one batch."""
        shared = _stored(trials)
        sites = {site.name: site for site in trials.sites}
        common = _rows(trials, shared).take(np.zeros(1, dtype=np.int64))
        stored = [
            (stored_tensor(self.model, name), Mask(name, word(sites[name].word), edits))
            for name, edits in edits_by_site(common).items()
        ]
        strikes = [
            Strike(
                name,
                address(self.model, name),
                [Mask(name, word(sites[name].word), edits)],
                site=sites[name],
                layout=self._layouts[name],
            )
            for name, edits in edits_by_site(_rows(trials, ~shared), lanes=True).items()
        ]
        with edited(stored):
            return self._forward(torch.from_numpy(trials.inputs), strikes)

    def _forward(self, index: Tensor, strikes: Sequence[Strike]) -> Tree:
        inputs = self._here(rows(self.data.inputs, index))
        with ExitStack() as scopes:
            scopes.enter_context(torch.no_grad())
            scopes.enter_context(unfused())
            if self._careful or self._stateful:
                scopes.enter_context(undisturbed(self.model))
            if self._careful:
                torch.manual_seed(_SEED)
            scopes.enter_context(striking(self.model, strikes))
            return call(self.model, inputs)

    def _here(self, tree: Tree) -> Tree:
        return map_tensors(lambda leaf: leaf.to(self.device), tree)


def _stored(trials: Trials) -> NDArray[np.bool_]:
    """Return which rows strike a parameter or a buffer."""
    return np.array([not site.is_activation for site in trials.sites], dtype=bool)[trials.site]


def _rows(trials: Trials, kept: NDArray[np.bool_]) -> Trials:
    """Return the same trials with some of their rows."""
    offsets = np.concatenate(([0], np.cumsum(kept)))[trials.offsets]
    columns = (trials.site[kept], trials.element[kept], trials.keep[kept], trials.toggle[kept])
    return Trials(trials.sites, offsets, trials.inputs, *columns)


def _alike(trials: Trials) -> list[NDArray[np.int64]]:
    """Return the positions of the trials, grouped by equal faults in parameters and buffers."""
    part = _rows(trials, _stored(trials))
    groups: dict[bytes, list[int]] = {}
    for trial, (start, stop) in enumerate(zip(part.offsets[:-1], part.offsets[1:], strict=True)):
        columns = (part.site, part.element, part.keep, part.toggle)
        key = b"".join(column[start:stop].tobytes() for column in columns) if stop > start else b""
        groups.setdefault(key, []).append(trial)
    return [np.array(group, dtype=np.int64) for group in groups.values()]


def _identical(golden: Tree, faulty: Tree) -> NDArray[np.bool_]:
    """Return which rows agree bit for bit in every output."""
    same = [
        (_plain_words(a) == _plain_words(b)).flatten(1).all(1)
        for a, b in zip(leaves(golden), leaves(faulty), strict=True)
    ]
    return np.asarray(torch.stack(same).all(0).cpu().numpy())


def _plain_words(tensor: Tensor) -> Tensor:
    """Return the bits of *tensor* as integers, so that a NaN equals itself and 0 differs from -0."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.unsqueeze(-1).view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.itemsize])
