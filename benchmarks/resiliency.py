"""Resiliency Accuracy: what accelerators make of networks, and how many upsets each estimator needs to tell.

ResNet-20 and ResNet-32 with their real weights on the 1,000 CIFAR-10 test images in TORCHFAULT_DATA (default
../shared/data), and a digits network small enough to run every upset there is. How estimators converge is read from
records of upsets on all images (see thales/outcomes.py), which are kept below --cache and made once.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engine import cpu_seconds
from benchmarks.sections import bounds
from benchmarks.thales.networks import lenet5, mnist
from benchmarks.thales.outcomes import Recorded, digits, enumerated, resnet, sampled
from benchmarks.thales.published import ESTIMATORS, estimate, running, until_near
from torchfault.campaign import Campaign, run
from torchfault.criteria import Misclassified
from torchfault.engine import Engine
from torchfault.hardware.accelerator import ACCELERATORS, OUTPUT_STATIONARY
from torchfault.hardware.layers import Layers, layers_in, layers_of
from torchfault.hardware.measure import hardware_space, layer_table
from torchfault.recipes import upsets
from torchfault.results import resiliency
from torchfault.results.upset_sample import negative
from torchfault.statistics import Estimate, MaxTrials

LEVEL = 0.95
# Images, upsets of a campaign, and memory, 4 GiB of which hold golden values of all images.
COSTS = ((100, 4096, "1GiB"), (1000, 4096, "1GiB"), (1000, 16_384, "1GiB"), (1000, 4096, "4GiB"))
MODES = {"all images": None, "lanes": 1}


def accuracies(*, faults: int) -> dict[str, Any]:
    """Return SA, RA and RA_SW of both networks under every accelerator, one image per fault."""
    found: dict[str, Any] = {"sa": {}, "ra": {}, "ra_sw": {}}
    for name in ("resnet20", "resnet32"):
        model, data = resnet(name)
        engine = Engine(model, data)
        layers = layers_in(engine)
        software = bounds(software_accuracy(engine, layers, faults=faults), 5)
        for key in found:
            found[key][name] = {}
        for chip in ACCELERATORS.values():
            one = resiliency(run(upsets(engine, chip, layers=layers, stop=MaxTrials(faults))))
            sa = round(one.sa, 5)
            found["sa"][name][chip.name] = {"value": sa, "low": sa, "high": sa}
            found["ra"][name][chip.name] = bounds(one.ra, 5)
            found["ra_sw"][name][chip.name] = software
    return found


def software_accuracy(engine: Engine, layers: Layers, *, faults: int) -> Estimate:
    """Return RA_SW: the accuracy under one bit flip, every bit of every variable of the layers equally likely."""
    space = hardware_space(layers.works, engine.space)
    found = run(Campaign(engine, space, criterion=Misclassified(), stop=MaxTrials(faults)))
    return negative(found.estimate(), 1.0)


def costs(campaigns: int, *, repeats: int = 3) -> list[dict[str, Any]]:
    """Return what a lane of ResNet-20 costs on the output-stationary array, in CPU time of a golden pass of one image.

    Medians over the repeats, of campaigns from the pilot to the end, golden passes before and after each: of the
    *first* on an engine, which looks at all images without faults, and of the next one.
    """
    model, data = resnet("resnet20")
    batch, found = data.inputs[:128], list[dict[str, Any]]()

    def golden() -> float:
        with torch.inference_mode():
            return statistics.median(cpu_seconds(partial(model, batch)) for _ in range(8)) / len(batch)

    def ratio(campaign: Campaign, lanes: int) -> float:
        before, seconds = golden(), cpu_seconds(partial(run, campaign))
        return seconds / lanes / (before + golden()) * 2

    for images, lanes, memory in COSTS[:campaigns]:
        ratios = []
        for _ in range(repeats):
            engine = Engine(model, data.take(slice(0, images)), memory=memory)
            campaign = upsets(engine, OUTPUT_STATIONARY, stop=MaxTrials(lanes))
            ratios.append([ratio(campaign, lanes) for _ in range(2)])
        first, again = (round(statistics.median(column), 3) for column in zip(*ratios, strict=True))
        found.append({"images": images, "lanes": lanes, "memory": memory, "first": first, "golden_images": again})
    return found


def records(folder: Path, *, rounds: int) -> dict[str, Recorded]:
    """Return the records of the output-stationary array: every upset of the digits network, some of ResNet-20."""
    chip, label = OUTPUT_STATIONARY, OUTPUT_STATIONARY.name
    small, large = Engine(*digits()), Engine(*resnet("resnet20"))
    return {
        "digits": enumerated(small, chip, folder=folder, name=f"digits-{label}"),
        "resnet20": sampled(large, chip, rounds=rounds, folder=folder, name=f"resnet20-{label}"),
    }


def truth_by_many(*, lanes: int, folder: Path) -> dict[str, float]:
    """Return RA of ResNet-20 on the output-stationary array from a run far larger than any that is held to it."""
    campaign = upsets(Engine(*resnet("resnet20")), OUTPUT_STATIONARY, stop=MaxTrials(lanes), seed=20_22)
    results = run(campaign, store=folder / "truth.db", name=f"truth-{lanes}")
    return bounds(resiliency(results).ra, 5) | {"lanes": results.lanes}


def convergence(
    held: Recorded, truth: float, *, images: int | None, most: dict[str, int], seeds: int
) -> dict[str, float | None]:
    """Return the median number of samples after which each estimator stays near the truth for a window.

    ``None`` where more than half of the seeds had not got there when their samples ran out. A pilot counts as samples.
    """
    medians: dict[str, float | None] = {}
    for name, estimator in ESTIMATORS.items():
        needed = []
        for seed in range(seeds):
            stop = MaxTrials(most[name] * (images or len(held.engine.data)))
            campaign = held.campaign(proposal=estimator.proposal, inputs_per_fault=images, stop=stop, seed=seed)
            values = running(run(campaign), estimator)
            needed.append(until_near(values, truth) + most[name] - len(values))
        middle = statistics.median(needed)
        medians[name] = round(middle) if middle < float("inf") else None
    return medians


def coverage(held: Recorded, *, seeds: int) -> dict[str, dict[str, float]]:
    """Return how often intervals hold the truth of the records, by mode and estimator."""
    truth, found = held.truth()["ra"], {}
    for mode, (images, draws) in {"all images": (None, 2048), "lanes": (1, 4096)}.items():
        stop, found[mode] = MaxTrials(draws * (images or len(held.engine.data))), dict[str, float]()
        for name, estimator in ESTIMATORS.items():
            drawn = {"proposal": estimator.proposal, "inputs_per_fault": images, "stop": stop, "level": LEVEL}
            runs = (estimate(run(held.campaign(seed=seed, **drawn)), estimator) for seed in range(1000, 1000 + seeds))
            found[mode][name] = round(statistics.mean(one.low <= truth <= one.high for one in runs), 4)
    return found


def shares() -> dict[str, Any]:
    """Return p of every layer and type of the paper's two networks on its array."""
    found: dict[str, Any] = {}
    for name, build in (("mnist", mnist), ("lenet5", lenet5)):
        found[name] = {}
        for row in layer_table(OUTPUT_STATIONARY, layers_of(*build()).works).itertuples():
            found[name].setdefault(str(row.layer), {})[str(row.type)] = round(float(row.p), 6)
    return found


