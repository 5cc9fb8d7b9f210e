"""What each method of hardening gains and costs, on the same faults, for four networks; what to protect; checksums.

Beside these: fault-aware training (``fat``, benchmarks/training.py) and search (benchmarks/architecture.py).

ResNet-20 on CIFAR-10 in float32 and with int8 weights, the digits CNN, and a spiking network on digits (with snnTorch;
left out without it). Golden ranges are from other images than those measured. Failures: another top class than without
faults, or a number that is not finite; single bit flips one to an image, bit error rates on all parameters together.
Latency is CPU time of a forward pass on one thread, the median of ratios of passes that took turns; wall clocks of
shared machines tell less.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import architecture, rows, training
from benchmarks.checksums import abft
from benchmarks.engine import MEAN, STD, data_folder, resnet20
from benchmarks.error_rates import flips
from benchmarks.spiking import digits as spiking_digits
from torchfault import demo, represent
from torchfault.campaign import Campaign, run
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.errors import ModelError
from torchfault.hardening import (
    InvariantBits,
    Method,
    Parity,
    Ranges,
    Secded,
    Triplicate,
    WeightChecksums,
    WeightRanges,
    ZeroSpace,
    front,
    harden,
    overhead,
    profile,
    protect,
    residual,
    unpacked,
)
from torchfault.model.discover import find
from torchfault.recipes.paired import paired
from torchfault.recipes.survival import ratio
from torchfault.space import FaultSpace
from torchfault.statistics import MaxTrials

PARTS = ("leaderboard", "fat", "protection", "abft", "search")
RATES = (1e-6, 1e-5, 1e-4, 1e-3)
KINDS = {"weights": ("weight", "bias", "norm"), "activations": ("output",)}
WEIGHTS: Mapping[str, tuple[Method, ...]] = {
    "invariant bits": (InvariantBits(),),
    "weight ranges": (WeightRanges(),),
    "weight ranges, zero": (WeightRanges(action="zero"),),
    "parity": (Parity(),),
    "triplicate": (Triplicate(),),
    "SECDED": (Secded(),),
    "zero-space": (ZeroSpace(),),
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
_PLACES = Ranges(("layer?.?:input", "layer?:output"), action="zero")


@dataclass(frozen=True)
class Subject:
    """A network, images for golden ranges, images to measure on, and the recipe that is to be cheap for it.

    *often* is how many times more trials it gets: those of small networks take next to no time, and fail less.
    """

    model: nn.Module
    known: Data
    measured: Data
    recipe: tuple[Method, ...]
    often: int = 1


def resnet() -> Subject:
    """Return ResNet-20, ranges from 2,000 training images; guards before blocks, and on the weights of layers alone."""
    model, measured = resnet20(slice(1000))
    with np.load(data_folder() / "cifar10_train_4000.npz") as archive:
        shown = torch.from_numpy(archive["images"][:2000])
    pixels = shown.permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    layers = ("*conv*.weight", "linear.*")
    return Subject(model, Data(pixels.contiguous()), measured, (InvariantBits(layers), _PLACES))


def int8_resnet() -> Subject:
    """Return the same with weights of int8: codes with check bits in them, guards on scales and normalisation."""
    plain = resnet()
    model = unpacked(represent(plain.model, "int8"))
    recipe = (ZeroSpace(), InvariantBits(("*_scale", "*bn*", "linear.bias")), _PLACES)
    return Subject(model, plain.known, plain.measured, recipe)


def digits() -> Subject:
    """Return the digits CNN, ranges from the first half of the test images."""
    data = demo.data()
    recipe = (InvariantBits(), Ranges(action="zero"))
    return Subject(demo.model(), data.take(slice(0, 148)), data.take(slice(148, None)), recipe, often=4)


def spiking() -> Subject:
    """Return 64-48-10 leaky neurons over ten steps; guards on currents and spikes, and on their count.

    What is out of range in the count is clamped: to zero the largest would take the answer away.
    """
    model, data = spiking_digits()
    recipe = (Secded(), Ranges("*:input", action="zero"), Ranges("0:output"))
    return Subject(nn.Sequential(model).eval(), data.take(slice(0, 50)), data.take(slice(50, None)), recipe, often=6)


NETWORKS: Mapping[str, Callable[[], Subject]] = {
    "ResNet-20": resnet,
    "digits CNN": digits,
    "spiking digits": spiking,
    "int8 ResNet-20": int8_resnet,
}


def leaderboard(subject: Subject, *, trials: int, repeats: int) -> dict[str, Any]:
    """Return what every method gains and costs; of those that do not fit, what they say."""
    golden = profile(subject.model, subject.known, batch=128)
    combined = {**BOTH, "recipe": subject.recipe}
    models, found = dict[str, nn.Module](), dict[str, Any]()
    for name, methods in {**WEIGHTS, **ACTIVATIONS, **combined}.items():
        try:
            models[name] = harden(subject.model, *methods, profile=golden).requires_grad_(False)
            found[name] = {}
        except ModelError as error:
            found[name] = {"refused": str(error)}
    few = subject.measured.take(slice(0, 100))
    engines = {name: Engine(model, few) for name, model in {"plain": subject.model, **models}.items()}
    for kind, methods in (("weights", WEIGHTS), ("activations", ACTIVATIONS)):
        chosen = [name for name in (*methods, *combined) if name in models]
        for name, row in single(engines, chosen, kind, trials=trials * subject.often).items():
            found[name][kind] = row
    struck = {name: models[name] for name in (*WEIGHTS, *combined) if name in models}
    for rate in RATES:
        for name, row in errors(subject.model, struck, few, rate, repeats=repeats).items():
            found[name][f"weights at {rate:g}"] = row
    right = accuracy(subject.model, subject.measured)
    many, one = (latency(subject.model, models, subject.measured, batch=batch) for batch in (128, 1))
    for name, model in models.items():
        found[name]["accuracy_change"] = accuracy(model, subject.measured) - right
        found[name] |= {"latency": many[name], "latency_single": one[name]}
        found[name]["memory"] = overhead(subject.model, model)
    return found


def single(
    engines: Mapping[str, Engine], chosen: Sequence[str], kind: str, *, trials: int
) -> dict[str, dict[str, float]]:
    """Return how much less often one bit flip fails in each of the *chosen* than in the plain one."""
    names = [site.name for site in engines["plain"].space.sites if site.kind in KINDS[kind]]
    frame = paired({name: engines[name] for name in ("plain", *chosen)}, names, trials=trials)
    failed = {name: round(value * trials) for name, value in zip(frame["format"], frame["value"], strict=True)}
    rows = {}
    for name in chosen:
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


def latency(plain: nn.Module, models: Mapping[str, nn.Module], data: Data, *, batch: int) -> dict[str, float]:
    """Return by how much longer a pass takes: 0.05 is 5 %."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given = data.inputs.repeat(-(-batch // len(data)), *[1] * (data.inputs.ndim - 1))[:batch]
    ratios: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(9 if _seconds(plain, given) > 0.05 else 60):
            base = _seconds(plain, given)
            for name, model in models.items():
                ratios[name].append(_seconds(model, given) / base)
    torch.set_num_threads(threads)
    return {name: statistics.median(many) - 1 for name, many in ratios.items()}


