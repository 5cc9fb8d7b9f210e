"""Which group of a table each trial belongs to: by model, site, layer, channel, bit or kind."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.space import FaultSpace, Locations
from torchfault.store import Columns

__all__ = ["GROUPINGS", "Groups", "code_of", "groups"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a table: their *keys*, the *faults* in each, and pairs (*trial*, *code*) of trials that struck one.

    A trial that strikes a group several times is paired with it once.
    """

    keys: list[str] | list[int]
    faults: Ints
    trial: Ints
    code: Ints

    def count(self, which: NDArray[np.bool_] | None = None) -> Ints:
        """Return how many trials, or how many of *which*, struck each group."""
        code = self.code if which is None else self.code[which[self.trial]]
        return np.bincount(code, minlength=len(self.keys)).astype(np.int64)

    def members(self) -> list[Ints]:
        """Return the trials that struck each group, in order."""
        order = np.argsort(self.code, kind="stable")
        return np.split(self.trial[order], np.cumsum(self.count())[:-1])


@dataclass(frozen=True, eq=False)
class _Axis:
    """A way to group: keys, faults in each, and the group of every location."""

    keys: list[str] | list[int]
    faults: Ints
    code: Callable[[Locations], Ints]


def groups(space: FaultSpace, columns: Columns, by: str) -> Groups:
    """Return the groups of *space* that *by* names, and the trials of *columns* in each."""
    axis = GROUPINGS[by](space)
    code = axis.code(space.locate(columns.faults))
    if columns.counts is None:
        return Groups(axis.keys, axis.faults, columns.owner, code)
    pairs = np.unique(columns.owner * len(axis.keys) + code)
    trial, code = np.divmod(pairs, len(axis.keys))
    return Groups(axis.keys, axis.faults, trial, code)


def code_of(space: FaultSpace, where: Locations, by: str) -> Ints:
    """Return the group of each location, shape (n,)."""
    return GROUPINGS[by](space).code(where)


def _by_model(space: FaultSpace) -> _Axis:
    return _Axis(["model"], np.array([len(space)]), lambda where: np.zeros(len(where.site), dtype=np.int64))


def _by_site(space: FaultSpace) -> _Axis:
    return _Axis(list(space.names), space.sizes, lambda where: where.site.astype(np.int64))


def _by_label(space: FaultSpace, labels: list[str]) -> _Axis:
    keys = list(dict.fromkeys(labels))
    codes = {key: code for code, key in enumerate(keys)}
    of_site = np.array([codes[label] for label in labels], dtype=np.int64)
    faults = np.zeros(len(keys), dtype=np.int64)
    np.add.at(faults, of_site, space.sizes)
    return _Axis(keys, faults, lambda where: of_site[where.site])


def _by_layer(space: FaultSpace) -> _Axis:
    return _by_label(space, [site.module or "(model)" for site in space.sites])


def _by_kind(space: FaultSpace) -> _Axis:
    return _by_label(space, [site.kind for site in space.sites])


def _by_bit(space: FaultSpace) -> _Axis:
    bits = sorted({bit for site in space.sites for bit in site.bits})
    faults = [sum(site.elements for site in space.sites if bit in site.bits) for bit in bits]
    position = np.full(bits[-1] + 1, -1, dtype=np.int64)
    position[bits] = np.arange(len(bits))
    return _Axis(bits, np.array(faults, dtype=np.int64), lambda where: position[where.bit])


def _by_channel(space: FaultSpace) -> _Axis:
    """Keys are ``site[channel]``, or the site alone where it has no channels."""
    keys: list[str] = []
    faults: list[int] = []
    first = []
    for site in space.sites:
        first.append(len(keys))
        channels = None if site.channel is None else site.shape[site.channel]
        keys += [site.name] if channels is None else [f"{site.name}[{channel}]" for channel in range(channels)]
        faults += [site.size] if channels is None else [site.size // max(channels, 1)] * channels
    begin = np.array(first, dtype=np.int64)
    return _Axis(
        keys, np.array(faults, dtype=np.int64), lambda where: begin[where.site] + np.maximum(space.channels(where), 0)
    )


def _by_step(space: FaultSpace) -> _Axis:
    """Keys are the time steps, and -1 for the sites that have none, where there are such."""
    held = [range(*site.steps) if site.steps else range(-1, 0) for site in space.sites]
    keys = sorted({step for steps in held for step in steps})
    faults = [
        sum(s.size // max(len(steps), 1) for s, steps in zip(space.sites, held, strict=True) if k in steps)
        for k in keys
    ]
    position = np.full(keys[-1] + 2, -1, dtype=np.int64)
    position[keys] = np.arange(len(keys))  # -1 is the last place
    return _Axis(keys, np.array(faults, dtype=np.int64), lambda where: position[space.steps(where)[0]])


GROUPINGS: dict[str, Callable[[FaultSpace], _Axis]] = {
    "model": _by_model,
    "site": _by_site,
    "layer": _by_layer,
    "channel": _by_channel,
    "bit": _by_bit,
    "kind": _by_kind,
    "step": _by_step,
}
