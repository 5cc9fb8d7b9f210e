"""What each method of hardening gains and costs, on the same faults: ResNet-20 on CIFAR-10, and the digits CNN.

Golden ranges are from other images than those measured. Failures: another top class than without faults, or a number
that is not finite; single bit flips one to an image, bit error rates on all parameters together. Latency is CPU time of
a forward pass on one thread, the median of ratios of passes that took turns; wall clocks of shared machines tell less.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.engine import MEAN, STD, data_folder, resnet20
from benchmarks.error_rates import flips
from torchfault import demo
from torchfault.campaign import Campaign, run
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.hardening import (
    Checksums,
    InvariantBits,
    Method,
    Parity,
    Profile,
    Ranges,
    Secded,
    Triplicate,
    WeightChecksums,
    WeightRanges,
    detecting,
    detection,
    front,
    harden,
    overhead,
    profile,
    protect,
    residual,
)
from torchfault.model.discover import find
from torchfault.recipes.paired import paired
from torchfault.recipes.survival import ratio
from torchfault.space import FaultSpace
from torchfault.statistics import MaxTrials

RATES = (1e-6, 1e-5, 1e-4, 1e-3)
KINDS = {"weights": ("weight", "bias", "norm"), "activations": ("output",)}
WEIGHTS: Mapping[str, tuple[Method, ...]] = {
    "invariant bits": (InvariantBits(),),
    "weight ranges": (WeightRanges(),),
    "weight ranges, zero": (WeightRanges(action="zero"),),
    "parity": (Parity(),),
    "triplicate": (Triplicate(),),
    "SECDED": (Secded(),),
    "weight checksums": (WeightChecksums(),),
}
ACTIVATIONS: Mapping[str, tuple[Method, ...]] = {
    "ranges": (Ranges(),),
    "ranges, channel": (Ranges(per="channel"),),
    "ranges, zero": (Ranges(action="zero"),),
    "ranges, mean": (Ranges(action="mean"),),
}
BOTH: Mapping[str, tuple[Method, ...]] = {
    "invariant bits + ranges": (InvariantBits(), Ranges()),
    "SECDED + ranges": (Secded(), Ranges()),
}


@dataclass(frozen=True)
class Subject:
    """A network, images for golden ranges, images to measure on, and the recipe that is to be cheap for it."""

    model: nn.Module
    known: Data
    measured: Data
    recipe: tuple[Method, ...]


def resnet() -> Subject:
    """Return ResNet-20, ranges from 2,000 training images; guards before blocks, and on the weights of layers alone."""
    model, measured = resnet20(slice(1000))
    with np.load(data_folder() / "cifar10_train_4000.npz") as archive:
        shown = torch.from_numpy(archive["images"][:2000])
    pixels = shown.permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    layers = ("*conv*.weight", "linear.*")
    places = ("layer?.?:input", "layer?:output")
    return Subject(model, Data(pixels.contiguous()), measured, (InvariantBits(layers), Ranges(places)))


def digits() -> Subject:
    """Return the digits CNN, ranges from the first half of the test images."""
    data = demo.data()
    return Subject(demo.model(), data.take(slice(0, 148)), data.take(slice(148, None)), (InvariantBits(), Ranges()))


NETWORKS = {"ResNet-20": resnet, "digits CNN": digits}


def leaderboard(subject: Subject, *, trials: int, repeats: int) -> dict[str, Any]:
    """Return what every method gains and costs."""
    golden = profile(subject.model, subject.known, batch=128)
    combined = {**BOTH, "recipe": subject.recipe}
    models = {
        name: harden(subject.model, *methods, profile=golden).requires_grad_(False)
        for name, methods in {**WEIGHTS, **ACTIVATIONS, **combined}.items()
    }
    few = subject.measured.take(slice(0, 100))
    found: dict[str, Any] = {name: {"faults": {}} for name in models}
    for kind, methods in (("weights", WEIGHTS), ("activations", ACTIVATIONS)):
        chosen = {name: models[name] for name in (*methods, *combined)}
        for name, row in single(subject.model, chosen, few, kind, trials=trials).items():
            found[name]["faults"][kind] = row
    chosen = {name: models[name] for name in (*WEIGHTS, *combined)}
    for rate in RATES:
        for name, row in errors(subject.model, chosen, few, rate, repeats=repeats).items():
            found[name]["faults"][f"weights at {rate:g}"] = row
    right = accuracy(subject.model, subject.measured)
    slower = latency(subject.model, models, subject.measured)
    for name, model in models.items():
        found[name]["accuracy_change"] = accuracy(model, subject.measured) - right
        found[name]["latency"] = slower[name]
        found[name]["memory"] = overhead(subject.model, model)
    return found


def single(
    plain: nn.Module, models: Mapping[str, nn.Module], data: Data, kind: str, *, trials: int
) -> dict[str, dict[str, float]]:
    """Return how much less often one bit flip fails in each of *models*."""
    engines = {"plain": Engine(plain, data)} | {name: Engine(model, data) for name, model in models.items()}
    names = [site.name for site in engines["plain"].space.sites if site.kind in KINDS[kind]]
    frame = paired(engines, names, trials=trials)
    failed = {name: round(value * trials) for name, value in zip(frame["format"], frame["value"], strict=True)}
    rows = {}
    for name in models:
        fewer = ratio(failed["plain"], failed[name], trials)
        rows[name] = {"before": failed["plain"] / trials, "after": failed[name] / trials}
        rows[name] |= {"ratio": fewer.value, "low": fewer.low, "high": fewer.high}
    return rows


def errors(
    plain: nn.Module, models: Mapping[str, nn.Module], data: Data, rate: float, *, repeats: int
) -> dict[str, dict[str, float]]:
    """Return how many fewer images fail where every bit of the parameters flips with probability *rate*.

    The bounds are percentiles of 2,000 draws of the repetitions, in all of which every image has the same flips.
    """
    counts = {name: np.zeros(repeats) for name in ("plain", *models)}
    space = FaultSpace(tuple(s for s in find(plain, data).space.sites if s.kind in KINDS["weights"]))
    golden = {name: _top(model, data)[0] for name, model in (("plain", plain), *models.items())}
    for repeat in range(repeats):
        trial = flips(space, rate, np.random.default_rng([20261129, round(1e9 * rate), repeat]))
        for name, model in (("plain", plain), *models.items()):
            if len(trial.element):
                with inject(model, trial):
                    top, bad = _top(model, data)
                counts[name][repeat] = ((top != golden[name]) | bad).sum()
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, repeats, (2000, repeats))
    total, rows = repeats * len(data), {}
    for name in models:
        before, after = counts["plain"], counts[name]
        many = before[drawn].sum(1) / np.maximum(after[drawn].sum(1), 0.5)
        low, high = np.quantile(many, (0.025, 0.975))
        value = before.sum() / after.sum() if after.any() else float("inf")
        rows[name] = {"before": before.sum() / total, "after": after.sum() / total}
        rows[name] |= {"ratio": float(value), "low": float(low), "high": float(high)}
    return rows


def _top(model: nn.Module, data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        scores = model(data.inputs)
    return scores.argmax(1), ~scores.isfinite().all(1)


def accuracy(model: nn.Module, data: Data) -> float:
    """Return the share of right answers without faults."""
    return float((_top(model, data)[0] == data.labels).float().mean())


def latency(
    plain: nn.Module, models: Mapping[str, nn.Module], data: Data, *, batches: Sequence[int] = (128, 1)
) -> dict[str, dict[str, float]]:
    """Return by how much longer a pass takes, for each size of batch: 0.05 is 5 %."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    slower: dict[str, dict[str, float]] = {name: {} for name in models}
    for batch in batches:
        given = data.inputs[:batch]
        ratios: dict[str, list[float]] = {name: [] for name in models}
        with torch.inference_mode():
            for _ in range(9 if batch > 1 else 100):
                base = _seconds(plain, given)
                for name, model in models.items():
                    ratios[name].append(_seconds(model, given) / base)
        for name, many in ratios.items():
            slower[name][f"batch {batch}"] = statistics.median(many) - 1
    torch.set_num_threads(threads)
    return slower


