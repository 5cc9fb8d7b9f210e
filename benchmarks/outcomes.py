"""Outcomes of upsets on all images, struck once and kept: what estimators read seed after seed, and their truth."""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from torchfault.engine import Engine
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.enumeration import every_upset
from torchfault.hardware.proposals import Cells
from torchfault.hardware.striking import EngineTarget, Fates
from torchfault.hardware.upsets import Upsets, locate_upsets
from torchfault.hardware.work import Work
from torchfault.model.data import Data

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Upsets struck per layer, type and bit, from the sign (31) down. Bits 16 to 22 and 0 to 15 share a record each: of
# 8,000 upsets of these bits, each on one image, none changed an answer.
STRUCK = {31: 1, 30: 8, 29: 2, 28: 2, 27: 2, 26: 2, 25: 2, 24: 1, 23: 1, 16: 1, 0: 1}
_AT_ONCE = 20_000  # lanes run between two saves


@dataclass(frozen=True, eq=False)
class Recorded:
    """A target of estimators whose upsets are read from records instead of run.

    Record r belongs to the cell *cell*[r] (in rising order), makes up *share*[r] of it, and its outcomes are row
    *row*[r] of *fates*, packed bits of shape (3, rows, bytes): wrong, changed, due, image by image.
    """

    accelerator: Accelerator
    works: tuple[Work, ...]
    cells: Cells
    before: NDArray[np.bool_]
    cell: Ints
    share: Floats
    row: Ints
    fates: NDArray[np.uint8]

    def strike(self, cell: Ints, inputs: Ints, *, rng: np.random.Generator) -> Fates:
        """Read a random record of each *cell*, on its row of *inputs*."""
        record = np.searchsorted(self._ends(), cell + rng.random(len(cell)), side="right")
        row = self.row[np.minimum(record, len(self.row) - 1)][:, None]
        bits = self.fates[:, row, inputs // 8] >> (7 - inputs % 8).astype(np.uint8) & 1
        return Fates(*bits.astype(bool))

    def _ends(self) -> Floats:
        """Return, record by record, cell + the shares up to this record: rising, to be searched."""
        total = np.cumsum(self.share)
        first = np.searchsorted(self.cell, self.cell)
        return self.cell + np.minimum(total - total[first] + self.share[first], 1.0)

    def truth(self) -> float:
        """Return the Resiliency Accuracy of exactly these records."""
        wrong = np.unpackbits(self.fates[0], axis=1, count=len(self.before)).mean(1)[self.row]
        drop = np.bincount(self.cell, weights=self.share * wrong, minlength=len(self.cells)) - self.before.mean()
        control = self.cells.p[self.cells.control].sum()
        mass = np.where(self.cells.control, 0.0, self.cells.p * self.cells.used)
        return float((1 - self.before.mean()) * (1 - control) - mass @ drop)


def enumerated(target: EngineTarget, *, folder: Path, name: str) -> Recorded:
    """Return every upset there is on every image."""
    upsets, cell, share = every_upset(target.accelerator, target.layers)
    fates = _kept(target, upsets, folder=folder, name=name)
    return _recorded(target, cell, share, np.arange(len(cell)), fates)


def sampled(target: EngineTarget, *, folder: Path, name: str) -> Recorded:
    """Return a few random upsets of every layer, type and bit on every image, in shares of their cells alike."""
    cells, rng = target.cells, np.random.default_rng(2022)
    levels = np.sort(list(STRUCK))
    level = levels[np.searchsorted(levels, cells.bit, side="right") - 1]
    struck = np.flatnonzero(~cells.control & (cells.bit == level))
    times = np.array([STRUCK[int(bit)] for bit in cells.bit[struck]])
    at = np.repeat(struck, times)
    upsets = locate_upsets(target.accelerator, target.layers, cells.layer[at], cells.kind[at], cells.bit[at], rng=rng)
    fates = _kept(target, upsets, folder=folder, name=name)
    first = np.zeros(len(cells), dtype=np.int64)
    first[struck] = np.cumsum(times) - times
    stands_for = {(cells.layer[i], cells.kind[i], cells.bit[i]): i for i in struck}
    cell, row, share = [], [], []
    for i in np.flatnonzero(~cells.control):
        source = stands_for[cells.layer[i], cells.kind[i], level[i]]
        n = STRUCK[int(level[i])]
        cell += [i] * n
        row += (first[source] + np.arange(n)).tolist()
        share += [1 / n] * n
    return _recorded(target, np.array(cell), np.array(share), np.array(row), fates)


def _recorded(target: EngineTarget, cell: Ints, share: Floats, row: Ints, fates: NDArray[np.uint8]) -> Recorded:
    return Recorded(target.accelerator, target.works, target.cells, target.before, cell, share, row, fates)


def _kept(target: EngineTarget, upsets: Upsets, *, folder: Path, name: str) -> NDArray[np.uint8]:
    """Return the packed outcomes of *upsets* on all inputs, from *folder* as far as they were run before."""
    images = len(target.before)
    step = max(1, _AT_ONCE // images)
    told = f"{target.engine.digest()} {target.accelerator} {images} {len(upsets)}".encode()
    held = folder / f"{name}-{hashlib.sha256(told + upsets.element.tobytes()).hexdigest()[:12]}"
    held.mkdir(parents=True, exist_ok=True)
    parts = []
    for begin in range(0, len(upsets), step):
        file = held / f"{begin:07d}.npy"
        if not file.exists():
            index = np.arange(begin, min(begin + step, len(upsets)))
            found = target.run(upsets.take(index), np.tile(np.arange(images), (len(index), 1)))
            bits = np.packbits(np.stack((found.wrong, found.changed, found.due)), axis=2)
            part = file.with_suffix(".part")
            with part.open("wb") as stream:
                np.save(stream, bits)
            os.replace(part, file)
            print(f"  {name}: {begin + len(index):,} of {len(upsets):,} upsets", file=sys.stderr, flush=True)
        parts.append(np.load(file))
    return np.concatenate(parts, axis=1)


def digits() -> tuple[nn.Module, Data]:
    """Return a network of 504 multiply-accumulates for digits of 4 x 4 pixels, trained on the spot, and 100 of them."""
    from sklearn.datasets import load_digits

    held = load_digits()
    order = torch.randperm(len(held.target), generator=torch.Generator().manual_seed(0))
    images = F.avg_pool2d(torch.from_numpy(held.images).float().div(16).unsqueeze(1), 2)[order]
    labels = torch.from_numpy(held.target).long()[order]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # how sums are split would change the weights
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            for batch in torch.arange(1600).reshape(-1, 100):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    torch.set_num_threads(threads)
    return model.eval(), Data(images[-100:].clone(), labels[-100:].clone())


def folder_of_records(given: Path | None) -> Path:
    """Return where records are kept: *given*, or below the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return given or base / "torchfault" / "resiliency"


def engine_of(model: nn.Module, data: Data) -> Engine:
    """Return the engine that strikes *model*."""
    return Engine(model, data)
