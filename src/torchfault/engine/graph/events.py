"""From trials to events: which operation each changed word strikes, and where its lane boards."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import EngineError, did_you_mean
from torchfault.model.places import Place
from torchfault.model.program import Program
from torchfault.trials import Trials

__all__ = ["Events", "events_of", "strikes_of"]


@dataclass(frozen=True, eq=False)
class Events:
    """What happens to trials on their way, in columns sorted by trial and then by node.

    Event i edits row ``row[i]`` of the trials at node ``node[i]``, for trial ``trial[i]``. A parameter that several
    operations read makes one event at each. *first* and *last* give every trial's first and last node.
    """

    trial: NDArray[np.int64]
    node: NDArray[np.int64]
    row: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """The events of trial t are rows ``offsets[t]:offsets[t + 1]``."""
        return np.searchsorted(self.trial, np.arange(len(self.first) + 1)).astype(np.int64)


def strikes_of(program: Program, places: Mapping[str, Place]) -> dict[str, tuple[int, ...]]:
    """Return, for every site, the nodes at which a fault in it strikes: all consumers of a parameter, else one."""
    readers = program.readers()
    found: dict[str, tuple[int, ...]] = {}
    for name, place in places.items():
        if place.role != "parameter":
            found[name] = (place.node,)
            continue
        open_nodes, struck = [place.node], set()
        while open_nodes:
            for reader in readers[open_nodes.pop()]:
                if program.nodes[reader].constant:
                    open_nodes.append(reader)
                else:
                    struck.add(reader)
        found[name] = tuple(sorted(struck))
    return found


def events_of(trials: Trials, strikes: Mapping[str, tuple[int, ...]]) -> Events:
    """Return the events of *trials*; raises :class:`EngineError` for a site that is not in the program."""
    for position in np.unique(trials.site):
        name = trials.sites[position].name
        if not strikes.get(name):
            raise EngineError(f"no operation of the captured graph reads '{name}'{did_you_mean(name, strikes)}")
    per_site = [strikes.get(site.name, ()) for site in trials.sites]
    width = max(1, max((len(per_site[p]) for p in np.unique(trials.site)), default=1))
    table = np.full((len(trials.sites), width), -1, dtype=np.int64)
    for position, places in enumerate(per_site):
        table[position, : min(len(places), width)] = places[:width]
    candidates = table[trials.site]
    row, which = np.nonzero(candidates >= 0)
    node, trial = candidates[row, which], trials.owner[row]
    order = np.lexsort((node, trial))
    trial, node, row = trial[order], node[order], row[order]
    borders = np.searchsorted(trial, np.arange(len(trials) + 1))
    return Events(trial, node, row, node[borders[:-1]], node[borders[1:] - 1])
