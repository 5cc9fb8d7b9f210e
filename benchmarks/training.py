"""Fault-aware training and the search that feeds it: draws until a critical fault, failures after, what it costs.

An MLP for scikit-learn's digits, 64-512-512-10, after the 784-512-512-10 of ISimDL; its 1,200 images for training are
others than the 597 that everything is measured on. Draws are the median of seeds, uniform against ``rising``.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.engine import cpu_seconds
from benchmarks.sections import tell
from torchfault.campaign import run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.hardening import FaultDraws, Refreshed, train_with_faults
from torchfault.model.discover import find
from torchfault.recipes import CriticalPool, drops, paired
from torchfault.recipes.survival import ratio
from torchfault.results import dropped
from torchfault.sampling import Sampler, Uniform
from torchfault.sensitivity import rising

DROPS = (0.05, 0.1, 0.25, 0.5)
_TRAINED = 1200
_EPOCHS, _BATCH, _RATE = 30, 64, 1e-3
_SHARE = 0.1  # of the steps, which have faults


def digits() -> tuple[Data, Data]:
    """Return the images to learn and those to measure on."""
    from sklearn.datasets import load_digits

    held = load_digits()
    order = torch.randperm(len(held.target), generator=torch.Generator().manual_seed(5))
    inputs = torch.from_numpy(held.images).float().div(16).flatten(1)[order]
    labels = torch.from_numpy(held.target).long()[order]
    return Data(inputs[:_TRAINED], labels[:_TRAINED]), Data(inputs[_TRAINED:], labels[_TRAINED:])


def relu() -> nn.Module:
    """Return the activation of the published network."""
    return nn.ReLU()


def bounded() -> nn.Module:
    """Return one that is the same up to 1, and 1 above it."""
    return nn.Hardtanh(0.0, 1.0)


def mlp(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return the network, always with the same weights."""
    torch.manual_seed(0)
    hidden = (nn.Linear(64, 512), activation(), nn.Linear(512, 512), activation())
    return nn.Sequential(*hidden, nn.Linear(512, 10))


def learnt(network: nn.Module, data: Data, draws: FaultDraws | None, *, epochs: int = _EPOCHS) -> nn.Module:
    """Train *network* under the faults of *draws*, in place, and return it."""
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    train_with_faults(network, data, optimizer, draws, epochs=epochs, batch=_BATCH)
    return network


def critical(network: nn.Module, data: Data) -> FaultDraws:
    """Return draws from a pool of faults that cost a quarter of the accuracy, searched anew every 300 steps."""
    space = find(network, data).space.select("*.weight")
    search = CriticalPool(space, data.take(slice(0, 64)), faults=16, draws=32)
    return FaultDraws(space, share=_SHARE, pool=Refreshed(search, every=300), seed=1)


def searched(network: nn.Module, data: Data, *, seeds: int) -> dict[str, Any]:
    """Return the median draws until a fault lowers the accuracy by each share, uniform and by importance."""
    engine = Engine(network, data)
    space = engine.space.select("*.weight")
    samplers: dict[str, Sampler] = {
        "uniform": Uniform(),
        "importance": rising(network, data, space, floor=0.05),
    }
    draws: dict[str, list[list[float]]] = {}
    for name, sampler in samplers.items():
        draws[name] = []
        for seed in range(seeds):
            results = run(drops(engine, space, drop=max(DROPS), sampler=sampler, seed=seed))
            shares = results.columns.values / dropped(results).golden
            draws[name].append([float(np.argmax(shares >= drop)) + 1 for drop in DROPS])
    medians = {name: np.median(rows, axis=0).tolist() for name, rows in draws.items()}
    rows = zip(DROPS, medians["uniform"], medians["importance"], strict=True)
    return {
        f"{drop:g}": {"uniform": one, "importance": other, "ratio": round(one / other, 1)} for drop, one, other in rows
    }


def failures(networks: Mapping[str, nn.Module], data: Data, *, trials: int) -> dict[str, Any]:
    """Return how many times fewer single flips in weights and biases fail than in the first of *networks*."""
    engines = {name: Engine(network, data) for name, network in networks.items()}
    first = next(iter(engines))
    names = [site.name for site in engines[first].space.sites if site.kind in ("weight", "bias")]
    frame = paired(engines, names, trials=trials)
    failed = {name: round(value * trials) for name, value in zip(frame["format"], frame["value"], strict=True)}
    found = {}
    for name, engine in engines.items():
        fewer = ratio(failed[first], failed[name], trials)
        right = float((engine.golden().argmax(1) == data.labels).float().mean())
        found[name] = {"failed": failed[name] / trials, "clean": right}
        found[name] |= {"ratio": fewer.value, "low": fewer.low, "high": fewer.high}
    return found


def overhead(data: Data, draws: FaultDraws, *, repeats: int, epochs: int = 2) -> float:
    """Return by how much more CPU time epochs take under faults: the median over pairs that took turns."""
    twins = mlp(bounded), mlp(bounded)
    ratios = []
    for _ in range(repeats):
        seconds = [
            cpu_seconds(partial(learnt, twin, data, faults, epochs=epochs))
            for twin, faults in zip(twins, (None, draws), strict=True)
        ]
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios) - 1


def figures(*, seeds: int, trials: int, repeats: int) -> dict[str, Any]:
    """Return ``{"fat": {drop: {uniform, importance, ratio}, failures_ratio, clean_change, overhead, ...}}``."""
    known, measured = digits()
    network = learnt(mlp(relu), known, None)
    found = searched(network.requires_grad_(False), measured, seeds=seeds)
    fresh = FaultDraws(find(mlp(bounded), known).space.select("*.weight"), share=_SHARE, seed=1)
    networks = {
        "rectified": network,
        "rectified, trained under faults": learnt(mlp(relu), known, fresh),
        "rectified, critical faults": learnt(mlp(relu), known, critical(mlp(relu), known)),
        "bounded": learnt(mlp(bounded), known, None),
        "bounded, trained under faults": learnt(mlp(bounded), known, fresh),
        "bounded, critical faults": learnt(mlp(bounded), known, critical(mlp(bounded), known)),
    }
    for one in networks.values():
        one.requires_grad_(False)
    rows = failures(networks, measured, trials=trials)
    best = rows["bounded, trained under faults"]
    every = FaultDraws(fresh.space, seed=1)
    found |= {
        "failures_ratio": best["ratio"],
        "clean_change": best["clean"] - rows["rectified"]["clean"],
        "overhead": overhead(known, fresh, repeats=repeats),
        "overhead_every_step": overhead(known, every, repeats=repeats),
        "overhead_critical": overhead(
            known, critical(mlp(bounded), known), repeats=max(1, repeats // 5), epochs=_EPOCHS
        ),
        "networks": rows,
    }
    return {"fat": found}


def main() -> None:
    """Print lines, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", type=int, default=20, help="searches for each drop")
    parser.add_argument("--trials", type=int, default=100_000, help="single bit flips in each network")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of trainings for the overhead")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tell(figures(seeds=given.seeds, trials=given.trials, repeats=given.repeats), "fat", as_json=given.json)


if __name__ == "__main__":
    main()
