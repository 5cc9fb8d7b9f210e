"""Vulnerability values: the smallest changes that do harm, searched over steps that are the same for every target.

It serves the parts of the published method that do not try a word's own flips: a value added to a whole output channel,
and errors pooled over the images. Source: DeepVigor+, arXiv 2410.15742, candidate vulnerability values (CVV).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.deepvigor.attempts import Attempts, Bench
from benchmarks.deepvigor.distribution import HIGHEST, LOWEST
from benchmarks.deepvigor.ladders import candidate_ladders
from benchmarks.deepvigor.refinements import Refinements
from benchmarks.deepvigor.search import search
from torchfault.space import Site

__all__ = ["Thresholds", "find_thresholds", "steps"]

_PER_OCTAVE = 4
_TAIL_STEP = 4


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The vulnerability values of targets, shape (targets,) each.

    *positive* and *negative* are the harmful changes nearest to 0, infinite where none is harmful; *not_finite* tells
    where a value that is not finite does harm.
    """

    positive: Tensor
    negative: Tensor
    not_finite: Tensor


def steps(refinements: Refinements, dtype: torch.dtype) -> NDArray[np.float64]:
    """Return the changes to search over, ascending: the candidates, and what the refinements put between and beyond.

    >>> steps(Refinements(exact=False, tails=False), torch.float32)[[0, 10, -1]].tolist()
    [0.0009765625, 1.0, 1024.0]
    >>> len(steps(Refinements(), torch.float32))
    111
    """
    per_octave = _PER_OCTAVE if refinements.exact else 1
    exponents = np.arange(LOWEST * per_octave, HIGHEST * per_octave + 1) / per_octave
    if refinements.tails:
        limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        last = np.frexp(float(limits.max))[1] - 1
        exponents = np.append(exponents, np.arange(HIGHEST + 1, last + 1, 1 if last < 32 else _TAIL_STEP))
    return np.asarray(np.exp2(exponents))


def find_thresholds(
    bench: Bench,
    site: Site,
    values: Tensor,
    element: NDArray[np.int64],
    image: NDArray[np.int64],
    *,
    refinements: Refinements,
) -> Thresholds:
    """Return the thresholds of words *element* of *site*, whose golden *values* are changed, each on one *image*."""
    line = steps(refinements, values.dtype)
    ladders = candidate_ladders(values, line, not_finite=refinements.tails and values.is_floating_point())
    attempts = Attempts(bench, (site,), {0: ladders}, np.zeros(len(element), dtype=np.int64), element, image)
    harmful = search(ladders.delta, attempts).harmful
    up, down = harmful[:, : len(line)], harmful[:, len(line) : 2 * len(line)]
    beyond = np.append(line, np.inf)
    # Without the tails, what is not finite is taken for harmful.
    broken = harmful[:, 2 * len(line) :].any(1) if refinements.tails else np.ones(len(element), dtype=bool)
    return Thresholds(
        torch.from_numpy(beyond[np.where(up.any(1), up.argmax(1), len(line))]),
        torch.from_numpy(-beyond[np.where(down.any(1), down.argmax(1), len(line))]),
        torch.from_numpy(broken),
    )
