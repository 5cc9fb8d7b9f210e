"""What became of upsets on all images, struck once and kept: what estimators read seed after seed, and their truth."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.engine import MEAN, STD, data_folder
from benchmarks.thales.records import Recorded, Records, answers_of
from torchfault.adapters.load import load_data, load_model
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.layers import Layers, layers_of
from torchfault.hardware.measure import UpsetMeasure
from torchfault.hardware.upset_space import upset_space
from torchfault.hardware.upsets import Upset

Ints = NDArray[np.int64]

# The bits struck of every layer and type, and those that each stands for. Of 18,720 upsets of the sign and of bits 0 to
# 24 of ResNet-20, each on one image, none changed an answer; of those of bits 25 to 29, one in eighty did.
STRUCK = {30: (30,), 28: range(25, 30), 24: (31, *range(25))}
AGAIN = 30  # the bit that nearly all of the drop comes from is struck anew in every further round
_AT_ONCE = 10_000  # lanes between two saves of a large network


def enumerated(engine: Engine, accelerator: Accelerator, *, folder: Path, name: str) -> Recorded:
    """Return every upset there is on every image."""
    layers = layers_of(engine.model, engine.data)
    space = upset_space(accelerator, layers.works, layers.space)
    index = np.arange(len(space))
    cell, measure = space.cell_of(index), UpsetMeasure()
    share = measure.within(space, cell, space.place_of(index))
    live = ~space.is_control[cell] & (share > 0)
    assert (space.cells.bit[cell[live]] >= 0).all(), "a random word is one of too many"
    answers = _kept(engine, accelerator, layers, index[live], folder=folder, name=name, lanes=1_000_000)
    return Recorded(engine, accelerator, layers, Records(cell[live], share[live], np.arange(len(answers))), answers)


def sampled(engine: Engine, accelerator: Accelerator, *, rounds: int, folder: Path, name: str) -> Recorded:
    """Return random upsets of every layer, type and bit on every image, in equal shares of their cells.

    The first round strikes every layer, type and bit of STRUCK once, each further one the bit AGAIN alone: more rounds
    add to the records and leave the earlier ones as they are.
    """
    layers = layers_of(engine.model, engine.data)
    space = upset_space(accelerator, layers.works, layers.space)
    bit, data = space.cells.bit, ~space.is_control
    stand_in = {each: struck for struck, bits in STRUCK.items() for each in bits}
    level = np.array([stand_in.get(int(each), -1) for each in bit])
    owners, answers = [], []
    for number in range(rounds):
        struck = np.flatnonzero(data & np.isin(bit, list(STRUCK) if number == 0 else [AGAIN]))
        places = UpsetMeasure().draw_places(space, struck, rng=np.random.default_rng([2022, number]))
        index = space.number_of(struck, places)
        owners.append(struck)
        answers.append(
            _kept(engine, accelerator, layers, index, folder=folder, name=f"{name}-{number}", lanes=_AT_ONCE)
        )
    owner = np.concatenate(owners)
    key = {(space.layer[i], space.type[i], bit[i]): np.flatnonzero(owner == i) for i in owners[0]}
    cells = np.flatnonzero(data)
    rows = [key[space.layer[i], space.type[i], level[i]] for i in cells]
    counts = np.array([len(row) for row in rows])
    records = Records(np.repeat(cells, counts), np.repeat(1 / counts, counts), np.concatenate(rows))
    return Recorded(engine, accelerator, layers, records, np.concatenate(answers))


def _kept(
    engine: Engine, accelerator: Accelerator, layers: Layers, index: Ints, *, folder: Path, name: str, lanes: int
) -> NDArray[np.int8]:
    """Return the answers of upsets on all inputs, from *folder* as far as they were run before."""
    space, images = upset_space(accelerator, layers.works, layers.space), len(engine.data)
    step = max(1, lanes // images)
    told = f"{engine.digest()} {engine.data.digest()} {space.digest()} {lanes}".encode()
    held = folder / f"{name}-{hashlib.sha256(told + index.tobytes()).hexdigest()[:12]}"
    held.mkdir(parents=True, exist_ok=True)
    parts = []
    for begin in range(0, len(index), step):
        file = held / f"{begin:07d}.npy"
        if not file.exists():
            part = file.with_suffix(".part")
            with part.open("wb") as stream:
                np.save(stream, answers_of(engine, Upset(layers), space, index[begin : begin + step]))
            os.replace(part, file)
            print(f"  {name}: {min(begin + step, len(index)):,} of {len(index):,} upsets", file=sys.stderr, flush=True)
        parts.append(np.load(file))
    return np.concatenate(parts)


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


def resnet(name: str) -> tuple[nn.Module, Data]:
    """Return ``resnet20`` or ``resnet32`` with its weights, and the 1,000 CIFAR-10 test images."""
    folder = data_folder()
    model = load_model(f"torchfault.zoo:{name}", checkpoint=next(folder.glob(f"{name}-*.th")))
    return model, load_data(folder / "cifar10_test_1000.npz", mean=MEAN, std=STD)