def _seconds(model: nn.Module, given: torch.Tensor) -> float:
    start = time.process_time()
    model(given)
    return time.process_time() - start


def protection(subject: Subject, *, trials: int) -> dict[str, Any]:
    """Return what protection of bits of sites ends for the memory that it adds, and what the choice foretells.

    A bit that is the same in all words of a site costs two bits (invariant bits), any other two copies of it.
    *share_95* is the memory, as a share of all bits, from which on the lower bound of what ends is 95 %; *predicted*
    and *measured* are what is left for a budget of 1 %, by trials that had no part in the choice and by a campaign of
    another seed. *most* is what protection of 1 % of the bits themselves ends at best, if every one of them fails.
    """
    engine = Engine(subject.model, subject.measured.take(slice(0, 200)))
    space = engine.space.select(kinds=KINDS["weights"])
    first, second = (run(Campaign(engine, space, stop=MaxTrials(n), seed=n)) for n in (trials, trials // 2))
    cost, bits = added(subject.model), len(space)
    table = front(first, cost=cost, points=200)
    enough = table[table["removed_low"] >= 0.95]
    chosen = protect(first, budget=0.01 * bits, cost=cost)
    again, failing = residual(chosen, second), first.estimate()
    return {
        "share_95": float(enough["cost"].iloc[0]) / bits if len(enough) else None,
        "removed": [chosen.removed.value, chosen.removed.low],
        "predicted": [chosen.residual.value, chosen.residual.high],
        "measured": [again.value, again.low, again.high],
        "unprotected": [failing.value, failing.low, failing.high],
        "most": [0.01 / failing.value, 0.01 / failing.low],
        "front": [
            [cost / bits, value, low] for cost, value, low in table[["cost", "removed", "removed_low"]].to_numpy()
        ],
    }


def added(model: nn.Module) -> Callable[[Mapping[str, Any]], float]:
    """Return what the protection of a bit of a site of *model* adds, in bits: two words' worth, or two copies."""
    varies = {}
    for name, held in model.named_parameters():
        words = held.detach().flatten().view(torch.int32)
        varies[name] = [bool((words >> bit & 1).float().var(correction=0)) for bit in range(32)]
    return lambda group: 2.0 * (group["bits"] if varies[group["site"]][group["bit"]] else 1)


def main() -> None:
    """Measure and print: lines, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part")
    parser.add_argument("--trials", type=int, default=2000, help="bit flips of each kind")
    parser.add_argument("--repeats", type=int, default=4, help="repetitions at each bit error rate")
    parser.add_argument("--clean", type=int, default=100_000, help="inputs without faults for checksums")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="only this one")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    parts, figures = given.only or PARTS, dict[str, Any]()
    if "leaderboard" in parts:
        figures["leaderboard"] = {}
        for name in given.network or NETWORKS:
            if name == "spiking digits" and find_spec("snntorch") is None:
                print("spiking digits: left out, snntorch is not installed", file=sys.stderr)
                continue
            subject = NETWORKS[name]()
            subject.model.requires_grad_(False)
            board = leaderboard(subject, trials=given.trials, repeats=given.repeats)
            figures["leaderboard"][name] = board
            _tell(given.json, name, *rows.hardening(_finite({"leaderboard": {name: board}})))
    if "protection" in parts:
        subject = resnet()
        subject.model.requires_grad_(False)
        figures["protection"] = protection(subject, trials=50 * given.trials)
        _tell(given.json, "protection", json.dumps(figures["protection"]))
    if "abft" in parts:
        figures["abft"] = abft(clean=given.clean, trials=10 * given.trials)
        _tell(given.json, "abft", json.dumps(figures["abft"]))
    if "fat" in parts:
        figures |= training.figures(seeds=20, trials=50 * given.trials, repeats=15)
        _tell(given.json, "fat", json.dumps(figures["fat"]))
    if "search" in parts:
        figures |= architecture.figures(folder=None)
        _tell(given.json, "search", json.dumps(figures["search"]))
    if given.json:
        print(json.dumps(_finite(figures), allow_nan=False))


def _finite(found: Any) -> Any:
    """Return *found* with None for numbers without bounds: how many times fewer fail where none does."""
    if isinstance(found, Mapping):
        return {key: _finite(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _tell(quiet: bool, *lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr if quiet else sys.stdout, flush=True)


if __name__ == "__main__":
    main()
