"""The leaderboard of methods: what each gains and costs on one network, on the same faults.

Golden ranges are from other images than those measured, and so is the choice of a recipe for each network
(benchmarks/subjects.py), by draws that have no part in what is told of it. Failures: another top class than without
faults, or a number that is not finite; single bit flips one to an image, bit error rates on all parameters, or on all
that operations give, together.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.error_rates import accuracy, flips
from benchmarks.latency import TURNS, latency
from benchmarks.subjects import NETWORKS, Recipes, Subject, unbuildable
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
    harden,
    overhead,
    profile,
)
from torchfault.model.discover import find
from torchfault.recipes.paired import paired
from torchfault.recipes.survival import ratio
from torchfault.space import FaultSpace
from torchfault.trials import Trials

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

    Failures are counted in two processes, in weights apart from activations; times are taken while these rest.
    """
    subjects = {name: _subject(name) for name in names}
    golden = {name: profile(one.model, one.known, batch=128) for name, one in subjects.items()}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=_at_work) as pool:
        tried = _all({n: [pool.submit(_tried, n, kind, golden[n], trials=trials) for kind in KINDS] for n in names})
        chosen = {name: choose(one, golden[name], tried[name]) for name, one in subjects.items()}
        size = {"trials": trials, "repeats": repeats}
        counted = _all(
            {n: [pool.submit(_counted, n, kind, golden[n], chosen[n][0], **size) for kind in KINDS] for n in names}
        )
    for name, subject in subjects.items():
        recipe, told = chosen[name]
        methods = {**WEIGHTS, **ACTIVATIONS, **BOTH, "recipe": subject.recipes[recipe]}
        models, refused = hardened(subject, methods, golden[name])
        costs = _costs(subject, models)
        board = {
            method: {key: one for rows in (*counted[name], costs) for key, one in rows.get(method, {}).items()}
            for method in models
        }
        board["recipe"]["chosen"] = told
        yield name, board | refused


def _costs(subject: Subject, models: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Return by method what it costs in clean accuracy, memory and time."""
    right = accuracy(subject.model, subject.measured)
    single = latency(subject.model, models, subject.measured, batch=1)
    others = {method: model for method, model in models.items() if method != "recipe"}
    slower = latency(subject.model, others, subject.measured, batch=128)
    slower |= latency(subject.model, {"recipe": models["recipe"]}, subject.measured, batch=128, least=TURNS)
    return {
        method: {
            "accuracy_change": accuracy(model, subject.measured) - right,
            "latency": slower[method].value,
            "latency_bounds": [slower[method].low, slower[method].high],
            "latency_single": single[method].value,
            "memory": overhead(subject.model, model),
        }
        for method, model in models.items()
    }


def _all(jobs: Mapping[str, Sequence[Future[Any]]]) -> dict[str, list[Any]]:
    return {name: [job.result() for job in several] for name, several in jobs.items()}


def _at_work() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def _subject(name: str) -> Subject:
    assert not unbuildable(name)  # which finds what it needs, in each process
    return NETWORKS[name]()


def _tried(name: str, kind: str, golden: Profile, *, trials: int) -> dict[str, dict[str, float]]:
    """Return what each recipe of a network gains against faults of a *kind*, on known images, by draws of their own."""
    subject = _subject(name)
    models, _ = hardened(subject, subject.recipes, golden)
    draws, engines = trials * subject.often[kind], _engines(subject, models, subject.known, kind)
    return {
        recipe: {
            "fewer": max(row["before"], 1 / draws) / max(row["after"], 0.5 / draws),
            "most": row["high"],
        }
        for recipe, row in single(engines, list(models), kind, trials=draws, seed=CHOICE).items()
    }


def _counted(
    name: str, kind: str, golden: Profile, recipe: str, *, trials: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """Return by method how many fewer faults of a *kind* fail, one at a time and at rates."""
    subject, methods = _subject(name), {"weights": WEIGHTS, "activations": ACTIVATIONS}[kind]
    models, _ = hardened(subject, {**methods, **BOTH, "recipe": subject.recipes[recipe]}, golden)
    engines, draws = _engines(subject, models, subject.measured, kind), trials * subject.often[kind]
    many = 2 if engines["recipe"].executor == "hooks" else 5  # a pass for each takes its time
    found = single(engines, [method for method in models if method != "recipe"], kind, trials=draws)
    found |= single(engines, ["recipe"], kind, trials=many * draws)
    board: dict[str, dict[str, Any]] = {method: {kind: row} for method, row in found.items()}
    for rate in RATES:
        if kind == "weights":
            rates = errors(subject.model, models, _few(subject.measured), rate, repeats=repeats)
        else:
            rates = errors_of_operations(engines, rate, repeats=repeats)
        for method, row in rates.items():
            board[method][f"{kind} at {rate:g}"] = row
    return board


def _few(data: Data) -> Data:
    return data.take(slice(0, 100))


def hardened(subject: Subject, recipes: Recipes, golden: Profile) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """Return the models, and what the methods say that do not fit."""
    models, refused = dict[str, nn.Module](), dict[str, Any]()
    for name, methods in recipes.items():
        try:
            models[name] = harden(subject.model, *methods, profile=golden).requires_grad_(False)
        except ModelError as error:
            refused[name] = {"refused": str(error)}
    return models, refused


def _engines(subject: Subject, models: Mapping[str, nn.Module], data: Data, kind: str) -> dict[str, Engine]:
    """Return engines of the plain model and of others, on a hundred inputs, to strike faults of a *kind*.

    A captured graph has guards at work in every pass. So has a module whose guards stand by where sums of stored words
    are off, as one flip makes them: of weights the graph, whose lanes are far cheaper, tells the same. Activations, and
    weights without sums, need passes of the module.
    """
    engines = {}
    for name, model in {"plain": subject.model, **models}.items():
        sums = getattr(model, "standby_sums", None)
        alone = isinstance(sums, Tensor) and not (kind == "weights" and subject.captured and len(sums))
        engines[name] = Engine(model, _few(data), executor="hooks" if alone else "auto", memory=MEMORY)
    return engines


def choose(
    subject: Subject, golden: Profile, tried: Sequence[Mapping[str, Mapping[str, float]]]
) -> tuple[str, dict[str, Any]]:
    """Return the recipe to measure, and what told for it: what was *tried* on faults of each kind, and known images."""
    models, _ = hardened(subject, subject.recipes, golden)
    slower = latency(subject.model, models, subject.known, batch=128, least=TURNS)
    before = _top(subject.model, subject.known)[0]
    found = {
        name: {least: min(rows[name][least] for rows in tried) for least in ("fewer", "most")}
        | {"latency": slower[name].value}
        | {"changed": float((_top(model, subject.known)[0] != before).float().mean())}
        for name, model in models.items()
    }
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