def _seconds(model: nn.Module, given: torch.Tensor) -> float:
    start = time.process_time()
    model(given)
    return time.process_time() - start


def detectors(subject: Subject, golden: Profile, *, trials: int) -> dict[str, Any]:
    """Return what checksums and ranges see of the flips in what layers compute, and how often they err."""
    few, found = subject.measured.take(slice(0, 100)), {}
    for name, method in (("checksums", Checksums()), ("ranges", Ranges())):
        watched = detecting(harden(subject.model, method, profile=golden), mend=False).requires_grad_(False)
        engine = Engine(watched, few)
        space = engine.space.select(["*.conv2d:output", "*.linear:output"] if name == "checksums" else "*conv*:output")
        seen = detection(engine, space=space, trials=trials)
        with torch.inference_mode():
            alarms = sum(int(watched(rows)["detected"].sum()) for rows in subject.measured.inputs.split(250))
        found[name] = {
            "coverage": [seen.coverage.value, seen.coverage.low, seen.coverage.high],
            "precision": [seen.precision.value, seen.precision.low, seen.precision.high],
            "false_alarms": [alarms, len(subject.measured)],
        }
    slower = latency(subject.model, {"checksums": harden(subject.model, Checksums())}, subject.measured)
    found["checksums"]["latency"] = slower["checksums"]
    return found


