"""Upsets whose answers are looked up: campaigns of a thousand seeds that run nothing, and the truth they look for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from torchfault.campaign import Campaign, Machine
from torchfault.cells import Space
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.engine.executor import Lanes
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.layers import Layers
from torchfault.hardware.measure import UpsetMeasure, utilisation
from torchfault.hardware.upset_space import UpsetSpace, upset_space
from torchfault.hardware.upsets import Upset
from torchfault.recipes import upsets
from torchfault.space import FaultSpace
from torchfault.trials import Trials

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Answers = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Records:
    """A fault model that strikes a random record of a cell: r is of *cell*[r], rising, and makes up *share*[r] of it.

    What became of it is a row of answers, *row*[r].
    """

    cell: Ints
    share: Floats
    row: Ints

    @cached_property
    def ends(self) -> Floats:
        """The cell + the shares up to each record: rising, to be searched."""
        total, first = np.cumsum(self.share), np.searchsorted(self.cell, self.cell)
        return np.asarray(self.cell + np.minimum(total - total[first] + self.share[first], 1.0))

    def strikes(self, space: Space, index: Ints) -> NDArray[np.bool_]:
        """Return that all of them do."""
        del space
        return np.ones(len(index), dtype=bool)

    def parts(
        self, space: Space, index: Ints, inputs: Ints, *, words: NDArray[np.uint64], engine: Machine
    ) -> Iterator[tuple[Trials, Ints]]:
        """Yield one edit for each upset, at the element of its row of answers."""
        record = np.searchsorted(self.ends, space.cell_of(index) + words / 2.0**64, side="right")
        row, none = self.row[np.minimum(record, len(self.row) - 1)], np.zeros(len(index), dtype=np.uint64)
        sites, offsets = engine.space.sites[:1], np.arange(len(index) + 1)
        yield Trials(sites, offsets, inputs, none.astype(np.int32), row, none, none), np.arange(len(index))

    def fitting(self, space: Space, index: Ints, *, engine: Machine) -> int:
        """Return that all of them do."""
        del space, engine
        return max(len(index), 1)

    def check(self, space: Space, mass: Floats, engine: Machine) -> None:
        """Hold everything for possible."""


@dataclass(frozen=True, eq=False)
class LookedUp:
    """An engine that looks up the answers, -1 for none, by row and input, shape (rows, inputs), instead of running."""

    engine: Engine
    answers: Answers
    executor: str = "records"
    memory: int = 1 << 30

    @property
    def space(self) -> FaultSpace:
        """The sites of the model."""
        return self.engine.space

    @property
    def data(self) -> Data:
        """The inputs and labels."""
        return self.engine.data

    def digest(self) -> str:
        """Return the digest of the model."""
        return self.engine.digest()

    def golden(self) -> Tensor:
        """Return 1 for the class that the model answers, 0 for all others."""
        outputs = self.engine.golden()
        assert isinstance(outputs, Tensor)
        return one_hot(outputs.argmax(1), outputs.shape[1]).float()

    def run(self, trials: Trials) -> Iterator[Lanes]:
        """Yield the answers of all trials at once, NaN where there is none."""
        golden, found = self.golden(), torch.from_numpy(self.answers[trials.element, trials.inputs].astype(np.int64))
        faulty = one_hot(found.clamp(min=0), golden.shape[1]).float()
        faulty[found < 0] = torch.nan
        yield Lanes(np.arange(len(trials)), trials.inputs, golden[trials.inputs], faulty, np.zeros(len(trials), bool))


@dataclass(frozen=True, eq=False)
class Recorded:
    """Campaigns on *accelerator* that read *records* of what became of upsets: their *answers* on all inputs."""

    engine: Engine
    accelerator: Accelerator
    layers: Layers
    records: Records
    answers: Answers

    @property
    def space(self) -> UpsetSpace:
        """The upsets."""
        return upset_space(self.accelerator, self.layers.works, self.layers.space)

    def campaign(self, **options: Any) -> Campaign:
        """Return the campaign of :func:`torchfault.recipes.upsets` with these *options*."""
        campaign = upsets(self.engine, self.accelerator, layers=self.layers, **options)
        return replace(campaign, engine=LookedUp(self.engine, self.answers), fault=self.records)

    def truth(self, p: Floats | None = None) -> dict[str, float]:
        """Return RA, SDC and DUE of exactly these records, with probabilities *p* of cells, their own unless given.

        From the definition: p A, an idle flip-flop doing no harm, and control being crashes.
        """
        space, labels = self.space, np.asarray(self.engine.data.labels)
        golden = np.asarray(LookedUp(self.engine, self.answers).golden().argmax(1))
        p = UpsetMeasure().mass(space) if p is None else p
        used = [[utilisation(self.accelerator, work, one) for one in self.accelerator.types] for work in space.works]
        live = p * np.array(used)[space.layer, space.type]
        answers, sa = self.answers[self.records.row], float((golden == labels).mean())
        share = [
            np.bincount(self.records.cell, self.records.share * of.mean(1), len(p))
            for of in (answers == labels, (answers != golden) & (answers >= 0), answers < 0)
        ]
        right, changed, due = (float(live @ np.where(space.is_control, 0.0, each)) for each in share)
        control = float(p[space.is_control].sum())
        idle = float((p - live)[~space.is_control].sum())
        return {"ra": right + idle * sa, "sdc": changed, "due": due + control, "sa": sa}


def answers_of(engine: Engine, fault: Upset, space: UpsetSpace, index: Ints) -> Answers:
    """Run upsets on all inputs; return the class that each names there, -1 for none, shape (upsets, inputs)."""
    images = len(engine.data)
    flat, inputs = np.repeat(index, images), np.tile(np.arange(images), len(index))
    golden = engine.golden()
    assert isinstance(golden, Tensor)
    found = golden.argmax(1).numpy().astype(np.int8)[inputs]
    words = np.zeros(len(flat), dtype=np.uint64)
    for trials, kept in fault.parts(space, flat, inputs, words=words, engine=engine):
        for lanes in engine.run(trials):
            assert isinstance(lanes.faulty, Tensor)
            answered = lanes.faulty.isfinite().all(1).numpy() & ~lanes.crashed
            found[kept[lanes.trial]] = np.where(answered, lanes.faulty.argmax(1).numpy(), -1)
    return found.reshape(len(index), images)