def plot(found: dict[str, Any], file: Path) -> None:
    """Save SA, RA_SW and RA of every network and accelerator, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, (name, by_chip) in zip(
        figure.subplots(1, len(found["ra"]), sharey=True), found["ra"].items(), strict=True
    ):
        chips = list(by_chip)
        sa, software = (next(iter(found[key][name].values())) for key in ("sa", "ra_sw"))
        axes.axhline(100 * sa["value"], color="#7b8794", lw=1, ls="--", label="SA")
        axes.axhspan(100 * software["low"], 100 * software["high"], color="#d9e2ec", label="RA_SW, uniform flips")
        value = np.array([100 * by_chip[chip]["value"] for chip in chips])
        off = np.abs([[100 * by_chip[chip][end] for chip in chips] - value for end in ("low", "high")])
        axes.errorbar(range(len(chips)), value, yerr=off, fmt="o", color="#c2410c", capsize=4, label="RA")
        axes.set_xticks(range(len(chips)), [chip.replace("-", "-\n") for chip in chips])
        axes.set_title(name)
        axes.set_xlim(-0.5, len(chips) - 0.5)
    figure.axes[0].set_ylabel("accuracy (%)")
    figure.axes[0].legend(loc="center left", fontsize=8)
    figure.savefig(file, dpi=160)


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    print(f"{what} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    seconds[what] = round(time.perf_counter() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--cache", type=Path, help="where records are kept (below $XDG_CACHE_HOME or ~/.cache)")
    parser.add_argument("--plot", type=Path, default=Path("resiliency.png"), help="where to save the plot")
    parser.add_argument("--only", choices=["accuracies", "convergence", "cost"], help="do a part of it")
    parser.add_argument("--faults", type=int, default=4096, help="upsets per network and accelerator (4096)")
    parser.add_argument("--campaigns", type=int, default=len(COSTS), help="how many to tell the cost of (all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of records of ResNet-20 (3)")
    parser.add_argument("--truth", type=int, default=20_480, help="lanes of ResNet-20's truth (20480)")
    parser.add_argument("--seeds", type=int, default=20, help="runs per estimator and network (20)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--repeats", type=int, default=200, help="runs per coverage (200)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measured(options)
    print(json.dumps(found) if options.json else table(found))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures that are asked for."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = options.cache or base / "torchfault" / "resiliency"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"shares": shares()}
    seconds: dict[str, float] = {}
    if options.only in (None, "cost"):
        with timed(seconds, "cost"):
            found["cost"] = costs(options.campaigns)
    if options.only in (None, "accuracies"):
        with timed(seconds, "accuracies"):
            found |= accuracies(faults=options.faults)
        plot(found, options.plot)
    if options.only in (None, "convergence"):
        with timed(seconds, "records"):
            held = records(folder, rounds=options.rounds)
        with timed(seconds, "truth"):
            found["truth"] = {name: {"records": round(one.truth()["ra"], 5)} for name, one in held.items()}
            found["truth"]["resnet20"] |= truth_by_many(lanes=options.truth, folder=folder)
        with timed(seconds, "convergence"):
            found["samples"] = samples(held, found["truth"]["resnet20"]["value"], seeds=options.seeds)
        with timed(seconds, "coverage"):
            found["coverage"] = {name: coverage(one, seeds=options.repeats) for name, one in held.items()}
    found["seconds"] = seconds
    return found


def samples(held: dict[str, Recorded], many: float, *, seeds: int) -> dict[str, Any]:
    """Return the medians by network, mode and estimator."""
    found: dict[str, Any] = {}
    for name, one in held.items():
        truth = one.truth()["ra"] if name == "digits" else many
        found[name] = {}
        for mode, images in MODES.items():
            longest, ours = (6_000, 2_048) if images is None else (60_000, 10_000)
            most = dict.fromkeys(ESTIMATORS, longest) | {"strata": ours}
            found[name][mode] = convergence(one, truth, images=images, most=most, seeds=seeds)
    return found


def table(found: dict[str, Any]) -> str:
    """Return the figures as text for people."""
    lines = ["p by layer and type, output-stationary array"]
    for name, layers in found["shares"].items():
        for layer, row in layers.items():
            lines.append(f"  {name:8} {layer:4} " + "  ".join(f"{kind} {100 * p:7.3f} %" for kind, p in row.items()))
    for row in found.get("cost", []):
        told = f"{row['lanes']:,} lanes on {row['images']:,} images in {row['memory']}"
        lines.append(f"{told}: {row['golden_images']:.2f} golden images each, {row['first']:.2f} at first")
    if "ra" in found:
        lines += ["", f"{'network':10} {'accelerator':20} {'SA':>6}  {'RA':>6} {'':16} {'RA_SW':>6}"]
        for name, chips in found["ra"].items():
            for chip, ra in chips.items():
                sa, sw = found["sa"][name][chip], found["ra_sw"][name][chip]
                lines.append(f"{name:10} {chip:20} {100 * sa['value']:6.2f}  {_percent(ra)} {_percent(sw)}")
    if "samples" in found:
        lines += ["", f"truth: {found['truth']}", "", f"{'samples to within 0.3 points':32}" + _row(ESTIMATORS)]
        for name, modes in found["samples"].items():
            for mode, medians in modes.items():
                shown = [f"{n:,}" if n is not None else "more" for n in medians.values()]
                lines.append(f"  {name + ', ' + mode:30}" + _row(shown))
        lines += ["", f"{'coverage of 95 % intervals':32}" + _row(ESTIMATORS)]
        for name, modes in found["coverage"].items():
            for mode, covered in modes.items():
                lines.append(f"  {name + ', ' + mode:30}" + _row([f"{100 * c:.1f} %" for c in covered.values()]))
    lines += ["", "seconds: " + ", ".join(f"{what} {n:g}" for what, n in found["seconds"].items())]
    return "\n".join(lines)


def _percent(one: dict[str, float]) -> str:
    return f"{100 * one['value']:6.2f} [{100 * one['low']:.2f}, {100 * one['high']:.2f}]"


def _row(cells: Any) -> str:
    return "".join(f"{cell:>12}" for cell in cells)


if __name__ == "__main__":
    main()
