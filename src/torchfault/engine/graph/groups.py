"""The events of one site at one operation, and the words that they change."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.faults import Trials, rank_in_run
from torchfault.model.lane_axis import LaneAxis, lanes_first, write_back
from torchfault.model.places import Place
from torchfault.storages import BlockEdits, row_length
from torchfault.words import edit, held_in, masks_to_words, word

__all__ = ["Group", "Words", "among", "by_tensor", "rounds"]


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
class Words:
    """The words that the rows of *trials* change, as tensors on *device*."""

    trials: Trials
    device: torch.device

    @cached_property
    def _element(self) -> Tensor:
        return torch.from_numpy(self.trials.element).to(self.device)

    def elements(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the flat elements that *rows* strike."""
        return self._element[torch.from_numpy(rows).to(self.device)]

    def edited(self, old: Tensor, site: int, rows: NDArray[np.int64]) -> Tensor:
        """Return the faulty words of *old*, one per row."""
        fmt = held_in(word(self.trials.sites[site].word), old.dtype)
        return edit(old.contiguous(), *self._masks(site, rows), fmt)

    def _masks(self, site: int, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        fmt = word(self.trials.sites[site].word)
        keep, toggle = (
            masks_to_words(column[rows], fmt, device=self.device) for column in (self.trials.keep, self.trials.toggle)
        )
        return keep, toggle

    def in_blocks(self, group: Group) -> BlockEdits:
        """Return the events of *group* in an activation that is kept in blocks."""
        return BlockEdits(
            group.place.part, group.lanes, self.elements(group.rows), *self._masks(group.site, group.rows)
        )

    def edit(self, tensor: Tensor, layout: LaneAxis, groups: Sequence[Group]) -> None:
        """Change the words of *groups* in one *tensor*, in place; those of a block stand for its values together."""
        first, blocks = lanes_first(tensor, layout), groups[0].place.blocks
        if blocks is not None:
            blocks.struck(first, row_length(tensor.shape), [self.in_blocks(group) for group in groups])
        for group in groups if blocks is None else ():
            where = (group.lanes, *torch.unravel_index(self.elements(group.rows), first.shape[1:]))
            first[where] = self.edited(first[where], group.site, group.rows)
        write_back(tensor, layout, first)
