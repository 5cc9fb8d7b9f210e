"""Activations by the published method: thresholds image by image, but the errors of a neuron pooled over the images."""

import numpy as np
import torch

from benchmarks.deepvigor.attempts import Bench
from benchmarks.deepvigor.distribution import share_beyond
from benchmarks.deepvigor.ladders import Storage
from benchmarks.deepvigor.refinements import Refinements
from benchmarks.deepvigor.tally import Tally
from benchmarks.deepvigor.targets import Targets
from benchmarks.deepvigor.thresholds import find_thresholds
from torchfault.space import FaultSpace

__all__ = ["analyse_pooled"]


def analyse_pooled(
    bench: Bench,
    space: FaultSpace,
    targets: Targets,
    storage: Storage,
    refinements: Refinements,
    tally: Tally,
) -> None:
    """Add to *tally* the failing shares of *targets*: words of one site, the same ones on all images."""
    number = int(targets.site[0])
    site, bits = space.sites[number], tally.positions[number]
    (values,) = targets.values(space).values()
    found = find_thresholds(bench, site, values, targets.element, targets.image, refinements=refinements)
    deltas = torch.from_numpy(storage.deltas(values, bits))
    share = np.empty((len(targets.site), len(bits)))
    word = np.unique(targets.element, return_inverse=True)[1].reshape(-1)
    for rows in np.split(np.argsort(word, kind="stable"), np.cumsum(np.bincount(word))[:-1]):
        mine = torch.from_numpy(rows)
        ends = (found.positive[mine], found.negative[mine])
        not_finite = found.not_finite[mine]
        share[rows] = share_beyond(deltas[mine], *ends, not_finite=not_finite, dtype=values.dtype).numpy()
    tally.add(number, site.channel_of(targets.element), share)