def protection(subject: Subject, *, trials: int) -> dict[str, Any]:
    """Return what protection of bits of sites ends: by 1 % of the bits, and how many it takes to end 95 %.

    The share is the lowest of the front at which the lower bound of what ends is 95 %. Half as many trials of another
    seed measure anew what is left.
    """
    engine = Engine(subject.model, subject.measured.take(slice(0, 200)))
    first, second = (
        run(Campaign(engine, engine.space.select(kinds="weight"), stop=MaxTrials(n), seed=seed))
        for seed, n in ((1, trials), (2, trials // 2))
    )
    table = front(first)
    enough = table[table["removed_low"] >= 0.95]
    share = float(enough["bits"].iloc[0]) if len(enough) else float("nan")
    found: dict[str, Any] = {"share_95": share}
    for budget in (0.01, share):
        if budget == budget:
            chosen = protect(first, budget=budget)
            again = residual(chosen, second)
            found[f"{budget:.3g}"] = {
                "removed": [chosen.removed.value, chosen.removed.low],
                "predicted": [chosen.residual.value, chosen.residual.high],
                "measured": [again.value, again.low, again.high],
            }
    return found


def main() -> None:
    """Measure and print; write the figures to a file with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--trials", type=int, default=4000, help="bit flips of each kind")
    parser.add_argument("--repeats", type=int, default=10, help="repetitions at each bit error rate")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="only this one")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {"leaderboard": {}, "detection": {}, "protection": {}}
    for name in given.network or NETWORKS:
        subject = NETWORKS[name]()
        subject.model.requires_grad_(False)
        board = leaderboard(subject, trials=given.trials, repeats=given.repeats)
        figures["leaderboard"][name] = board
        golden = profile(subject.model, subject.known, batch=128)
        figures["detection"][name] = detectors(subject, golden, trials=given.trials)
        figures["protection"][name] = protection(subject, trials=6 * given.trials)
        print(
            f"{name}\n",
            *_lines(board),
            json.dumps(figures["detection"][name]),
            json.dumps(figures["protection"][name]),
            sep="\n",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


def _lines(board: Mapping[str, Any]) -> list[str]:
    kinds = ("weights", "activations", *(f"weights at {rate:g}" for rate in RATES))
    lines = [
        f"| method | {' | '.join(kinds)} | accuracy | latency at 128, 1 | memory |",
        "|---" * (len(kinds) + 4) + "|",
    ]
    for name, row in board.items():
        cells = [
            f"{one['ratio']:.3g} [{one['low']:.3g}, {one['high']:.3g}]" if (one := row["faults"].get(kind)) else "-"
            for kind in kinds
        ]
        slow = ", ".join(f"{100 * value:+.1f} %" for value in row["latency"].values())
        change = f"{100 * row['accuracy_change']:+.2f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {change} | {slow} | {100 * row['memory']:+.2f} % |")
    return lines


if __name__ == "__main__":
    main()
