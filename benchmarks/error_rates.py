"""Accuracy against the rate of bit errors, for networks in several representations, on real images.

At every rate each bit of what is struck is flipped with that probability, drawn for itself, in every repetition anew.
The result is the mean over the repetitions with a t interval; a repetition in which an index points to nowhere gives no
answer, which counts as no image right.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

from torchfault.data import Data
from torchfault.engine import inject
from torchfault.errors import StorageError
from torchfault.model.discover import find
from torchfault.space import FaultSpace
from torchfault.trials import Trials

RATES = (0.0, 1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0)
FALL = 0.40
LEVEL = 0.95
_FEW = 0.02


@dataclass(frozen=True)
class Point:
    """The accuracy at one rate: the mean, the ends of its interval, and the repetitions that gave no answer."""

    rate: float
    mean: float
    low: float
    high: float
    detected: int


@dataclass(frozen=True)
class Curve:
    """Accuracy against the rate for one representation and one target of *words* words with *bits* bits in all."""

    representation: str
    target: str
    words: int
    bits: int
    points: tuple[Point, ...]

    @property
    def faults_per_word(self) -> float | None:
        """The flipped bits per stored word at which accuracy is 40 points below that without faults."""
        goal = self.points[0].mean - FALL
        struck = self.points[1:]
        for before, after in pairwise(struck):
            if before.mean >= goal > after.mean:
                share = (before.mean - goal) / (before.mean - after.mean)
                rate = math.exp(math.log(before.rate) + share * math.log(after.rate / before.rate))
                return rate * self.bits / self.words
        return None


def flips(space: FaultSpace, rate: float, rng: np.random.Generator) -> Trials:
    """Return one trial in which each bit of *space* is flipped with probability *rate*."""
    parts = [
        (position, *_site_flips(site.elements, site.width, rate, rng)) for position, site in enumerate(space.sites)
    ]
    site = np.concatenate([np.full(len(element), position, dtype=np.int32) for position, element, _ in parts])
    element = np.concatenate([element for _, element, _ in parts])
    toggle = np.concatenate([toggle for *_, toggle in parts])
    full = np.array([(1 << one.width) - 1 for one in space.sites], dtype=np.uint64)
    offsets = np.array([0, len(site)])
    return Trials(space.sites, offsets, np.zeros(1, dtype=np.int64), site, element, full[site], toggle)


def _site_flips(elements: int, width: int, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if rate < _FEW:  # few: draw their number, and then different places
        count = rng.binomial(elements * width, rate)
        place = np.unique(rng.integers(0, elements * width, count))
        while len(place) < count:
            place = np.unique(np.append(place, rng.integers(0, elements * width, count - len(place))))
        element, start = np.unique(place // width, return_index=True)
        bit = np.uint64(1) << (place % width).astype(np.uint64)
        return element, np.bitwise_or.reduceat(bit, start) if len(start) else bit
    drawn = rng.random((elements, width)) < rate
    toggle = (drawn.astype(np.uint64) << np.arange(width, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    struck = np.flatnonzero(toggle)
    return struck, toggle[struck]


def accuracy(model: nn.Module, data: Data) -> float:
    """Return the share of right answers; an answer with a score that is no number is wrong."""
    with torch.inference_mode():
        scores = model(data.inputs)
    right = (scores.argmax(1) == data.labels) & ~scores.isnan().any(1)
    return float(right.float().mean())


def curve(
    name: str, target: str, model: nn.Module, data: Data, choose: Callable[[FaultSpace], FaultSpace], *, repeats: int
) -> Curve:
    """Return the curve of *model* on *data*, struck in the sites that *choose* picks."""
    found = find(model, data)
    space = choose(found.space)
    rows, unharmed = [], accuracy(model, data)
    for number, rate in enumerate(RATES):
        values, lost = [], 0
        for repeat in range(repeats if rate else 1):
            rng = np.random.default_rng([20261121, number, repeat])
            trial = flips(space, rate, rng)
            try:
                if not len(trial.element):
                    values.append(unharmed)
                    continue
                with inject(model, trial, space=found):
                    values.append(accuracy(model, data))
            except StorageError:
                values.append(0.0)
                lost += 1
        rows.append(_point(rate, values, lost))
    words = sum(site.elements for site in space.sites)
    return Curve(name, target, words, len(space), tuple(rows))


def _point(rate: float, values: Sequence[float], lost: int) -> Point:
    mean, n = float(np.mean(values)), len(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return Point(rate, mean, max(mean - half, 0.0), min(mean + half, 1.0), lost)


def lines(curves: Sequence[Curve]) -> Iterator[str]:
    """Yield the table of the curves."""
    rates = " | ".join(f"{rate:g}" for rate in RATES)
    yield f"| accuracy (%) at bit error rate | {rates} | faults per word at -40 points |"
    yield "|---" * (len(RATES) + 2) + "|"
    for one in curves:
        fallen = f"{one.faults_per_word:.2g}" if one.faults_per_word is not None else "-"
        means = " | ".join(f"{100 * point.mean:.1f}" for point in one.points)
        yield f"| {one.representation}, {one.target} | {means} | {fallen} |"


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Save accuracy against rate with intervals in one figure: weights, and what is computed from them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {"weights": ["weights"], "activations": list(dict.fromkeys(one.target for one in curves))}
    panels["activations"] = [target for target in panels["activations"] if target != "weights"]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.8 * len(panels), 3.9), sharey=True)
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(one.representation for one in curves))}
    for axis, (title, targets) in zip(axes, panels.items(), strict=True):
        for one in curves:
            if one.target not in targets:
                continue
            x = [point.rate for point in one.points[1:]]
            mean, low, high = ([100 * getattr(p, part) for p in one.points[1:]] for part in ("mean", "low", "high"))
            other = one.target != title
            label = f"{one.representation}, {one.target}" if other else one.representation
            style = {"color": colours[one.representation], "linestyle": "--" if other else "-"}
            axis.plot(x, mean, marker="o", markersize=3, label=label, **style)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axis.set(xscale="log", xlabel="probability that a bit is flipped", title=title, ylim=(0, 100))
    axes[0].set_ylabel("accuracy, %")
    named = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.tight_layout(rect=(0, 0.08, 1, 1))  # room below, where no curve is
    figure.legend(named.values(), named.keys(), loc="lower center", ncols=len(named), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
