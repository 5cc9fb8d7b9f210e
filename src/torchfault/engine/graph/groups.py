"""The events of one site at one operation, and the words that they change."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.model.lane_axis import LaneAxis, lanes_first, write_back
from torchfault.model.places import Place
from torchfault.trials import Trials, rank_in_run
from torchfault.words import Edits, word

__all__ = ["Editor", "Group", "among", "by_tensor", "rounds"]


@dataclass(frozen=True, eq=False)
class Group:
    """Events of one site at one node: the *lanes* (positions in the value) and the rows of the trials."""

    place: Place
    site: int
    lanes: Tensor
    rows: NDArray[np.int64]

    def take(self, positions: NDArray[np.int64]) -> "Group":
        """Return some of the events."""
        return Group(
            self.place, self.site, self.lanes[torch.from_numpy(positions).to(self.lanes.device)], self.rows[positions]
        )


def among(groups: Sequence[Group], lanes: Tensor, *, inside: bool = True) -> list[Group]:
    """Return the events that strike *lanes*, or all but them, without groups that are then empty."""
    found = []
    for group in groups:
        mine = torch.isin(group.lanes, lanes, invert=not inside)
        if bool(mine.any()):
            found.append(Group(group.place, group.site, group.lanes[mine], group.rows[mine.cpu().numpy()]))
    return found


def by_tensor(groups: Sequence[Group]) -> list[tuple[int, list[Group]]]:
    """Return *groups* of one node and role by which of its inputs or outputs they strike."""
    found: dict[int, list[Group]] = {}
    for group in groups:
        found.setdefault(group.place.which, []).append(group)
    return list(found.items())


def rounds(group: Group) -> list[Group]:
    """Split the events of *group* so that no lane occurs twice in a part."""
    lanes = group.lanes.cpu().numpy()
    order = np.argsort(lanes, kind="stable")
    ordered = lanes[order]
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    if fresh.all():
        return [group]
    rank = rank_in_run(fresh)
    return [group.take(order[rank == level]) for level in range(int(rank.max()) + 1)]


@dataclass(frozen=True, eq=False)
class Editor:
    """Changes the words that rows of *trials* strike, in tensors on *device*."""

    trials: Trials
    device: torch.device

    def edits(self, group: Group) -> Edits:
        """Return the words that *group* changes, in its lanes."""
        trials, rows = self.trials, group.rows
        site = trials.sites[group.site]
        columns = (trials.element[rows], trials.keep[rows], trials.toggle[rows])
        found = Edits.of(site.name, word(site.word), *columns, part=group.place.part, device=self.device)
        return replace(found, lane=group.lanes)

    def changed(self, group: Group, value: Tensor, layout: LaneAxis) -> tuple[Tensor, Tensor] | None:
        """Return which values of their lanes the events of *group*, each alone, change, and to what: (n, k) each.

        ``None`` where those are all values of a lane.
        """
        first, edits, blocks = lanes_first(value, layout), self.edits(group), group.place.blocks
        if blocks is not None:
            return blocks.alone(first, blocks.row(value.shape), edits)
        old = first[(group.lanes, *torch.unravel_index(edits.element, first.shape[1:]))]
        return edits.element[:, None], edits.changed(old)[:, None]

    def write(self, tensor: Tensor, layout: LaneAxis, groups: Sequence[Group]) -> None:
        """Change the words of *groups* in one *tensor*, in place; those of a block stand for its values together."""
        first, blocks = lanes_first(tensor, layout), groups[0].place.blocks
        if blocks is not None:
            blocks.struck(first, blocks.row(tensor.shape), [self.edits(group) for group in groups])
        for group in groups if blocks is None else ():
            self.edits(group).write(first)
        write_back(tensor, layout, first)
