"""Certified masking: the share of weight faults that is proven harmless by stage and bit, its cost, and its truth.

ResNet-20 with its real weights on the first CIFAR-10 test images: every single-bit fault of the weights of all
convolutions and the linear layer on every image is asked for its proof. Random certified faults, and as many of those
nearest to their radius, are run by both executors. ``cost_ratio`` is the processor time of a proof over that of a lane,
one thread, with the set-up of the proofs spread over ``trials``; ``set_up_lanes`` is that set-up in lanes.
"""

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.engine import cpu_seconds, drain, outcomes, resnet20
from benchmarks.sections import tell
from torchfault.data import leaves
from torchfault.engine import Engine
from torchfault.faults import BitFlip
from torchfault.resolve import Block, Certified, certified
from torchfault.space import FaultSpace
from torchfault.trials import strike
from torchfault.words.deltas import flip_deltas

TRIALS = 100_000
_NEAR = 0.5  # of the radius, and up: the nearest


def stage(site: str) -> str:
    """Return the stage of ResNet-20 that a site is in.

    >>> stage("layer3.1.conv2.weight"), stage("linear.weight")
    ('layer3', 'linear')
    """
    return site.split(".")[0]


def sizes(proofs: Certified, space: FaultSpace, image: int) -> Mapping[str, np.ndarray]:
    """Return the size of every flip on an image over that which is proven: below 1 it is, by site, (elements, bits)."""
    found = {}
    for site in space.sites:
        proof, element = proofs.proofs[site.name], np.arange(site.elements)
        most = proof.radius[image, proof.column] / np.maximum(proof.met[image, proof.operand[element]], 1e-300)
        change = np.abs(flip_deltas(proofs.words[site.name][0].astype(np.uint64), site.word))
        found[site.name] = np.nan_to_num(change / np.maximum(most, 1e-300)[:, None], nan=np.inf, posinf=np.inf)
    return found


def checked(engines: list[Engine], space: FaultSpace, near: Mapping[str, np.ndarray], image: int, n: int) -> list[int]:
    """Run *n* proven faults of each kind on an image by all *engines*: random ones, and those nearest to the radius.

    Returns how many lanes ran, and how many of them changed the top class or gave no answer.
    """
    rng = np.random.default_rng(image)
    size = np.concatenate([values.reshape(-1) for values in near.values()])
    chosen = np.concatenate(
        (rng.choice(np.flatnonzero(size < 1), n), _some(np.flatnonzero((size < 1) & (size > _NEAR)), n, rng))
    )
    inputs = np.full(len(chosen), image)
    trials = strike(space, space.locate(chosen), model=BitFlip(), rng=rng, inputs=inputs)
    wrong = 0
    for engine in engines:
        for lanes in engine.run(trials):
            wrong += int(outcomes(leaves(lanes.golden)[0], leaves(lanes.faulty)[0]).sum())
    return [len(trials) * len(engines), wrong]


def _some(items: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(items)[:n]


def costs(engine: Engine, space: FaultSpace, *, lanes: int, repeats: int) -> dict[str, float]:
    """Return the processor time of set-up, of a proof and of a lane, medians of *repeats* in turns."""
    rows = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        index, inputs = rng.integers(0, len(space), lanes), rng.integers(0, len(engine.data), lanes)
        trials = strike(space, space.locate(index), model=BitFlip(), rng=rng, inputs=inputs)
        proofs: list[Certified] = []
        set_up = cpu_seconds(lambda kept=proofs: kept.append(certified(engine, space, _Nothing(), audit=0)))
        block = Block(space, index, trials, None, lambda: {}, np.zeros(lanes), np.zeros(lanes, dtype=bool))
        prove = cpu_seconds(lambda of=proofs, block=block: of[0].resolve(block, np.arange(lanes)))
        rows.append((set_up, prove / lanes, cpu_seconds(lambda trials=trials: drain(engine, trials)) / lanes))
    set_up, prove, lane = (statistics.median(column) for column in zip(*rows, strict=True))
    return {"set_up": set_up, "prove": prove, "lane": lane}


class _Nothing:
    """A resolver that runs no lanes."""

    assumption = ""

    def resolve(self, block: Block, rows: np.ndarray) -> None:
        """Do nothing."""


def certify(*, images: int, lanes: int, repeats: int, checks: int) -> dict[str, Any]:
    """Return shares, costs and what came of the checks, of *checks* of either kind on every image."""
    model, data = resnet20(slice(images))
    engine, other = Engine(model, data), Engine(resnet20(slice(images))[0], data, executor="hooks")
    space = engine.space.select(kinds="weight", types=["Conv2d", "Linear"])
    proofs = certified(engine, space)
    found = {name: np.zeros(32) for name in dict.fromkeys(map(stage, space.names))}
    words = {name: sum(site.elements for site in space.sites if stage(site.name) == name) for name in found}
    ran = np.zeros(2, dtype=np.int64)
    for image in range(images):
        near = sizes(proofs, space, image)
        for name, size in near.items():
            found[stage(name)] += (size < 1).sum(axis=0) / images
        ran += checked([engine, other] if image % 10 == 0 else [engine], space, near, image, checks)
    cost = costs(engine, space, lanes=lanes, repeats=repeats)
    certified_ = {
        name: {bit: round(n / words[name], 4) for bit, n in enumerate(counts)} for name, counts in found.items()
    }
    return {
        "certified": certified_,
        "stages": {name: round(float(counts.mean()) / words[name], 4) for name, counts in found.items()},
        "share": round(float(sum(counts.mean() for counts in found.values())) / sum(words.values()), 4),
        "cost_ratio": round((cost["set_up"] / TRIALS + cost["prove"]) / cost["lane"], 4),
        "set_up_lanes": round(cost["set_up"] / cost["lane"]),
        "trials": TRIALS,
        "checked": int(ran[0]),
        "disagreements": int(ran[1]),
    }


def main() -> None:
    """Print the figures, one line a figure or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--images", type=int, default=100, help="images, the first of the test set (100)")
    parser.add_argument("--lanes", type=int, default=8192, help="proofs and lanes to be timed (8192)")
    parser.add_argument("--repeats", type=int, default=5, help="timings to take the median of (5)")
    parser.add_argument(
        "--checks", type=int, default=100, help="certified faults of each kind to run on an image (100)"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = certify(images=given.images, lanes=given.lanes, repeats=given.repeats, checks=given.checks)
    if given.json:
        tell(found, "certified", as_json=True)
        return
    tell(found, "certified", as_json=False)
    for name in ("stages", "share", "cost_ratio", "set_up_lanes", "checked", "disagreements"):
        print(f"{name}: {found[name]}")


if __name__ == "__main__":
    main()
