"""The library's estimators held against the truth about ResNet-20: campaigns whose outcomes are looked up."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.engine import resnet20
from benchmarks.side_by_side import side_by_side
from benchmarks.truth import IMAGES, layers, load
from tests.support.enumerated import Enumerated
from tests.support.validity import CASES, Case, judge
from torchfault.data import leaves
from torchfault.engine import Engine
from torchfault.resolve import certified
from torchfault.trials import Trials

__all__ = ["NAMES", "estimators", "known_of"]

NAMES = (
    "uniform, wilson",
    "uniform, certified",
    "layer-wise",
    "data-unaware",
    "data-aware",
    "importance, effect",
    "importance, rising",
    "learned",
    "adaptive, model",
    "deviation, sites",
    "deviation, margins, sites",
    "deviation, certified, sites",
    "deviation, certified, model",
    "uniform, pooled",
    "deviation, pooled",
    "whole words, closure",
)


@cache
def known_of(path: Path) -> Enumerated:
    """Return ResNet-20 with the outcomes that the gathered file *path* holds, for campaigns that look them up."""
    truth, engine = load(path), Engine(*resnet20(slice(IMAGES)))
    space = layers(engine, list(truth.fail))
    outcomes = np.concatenate([truth.fail[site.name].reshape(-1, IMAGES) for site in space.sites])
    return Enumerated(engine, space, outcomes, any_alone)


def any_alone(known: Enumerated, trials: Trials) -> Tensor:
    """Return outputs of trials of several faults: of another class where any of them fails alone.

    What faults do together is not known; that none hides another is what pooling assumes.
    """
    golden = leaves(known.engine.golden())[0][torch.from_numpy(trials.inputs)]
    owner, each = trials.owner, np.arange(len(trials.toggle) + 1)
    apart = replace(trials, offsets=each, inputs=trials.inputs[owner])
    number, _ = known.numbers(apart)
    fails = np.bincount(owner, known.outcomes[number, apart.inputs], len(trials)) > 0
    return torch.where(torch.from_numpy(fails)[:, None], golden.roll(1, 1), golden)


def estimators(path: Path, *, repetitions: int, names: Sequence[str] = NAMES) -> dict[str, dict[str, float]]:
    """Return the bias of each estimator in standard errors, and how often its 95 % interval holds the truth.

    Each is repeated so many times, on the sites that the gathered file *path* holds, as many side by side as there are
    processors; ``trials`` and ``lanes`` are means.
    """
    return side_by_side(partial(_judged, path=path, repetitions=repetitions), names)


def _judged(name: str, *, path: Path, repetitions: int) -> dict[str, float]:
    known = known_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of campaigns that end early
        one = judge(known, name, repetitions, case=_certified(known) if name == "uniform, certified" else None)
    return {
        "bias_se": round(one.bias, 2),
        "coverage": round(one.coverage, 4),
        "trials": round(one.trials),
        "lanes": round(one.lanes),
    }


def _certified(known: Enumerated) -> Case:
    return replace(CASES["uniform, wilson"](known), resolver=certified(known.engine, known.space))
