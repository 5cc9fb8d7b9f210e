"""What each method of hardening gains and costs, on the same faults, for four networks; what to protect; checksums.

Beside these: fault-aware training (``fat``, benchmarks/training.py) and search (benchmarks/architecture.py).

ResNet-20 on CIFAR-10 in float32 and with int8 weights, the digits CNN, and a spiking network on digits (with snnTorch;
left out without it). Golden ranges are from other images than those measured, and so is the choice of a recipe for each
network (benchmarks/subjects.py), by draws that have no part in what is told of it. Failures: another top class than
without faults, or a number that is not finite; single bit flips one to an image, bit error rates on all parameters, or
on all that operations give, together.
"""

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import architecture, rows, training
from benchmarks.checksums import abft
from benchmarks.error_rates import accuracy, flips
from benchmarks.latency import latency
from benchmarks.subjects import NETWORKS, Recipes, Subject, resnet, unbuildable
from torchfault.campaign import Campaign, run
from torchfault.criteria import NonFinite, Top1Change
from torchfault.criteria.compose import verdict
from torchfault.data import Data
from torchfault.engine import Engine, inject
from torchfault.errors import ModelError
from torchfault.hardening import (
    InvariantBits,
    Parity,
    Profile,
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
)
from torchfault.model.discover import find
from torchfault.recipes.paired import paired
from torchfault.recipes.survival import ratio
from torchfault.space import FaultSpace
from torchfault.statistics import MaxTrials
from torchfault.trials import Trials

PARTS = ("leaderboard", "fat", "protection", "abft", "search")
RATES = (1e-6, 1e-5, 1e-4, 1e-3)
KINDS = {"weights": ("weight", "bias", "norm"), "activations": ("output",)}
CHOICE, MEASUREMENT = 1, 0  # seeds: no draw of the second has a part in what is chosen
MEMORY = "384MiB"  # of each engine: some fifteen at once, in two processes, would take 21 GiB with the usual one
FEWER, CHANGED, SLOWER = 10, 0.002, 0.05  # what a recipe is to reach, and what it may take of answers and of time
WEIGHTS: Recipes = {
    "invariant bits": (InvariantBits(),),
    "weight ranges": (WeightRanges(),),
    "weight ranges, zero": (WeightRanges(action="zero"),),
    "parity": (Parity(),),
    "triplicate": (Triplicate(),),
    "SECDED": (Secded(),),
    "zero-space": (ZeroSpace(),),
    "weight checksums": (WeightChecksums(),),
}
ACTIVATIONS: Recipes = {
    "ranges": (Ranges(),),
    "ranges, channel": (Ranges(per="channel"),),
    "ranges, zero": (Ranges(action="zero"),),
    "ranges, mean": (Ranges(action="mean"),),
}
BOTH: Recipes = {
    "invariant bits + ranges": (InvariantBits(), Ranges()),
    "SECDED + ranges": (Secded(), Ranges()),
}


