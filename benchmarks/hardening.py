"""What each method of hardening gains and costs, for four networks; what to protect; checksums.

Beside these: fault-aware training (``fat``, benchmarks/training.py) and search (benchmarks/architecture.py).

ResNet-20 on CIFAR-10 in float32 and with int8 weights, the digits CNN, and a spiking network on digits (with snnTorch;
left out without it) have their methods on one board (benchmarks/leaderboard.py).
"""

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks import architecture, rows, training
from benchmarks.checksums import abft
from benchmarks.leaderboard import KINDS, leaderboard
from benchmarks.subjects import NETWORKS, Subject, resnet, unbuildable
from torchfault.campaign import Campaign, run
from torchfault.engine import Engine
from torchfault.hardening import front, protect, residual
from torchfault.statistics import MaxTrials

PARTS = ("leaderboard", "fat", "protection", "abft", "search")


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
