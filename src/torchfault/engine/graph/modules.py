"""Faults in words that modules keep to themselves: which lanes share a change, and what one output channel becomes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from torchfault.engine.changes import Target
from torchfault.engine.graph.groups import Group
from torchfault.engine.graph.patches import Patch
from torchfault.engine.stored import Memory
from torchfault.model.foreign import Rows
from torchfault.model.lane_axis import LaneAxis, take
from torchfault.model.program import Node, Value
from torchfault.trials import Trials, equal_trials
from torchfault.words import Edits

__all__ = ["Modules"]


@dataclass(frozen=True, eq=False)
class Modules:
    """The words of a model whose operations are its modules.

    *words* finds them by the names of their sites; *rows* has, by their nodes, layers of which single output channels
    can run.
    """

    words: Memory
    rows: Mapping[int, Rows] = field(default_factory=dict)

    def patch(self, node: Node, group: Group, edits: Edits, values: Callable[[int], Value]) -> Patch | None:
        """Return the output channel that each lane of *group* changes by *edits*, computed again, or ``None``."""
        rows = self.rows.get(node.position)
        part = edits.name.removeprefix(f"{node.module}.") if node.module else edits.name
        channel = None if rows is None else rows.channel(part, edits.element)
        if rows is None or channel is None:
            return None
        fresh = edits.changed(rows.words(part).reshape(-1)[edits.element])
        x = take(values(node.args[1].node), LaneAxis(0), group.lanes)
        return Patch(rows.axis, (channel,), rows.changed(x, part, edits.element, fresh), add=False)

    def by_words(
        self, groups: Sequence[Group], lanes: Tensor, trials: Trials
    ) -> Iterator[tuple[Tensor, Sequence[Target]]]:
        """Yield those of *lanes* in which *groups* change the same words, and these words."""
        owner = np.concatenate([group.lanes.cpu().numpy() for group in groups])
        order = np.argsort(owner, kind="stable")
        rows = np.concatenate([group.rows for group in groups])[order]
        offsets = np.searchsorted(owner[order], np.append(lanes.cpu().numpy(), np.iinfo(np.int64).max))
        columns = (trials.site, trials.element, trials.keep, trials.toggle)
        struck = Trials(trials.sites, offsets, offsets[:-1], *(column[rows] for column in columns))
        for same in equal_trials(struck):
            yield lanes[torch.from_numpy(same).to(lanes.device)], self.words.targets(struck.take(same[:1]))
