"""The library's estimators held against the truth about ResNet-20: campaigns whose outcomes are looked up."""

import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.engine import resnet20
from benchmarks.truth import IMAGES, Truth, layers, load
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


def known_of(truth: Truth, engine: Engine) -> Enumerated:
    """Return ResNet-20 with the outcomes that are known, for campaigns that look them up."""
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
    found = {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        judged = {pool.submit(_judged, path, name, repetitions): name for name in names}
        for done in as_completed(judged):
            found[judged[done]] = done.result()
            print(f"{len(found)} of {len(names)}  {judged[done]}: {done.result()}", file=sys.stderr, flush=True)
    return {name: found[name] for name in names}


def _judged(path: Path, name: str, repetitions: int) -> dict[str, float]:
    torch.set_num_threads(1)  # the processors are taken by other estimators
    known = _known(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of campaigns that end early
        one = judge(known, name, repetitions, case=_certified(known) if name == "uniform, certified" else None)
    return {
        "bias_se": round(one.bias, 2),
        "coverage": round(one.coverage, 4),
        "trials": round(one.trials),
        "lanes": round(one.lanes),
    }


@cache
def _known(path: Path) -> Enumerated:
    return known_of(load(path), Engine(*resnet20(slice(IMAGES))))


def _certified(known: Enumerated) -> Case:
    return replace(CASES["uniform, wilson"](known), resolver=certified(known.engine, known.space))
