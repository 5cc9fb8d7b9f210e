"""The groups of tables over a fault space: by site, layer, channel, bit, time step, and so on."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.cells import Axis
from torchfault.site import Site

if TYPE_CHECKING:
    from torchfault.space import FaultSpace

__all__ = ["GROUPINGS", "axis_of"]

Ints = NDArray[np.int64]

_LABELS: Mapping[str, Callable[[Site, int], str | int]] = {
    "model": lambda site, bit: "model",  # noqa: ARG005 each takes both
    "site": lambda site, bit: site.name,  # noqa: ARG005
    "layer": lambda site, bit: site.module or "(model)",  # noqa: ARG005
    "kind": lambda site, bit: site.kind,  # noqa: ARG005
    "bit": lambda site, bit: bit,  # noqa: ARG005
}


def _labelled(space: "FaultSpace", by: str) -> Axis:
    """Return the axis of groups that are made of whole cells, by the label of each."""
    cells = space.cells
    labels = [_LABELS[by](space.sites[s], bit) for s, bit in zip(cells.group, cells.bit.tolist(), strict=True)]
    keys: list[Any] = sorted(set(labels)) if by == "bit" else list(dict.fromkeys(labels))
    position = {key: code for code, key in enumerate(keys)}
    of_cell = np.array([position[label] for label in labels], dtype=np.int64)
    faults = np.zeros(len(keys), dtype=np.int64)
    np.add.at(faults, of_cell, cells.sizes)
    return Axis(keys, faults, lambda index: of_cell[space.cell_of(index)], of_cell)


def _by_channel(space: "FaultSpace") -> Axis:
    channels = [site.channels for site in space.sites]
    keys: list[str] = []
    for site, count in zip(space.sites, channels, strict=True):
        keys += [site.name] if site.channel is None else [f"{site.name}[{channel}]" for channel in range(count)]
    each = [site.size // max(count, 1) for site, count in zip(space.sites, channels, strict=True)]
    begin = np.cumsum(channels) - channels

    def code(index: ArrayLike) -> Ints:
        where = space.locate(index)
        return np.asarray(begin[where.site] + np.maximum(space.channels(where), 0))

    return Axis(keys, np.repeat(np.array(each, dtype=np.int64), channels), code)


def _by_step(space: "FaultSpace") -> Axis:
    held = [range(*site.steps) if site.steps else range(-1, 0) for site in space.sites]
    keys = sorted({step for steps in held for step in steps})
    faults = np.zeros(len(keys), dtype=np.int64)
    for site, steps in zip(space.sites, held, strict=True):
        faults[[keys.index(step) for step in steps]] += site.size // max(len(steps), 1)
    position = np.full(keys[-1] + 2, -1, dtype=np.int64)
    position[keys] = np.arange(len(keys))  # -1 is the last place
    return Axis(keys, faults, lambda index: position[space.steps(space.locate(index))[0]])


GROUPINGS = (*_LABELS, "channel", "step")


def axis_of(space: "FaultSpace", by: str) -> Axis:
    """Return the groups of *space* by one of :data:`GROUPINGS`."""
    return _by_channel(space) if by == "channel" else _by_step(space) if by == "step" else _labelled(space, by)