def leaderboard(names: Sequence[str], *, trials: int, repeats: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, network by network, what every method gains and costs; of those that do not fit, what they say.

    Failures are counted in two processes, times taken when both are done.
    """
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        counted = [pool.submit(_counted, name, trials=trials, repeats=repeats) for name in names]
        boards = {name: one.result() for name, one in zip(names, counted, strict=True)}
    for name, (board, recipe, golden) in boards.items():
        subject = NETWORKS[name]()
        models, _ = hardened(subject, {**WEIGHTS, **ACTIVATIONS, **BOTH, "recipe": subject.recipes[recipe]}, golden)
        for batch, column in ((128, "latency"), (1, "latency_single")):
            for method, value in latency(subject.model, models, subject.measured, batch=batch).items():
                board[method][column] = value
        yield name, board


def _counted(name: str, *, trials: int, repeats: int) -> tuple[dict[str, Any], str, Profile]:
    """Return a network's board without times, its recipe, and its golden ranges."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    assert not unbuildable(name)  # in this process too
    subject = NETWORKS[name]()
    golden = profile(subject.model, subject.known, batch=128)
    recipe, told = choose(subject, golden, trials=trials)
    models, refused = hardened(subject, {**WEIGHTS, **ACTIVATIONS, **BOTH, "recipe": subject.recipes[recipe]}, golden)
    board: dict[str, Any] = {method: {} for method in models} | refused
    few, both = subject.measured.take(slice(0, 100)), (*BOTH, "recipe")
    engines = engines_of(subject, models, few)
    for kind, methods in (("weights", WEIGHTS), ("activations", ACTIVATIONS)):
        engines |= standing_by(models, few, captured=kind == "weights" and subject.captured)
        chosen, draws = [method for method in (*methods, *BOTH) if method in models], trials * subject.often[kind]
        found = single(engines, chosen, kind, trials=draws)
        many = 2 if engines["recipe"].executor == "hooks" else 5  # a pass for each takes its time
        found |= single(engines, ["recipe"], kind, trials=many * draws)
        for method, row in found.items():
            board[method][kind] = row
    struck = {method: models[method] for method in (*WEIGHTS, *both) if method in models}
    active = {method: engines[method] for method in ("plain", *ACTIVATIONS, *both)}
    for rate in RATES:
        for method, row in errors(subject.model, struck, few, rate, repeats=repeats).items():
            board[method][f"weights at {rate:g}"] = row
        for method, row in errors_of_operations(active, rate, repeats=repeats).items():
            board[method][f"activations at {rate:g}"] = row
    right = accuracy(subject.model, subject.measured)
    for method, model in models.items():
        board[method]["accuracy_change"] = accuracy(model, subject.measured) - right
        board[method]["memory"] = overhead(subject.model, model)
    board["recipe"]["chosen"] = told
    return board, recipe, golden


def hardened(subject: Subject, recipes: Recipes, golden: Profile) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """Return the models, and what the methods say that do not fit."""
    models, refused = dict[str, nn.Module](), dict[str, Any]()
    for name, methods in recipes.items():
        try:
            models[name] = harden(subject.model, *methods, profile=golden).requires_grad_(False)
        except ModelError as error:
            refused[name] = {"refused": str(error)}
    return models, refused


def engines_of(subject: Subject, models: Mapping[str, nn.Module], data: Data) -> dict[str, Engine]:
    """Return engines of the plain model and of others, but for those whose guards stand by (:func:`standing_by`)."""
    every = {"plain": subject.model, **models}
    return {
        name: Engine(model, data, memory=MEMORY) for name, model in every.items() if not hasattr(model, "standby_sums")
    }


def standing_by(models: Mapping[str, nn.Module], data: Data, *, captured: bool) -> dict[str, Engine]:
    """Return engines of the models whose guards stand by, *captured* where that tells the same.

    A captured graph has guards at work in every pass. So has the module where sums of stored words are off, as one flip
    makes them: of weights the graph, whose lanes are far cheaper, tells the same. Activations, and weights without
    sums, need passes of the module.
    """
    engines = {}
    for name, model in models.items():
        if isinstance(sums := getattr(model, "standby_sums", None), Tensor):
            executor: Literal["auto", "hooks"] = "auto" if captured and len(sums) else "hooks"
            engines[name] = Engine(model, data, executor=executor, memory=MEMORY)
    return engines


def choose(subject: Subject, golden: Profile, *, trials: int) -> tuple[str, dict[str, Any]]:
    """Return the recipe to measure, and what told for it: known images, and draws of their own."""
    models, _ = hardened(subject, subject.recipes, golden)
    few = subject.known.take(slice(0, 100))
    slower, before = latency(subject.model, models, subject.known, batch=128), _top(subject.model, subject.known)[0]
    found: dict[str, dict[str, float]] = {
        name: {"fewer": math.inf, "most": math.inf, "latency": slower[name]}
        | {"changed": float((_top(model, subject.known)[0] != before).float().mean())}
        for name, model in models.items()
    }
    engines = engines_of(subject, models, few)
    for kind in KINDS:
        engines |= standing_by(models, few, captured=kind == "weights" and subject.captured)
        draws = trials * subject.often[kind]
        for name, row in single(engines, list(models), kind, trials=draws, seed=CHOICE).items():
            fewer = max(row["before"], 1 / draws) / max(row["after"], 0.5 / draws)
            found[name]["fewer"] = min(found[name]["fewer"], fewer)
            found[name]["most"] = min(found[name]["most"], row["high"])
    best = fastest(found)
    return best, {"name": best, **found[best], "of": len(found)}


def fastest(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the fastest recipe that keeps clean answers and gains enough; without one, that which gains most.

    Where such a one is slow, what is fast enough and not shown to gain too little goes first, and gains most of these.
    """
    keep = {name: one for name, one in found.items() if one["changed"] <= CHANGED} or found
    fit = {name: one for name, one in keep.items() if one["fewer"] >= FEWER}
    quick = {name: one for name, one in keep.items() if one["latency"] <= SLOWER and one["most"] >= FEWER}
    if fit and (not quick or min(one["latency"] for one in fit.values()) <= SLOWER):
        return min(fit, key=lambda name: fit[name]["latency"])
    chosen = quick or keep
    return max(chosen, key=lambda name: chosen[name]["fewer"])


def single(
    engines: Mapping[str, Engine], chosen: Sequence[str], kind: str, *, trials: int, seed: int = MEASUREMENT
) -> dict[str, dict[str, float]]:
    """Return how much less often one bit flip fails in each of the *chosen* than in the plain one."""
    names = [site.name for site in engines["plain"].space.sites if site.kind in KINDS[kind]]
    frame = paired({name: engines[name] for name in ("plain", *chosen)}, names, trials=trials, seed=seed)
    failed = {name: round(value * trials) for name, value in zip(frame["format"], frame["value"], strict=True)}
    return {name: _fewer(failed["plain"], failed[name], trials) for name in chosen}


def _fewer(before: int, after: int, trials: int) -> dict[str, float]:
    found = ratio(before, after, trials)
    return {"before": before / trials, "after": after / trials} | {
        "ratio": found.value,
        "low": found.low,
        "high": found.high,
    }


def errors_of_operations(engines: Mapping[str, Engine], rate: float, *, repeats: int) -> dict[str, dict[str, float]]:
    """Return how many fewer lanes fail where every bit of what operations give flips with probability *rate*.

    Every image has flips of its own in every repetition, the same in all models.
    """
    names = [site.name for site in engines["plain"].space.sites if site.kind in KINDS["activations"]]
    images, failed = len(engines["plain"].data), dict[str, int]()
    for name, engine in engines.items():
        space = engine.space.select(names)
        draws = [
            flips(space, rate, np.random.default_rng([20261130, round(1e9 * rate), lane]))
            for lane in range(repeats * images)
        ]
        failed[name] = 0
        for lanes in engine.run(replace(Trials.join(draws), inputs=np.arange(len(draws)) % images)):
            wrong = [verdict(one, lanes.golden, lanes.outputs, None) for one in (Top1Change(), NonFinite())]
            failed[name] += int(((wrong[0] | wrong[1]).numpy() | lanes.crashed).sum())
    return {name: _fewer(failed["plain"], failed[name], repeats * images) for name in engines if name != "plain"}


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
    parser.add_argument("--repeats", type=int, default=3, help="repetitions at each bit error rate")
    parser.add_argument("--clean", type=int, default=100_000, help="inputs without faults for checksums")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="only this one")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    parts, figures = given.only or PARTS, dict[str, Any]()
    if "leaderboard" in parts:
        figures["leaderboard"] = {}
        names = [name for name in given.network or NETWORKS if not unbuildable(name)]
        if left := set(given.network or NETWORKS) - set(names):
            print(f"{', '.join(left)}: left out, snntorch is not installed", file=sys.stderr)
        for name, board in leaderboard(names, trials=given.trials, repeats=given.repeats):
            figures["leaderboard"][name] = board
            _tell(given.json, *rows.hardening(_finite({"leaderboard": {name: board}})), "")
    if "protection" in parts:
        figures["protection"] = protection(resnet(), trials=50 * given.trials)
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
