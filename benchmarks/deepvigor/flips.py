"""The analysis of words: their own flips, or what the switched-off refinements put in their place, by search."""

from collections.abc import Mapping

import numpy as np

from benchmarks.deepvigor.attempts import Attempts, Bench
from benchmarks.deepvigor.ladders import Storage, flip_ladders
from benchmarks.deepvigor.refinements import Refinements
from benchmarks.deepvigor.search import search
from benchmarks.deepvigor.tally import Tally
from benchmarks.deepvigor.targets import Targets
from torchfault.space import FaultSpace

__all__ = ["analyse_flips"]


def analyse_flips(
    bench: Bench,
    space: FaultSpace,
    targets: Targets,
    storages: Mapping[int, Storage],
    refinements: Refinements,
    tally: Tally,
) -> None:
    """Add to *tally* which flips of *targets* fail."""
    ladders = {}
    for number, values in targets.values(space).items():
        native = storages[number].word == space.sites[number].word
        ladders[number] = flip_ladders(values, storages[number], tally.positions[number], refinements, native=native)
    attempts = Attempts(bench, space.sites, ladders, targets.site, targets.element, targets.image)
    harmful = search(attempts.delta, attempts).harmful
    for number, mine in ladders.items():
        here = targets.site == number
        channel = space.sites[number].channel_of(targets.element[here])
        tally.add(number, channel, mine.flipped(harmful[here]).astype(np.float64))
