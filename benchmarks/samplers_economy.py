"""What answers cost: lanes and seconds of every method for three widths, on ResNet-20, weights and convolution inputs.

The widths are half-widths of 95 % intervals: of every layer (site) within 1 point and 0.25 points, and of the model
within 0.05. ``layer-wise`` is uniform sampling of each site stopped at the width; ``network-wise`` and the other
statistical methods are samples that are stopped there likewise. Their lanes follow from vulnerabilities that were
measured, by formulas (Wilson's, and Neyman's for strata), and their seconds from the measured rate of lanes, since
they would take hours. ``adaptive`` (strata of deviation and margin), ``adaptive by bit`` (strata of bits),
``certified`` (adaptive, what is proven has no lane but for the audit), ``pooled``, ``monotone`` and
``pooled+monotone`` are run.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.engine import resnet20
from benchmarks.sections import Size, bounds
from torchfault.campaign import Campaign, run
from torchfault.engine import Engine
from torchfault.model.golden_words import golden_words
from torchfault.resolve import Direct, Monotone, Pooled, Resolver, certified
from torchfault.sampling import Adaptive, Deviations, Statistical, WholeWords, bits_from
from torchfault.sensitivity import margins, turned
from torchfault.statistics import HalfWidth, MaxTrials, wilson_trials

WIDTHS = {"layer_1.0": 0.01, "layer_0.25": 0.0025, "model_0.05": 0.0005}
RUN = ("adaptive", "adaptive by bit", "certified", "pooled", "monotone", "pooled+monotone")
COMPUTED = ("layer-wise", "network-wise", "data-unaware", "data-aware")
_POOL, _RESERVE = 128, 0.06
_BLOCKS = {"layer_1.0": 1024, "layer_0.25": 2048, "model_0.05": 768}


@dataclass(frozen=True)
class Economy:
    """Lanes and seconds by width and method, the intervals of the adaptive method by site, and what was computed."""

    lanes: dict[str, dict[str, int]]
    seconds: dict[str, dict[str, float]]
    layers: dict[str, dict[str, float]]
    audits: dict[str, str]
    widest: dict[str, dict[str, float]]


def economy(size: Size) -> Mapping[str, Any]:
    """Return lanes and seconds by width and method, and the adaptive method's intervals; a section of samplers.py.

    Closure alone, which needs far more lanes for a quarter of a point than the others, is run in *full* only.
    """
    others = tuple(method for method in RUN if method != "monotone")
    asked: Mapping[Size, dict[str, Any]] = {
        "quick": {"widths": tuple(WIDTHS)[:1], "margin": 0.3},
        "usual": {"methods": others},
        "full": {},
    }
    found = vars(spent(**asked[size]))
    return {name: found[name] for name in ("lanes", "seconds", "layers", "widest")}


def spent(
    *, widths: tuple[str, ...] = tuple(WIDTHS), methods: tuple[str, ...] = RUN, seed: int = 1, margin: float = 0.09
) -> Economy:
    """Run the adaptive methods for every width, and compute what the others would take.

    The vulnerabilities that the latter follow from are measured within *margin* for each bit of each site.
    """
    model, data = resnet20()
    engine = Engine(model, data)
    space = engine.space.select(kinds="weight", types="Conv2d") | engine.space.select(kinds="input", types="Conv2d")
    words = golden_words(model, data, space)
    assert engine.captured is not None, "ResNet-20 has a graph"
    strata = Deviations(turned(words, space, engine.captured), margins=margins(engine.golden()))
    proofs = certified(engine, space)
    rate, cells = _measured(Campaign(engine, space, sampler=Statistical("data-unaware", margin=margin), seed=seed))
    found = Economy({}, {}, {}, {}, {})
    for width in widths:
        computed = _computed(space, cells, width, dict(model.named_parameters()))
        found.lanes[width] = computed
        found.seconds[width] = {name: lanes / rate for name, lanes in computed.items()}
        found.widest[width] = {}
        for method in methods:
            if method == "monotone" and width.startswith("model"):
                continue  # whole words are drawn for intervals by site
            sampler, resolver = _method(method, width, words, strata)
            resolver = proofs if method == "certified" else resolver
            stop = HalfWidth(WIDTHS[width], by=_of(width))
            campaign = Campaign(engine, space, sampler=sampler, resolver=resolver, stop=stop, seed=seed)
            began = time.perf_counter()
            results = run(campaign)
            found.lanes[width][method] = results.lanes
            found.seconds[width][method] = time.perf_counter() - began
            print(f"{width} {method}: {results.lanes:,} lanes", file=sys.stderr)
            table = results.table(_of(width))
            found.widest[width][method] = float((table["high"] - table["low"]).max() / 2)
            if resolver.assumption:
                found.audits[f"{width} {method}"] = str(results.audit())
            if method == "adaptive" and width.startswith("layer"):  # the finest comes last
                found.layers.update({row.key: bounds(row) for row in table.itertuples()})
    return found


def _of(width: str) -> str:
    """Return the grouping that a width is of."""
    return "model" if width.startswith("model") else "site"


def _method(name: str, width: str, words: Mapping[str, Any], strata: Deviations) -> tuple[Adaptive, Resolver]:
    """Return the sampler and the resolver of a method for a width."""
    if name == "adaptive by bit":
        return Adaptive(), Direct()
    if name in ("adaptive", "certified"):
        return Adaptive(strata, block=_BLOCKS[width]), Direct()
    if name == "monotone":
        return Adaptive(WholeWords(), block=38 * 16), Monotone(words, audit=0.002)
    pooled = Pooled(_POOL, audit=0.003)
    resolver = Monotone(words, pooled, audit=0.03) if name == "pooled+monotone" else pooled
    return Adaptive(strata, block=8192, pool=_POOL, reserve=_RESERVE), resolver


def _measured(campaign: Campaign) -> tuple[float, dict[tuple[int, int], float]]:
    """Return lanes per second, and the failing share of every site and bit, from a sample of each bit of each site."""
    run(replace(campaign, stop=MaxTrials(256)))
    began = time.perf_counter()
    results = run(campaign)
    seconds = time.perf_counter() - began
    where = campaign.space.locate(results.columns.faults)
    cell = where.site.astype(np.int64) * 64 + where.bit
    trials, failures = np.bincount(cell), np.bincount(cell, results.columns.failed)
    shares = {(int(c) // 64, int(c) % 64): failures[c] / trials[c] for c in np.flatnonzero(trials)}
    return len(results) / seconds, shares


def _computed(space: Any, cells: dict[tuple[int, int], float], width: str, values: dict[str, Any]) -> dict[str, int]:
    """Return the lanes of the methods that are not adaptive, at the vulnerabilities in *cells*, known beforehand.

    A stratified sample needs (z sum W sqrt(p (1 - p)) / h)^2 lanes in Neyman's shares, and 3.84 W / (2 h) in each
    stratum of share W to bound what never fails; other shares a_h of the lanes need z^2 sum W^2 p (1 - p) / a_h / h^2.
    ``data-aware`` takes the shares that the weights' p give, and equal ones in activations, where there are none.
    """
    h, bits = WIDTHS[width], 32
    by_site = [np.array([cells[s, b] for b in range(bits)]) for s in range(len(space.sites))]
    weights = [site.name for site in space.sites if site.name in values]
    guess = np.array(bits_from(space.select(weights), values)["float32"])
    guess = np.clip(guess, 0.01, None)
    if width.startswith("model"):
        share = space.sizes / len(space)
        spread = [np.full(bits, w / bits) * np.sqrt(row * (1 - row)) for w, row in zip(share, by_site, strict=True)]
        means = np.array([row.mean() for row in by_site])
        layer = 1.96 * float(share @ np.sqrt(means * (1 - means))) / h
        flat = np.concatenate(spread)
        aware = np.tile(np.sqrt(guess * (1 - guess)), len(by_site)) * np.repeat(share, bits)
        return {
            "layer-wise": int(np.ceil(layer**2)),
            "network-wise": wilson_trials(float(share @ means), h),
            "data-unaware": _needed(flat, np.ones_like(flat), h),
            "data-aware": _needed(flat, aware, h),
        }
    site = [np.full(bits, 1 / bits) * np.sqrt(row * (1 - row)) for row in by_site]
    uniform = [wilson_trials(float(row.mean()), h) for row in by_site]
    return {
        "layer-wise": sum(uniform),
        "network-wise": int(np.ceil(max(n / s for n, s in zip(uniform, space.sizes / len(space), strict=True)))),
        "data-unaware": sum(_needed(row, np.ones(bits), h) for row in site),
        "data-aware": sum(_needed(row, np.sqrt(guess * (1 - guess)), h) for row in site),
    }


def _needed(spread: np.ndarray, allocation: np.ndarray, h: float) -> int:
    """Return the lanes of a stratified sample in the shares *allocation*, W sqrt(p (1 - p)) being *spread*."""
    share = allocation / allocation.sum()
    held = 1.0 / len(spread)
    return int(np.ceil(max(1.96**2 * (np.square(spread) / share).sum() / h**2, (3.84 * held / (2 * h) / share).max())))


def main() -> None:
    """Print the figures, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--widths", nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--methods", nargs="*", default=list(RUN), choices=RUN)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = spent(widths=tuple(given.widths), methods=tuple(given.methods), seed=given.seed)
    if given.json:
        print(json.dumps(vars(found), indent=2))
        return
    for width, lanes in found.lanes.items():
        print(f"\n{width}")
        for method, count in lanes.items():
            note = "computed" if method in COMPUTED else f"widest interval ±{100 * found.widest[width][method]:.3f}"
            ratio = lanes["layer-wise"] / count
            print(f"  {method:16} {count:>12,} lanes {found.seconds[width][method]:9.1f} s  {ratio:6.1f}x  {note}")
    for name, audit in found.audits.items():
        print(f"\n{name}: {audit}")


if __name__ == "__main__":
    main()
