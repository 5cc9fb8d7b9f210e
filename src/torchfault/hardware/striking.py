"""Targets: a model on an accelerator, which upsets strike cell by cell, and what then becomes of its answers."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from torchfault.criteria import Misclassified, Top1Change
from torchfault.criteria.compose import judge
from torchfault.data import rows
from torchfault.engine import Engine
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.layers import Layers
from torchfault.hardware.measure import UpsetMeasure
from torchfault.hardware.proposals import Cells, cells_of
from torchfault.hardware.upset_space import UpsetSpace, upset_space
from torchfault.hardware.upsets import Upset
from torchfault.hardware.work import Work
from torchfault.trials import Trials

__all__ = ["EngineTarget", "Fates", "Target", "judged", "target_of"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fates:
    """What became of trials: the answer is *wrong*, *changed*, or *due*, NaN or infinite; any shape, alike."""

    wrong: NDArray[np.bool_]
    changed: NDArray[np.bool_]
    due: NDArray[np.bool_]


class Target(Protocol):
    """What estimators strike: the *accelerator*, the *works* it does, their *cells*, and whom golden answers fail.

    *before* tells the inputs whose golden answer is wrong, shape (inputs,).
    """

    @property
    def accelerator(self) -> Accelerator: ...
    @property
    def works(self) -> tuple[Work, ...]: ...
    @property
    def cells(self) -> Cells: ...
    @property
    def before(self) -> NDArray[np.bool_]: ...
    def strike(self, cell: Ints, inputs: Ints, *, rng: np.random.Generator) -> Fates:
        """Strike a random variable of each data *cell*, on its row of *inputs*, shape (upsets, images)."""
        ...


@dataclass(frozen=True, eq=False)
class EngineTarget:
    """A target whose upsets, those of *space*, are run by an engine."""

    engine: Engine
    fault: Upset
    space: UpsetSpace
    cells: Cells
    before: NDArray[np.bool_]

    @property
    def accelerator(self) -> Accelerator:
        """The accelerator."""
        return self.space.accelerator

    @property
    def works(self) -> tuple[Work, ...]:
        """The layers' work."""
        return self.space.works

    def strike(self, cell: Ints, inputs: Ints, *, rng: np.random.Generator) -> Fates:
        """Strike a random variable of each *cell*, at a random use, on its row of *inputs*."""
        index = self.space.number_of(cell, UpsetMeasure().draw_places(self.space, cell, rng=rng))
        return self.run(index, inputs, words=rng.integers(0, 2**64, size=len(index), dtype=np.uint64))

    def run(self, index: Ints, inputs: Ints, *, words: NDArray[np.uint64]) -> Fates:
        """Run every upset on its row of *inputs*, shape (upsets, images); those without a trial end as golden does."""
        flat, owner = inputs.reshape(-1), np.repeat(np.arange(len(index)), inputs.shape[1])
        wrong, changed, due = self.before[flat], np.zeros(len(flat), dtype=bool), np.zeros(len(flat), dtype=bool)
        for trials, kept in self.fault.parts(self.space, index[owner], flat, words=words[owner], engine=self.engine):
            for trial, fates in judged(self.engine, trials):
                at = kept[trial]
                wrong[at], changed[at], due[at] = fates.wrong, fates.changed, fates.due
        return Fates(*(values.reshape(inputs.shape) for values in (wrong, changed, due)))


def target_of(engine: Engine, accelerator: Accelerator, layers: Layers) -> EngineTarget:
    """Return *engine*'s model, whose layers are *layers*, as a target on *accelerator*.

    Raises :class:`torchfault.errors.CriterionError` where the data have no labels.
    """
    golden = engine.golden()
    before = judge(Misclassified(), golden, golden, engine.data.labels).failed
    space = upset_space(accelerator, layers.works, layers.space)
    return EngineTarget(engine, Upset(layers), space, cells_of(space), before)


def judged(engine: Engine, trials: Trials) -> list[tuple[Ints, Fates]]:
    """Run *trials*; return what became of them, part by part, with their numbers."""
    found = []
    for lanes in engine.run(trials):
        labels = rows(engine.data.labels, torch.from_numpy(lanes.inputs))
        wrong = judge(Misclassified(), lanes.golden, lanes.faulty, labels)
        changed = judge(Top1Change(), lanes.golden, lanes.faulty, labels)
        found.append((lanes.trial, Fates(wrong.failed, changed.failed, changed.due)))
    return found
