"""Apply the events of a node to the lanes on board: edited words, closed forms, or the one operation run anew."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.engine.graph.combination import strike_together
from torchfault.engine.graph.groups import Editor, Group, among, by_tensor, rounds
from torchfault.engine.graph.modules import Modules
from torchfault.engine.graph.patches import Patch, Struck, patch_for, row_patch
from torchfault.engine.graph.recompute import Anew, put_value
from torchfault.model.lane_axis import LaneAxis, lanes_first
from torchfault.model.places import Place, lane_arguments
from torchfault.model.program import Node, Program, Ref, Value
from torchfault.storages import Stored
from torchfault.trials import Trials
from torchfault.words import picked

__all__ = ["Striker"]

_MOST_ROUNDS = 4

Read = Callable[[int], Value]


class Striker:
    """Applies the events of *trials* to values of *program*, whoever holds them."""

    def __init__(
        self,
        program: Program,
        places: Mapping[str, Place],
        trials: Trials,
        device: torch.device,
        stored: Mapping[int, Stored] | None = None,
        modules: Modules | None = None,
    ) -> None:
        self.program, self.trials, self.device, self.stored = program, trials, device, stored or {}
        self.modules, self.editor = modules, Editor(trials, device)
        self.places = [places.get(site.name) for site in trials.sites]
        roles = {place.role for i in np.unique(trials.site) if (place := self.places[i]) is not None}
        self.anew = Anew(program, self.editor, self.stored, modules, bitwise=roles != {"parameter"})

    def groups(self, lanes: Tensor, rows: NDArray[np.int64]) -> list[Group]:
        """Group the events of one node by site."""
        site = self.trials.site[rows]
        found = []
        for position in np.unique(site):
            mine = np.flatnonzero(site == position)
            place = self.places[position]
            assert place is not None
            found.append(Group(place, int(position), lanes, rows).take(mine))
        return found

    def patch(self, node: Node, group: Group, values: Read) -> Patch | None:
        """Return the closed form of *group*, whose lanes are struck in one word each, or ``None``."""
        if self.modules is not None and group.place.role == "parameter":
            return self.modules.patch(node, group, self.editor.edits(group), values)
        found = self._struck(node, group, values)
        if found is None:
            return self._stored_rows(node, group, values)
        slot, struck = found
        return patch_for(node, slot, struck, value=values, layout=self._layout)

    def _layout(self, position: int) -> Any:
        return self.program.nodes[position].layout

    def _struck(self, node: Node, group: Group, values: Read) -> tuple[int, Struck] | None:
        """Return the argument of *node* that *group* strikes, and its values there, ``None`` if not so plain."""
        source, slot = self._slot(node, group.place)
        if slot is None or (isinstance(node.layout, LaneAxis) and node.layout.nested):
            return None
        if group.place.role == "parameter" and source in self.stored:
            spread = self._spread(group)
            if spread is None or spread[0].ndim > 1:
                return None
            old = _values(self.program.constants[source], None, group.lanes, spread[0])
            return slot, Struck(group.lanes, spread[0], old, spread[1])
        if group.place.blocks is not None:
            layout = self._layout(source)
            assert isinstance(layout, LaneAxis)
            found = None if group.place.part else self.editor.changed(group, values(source), layout)
            if found is None:
                return None  # a scale changes many values
            element, new = (column.squeeze(1) for column in found)
            return slot, Struck(group.lanes, element, _values(values(source), layout, group.lanes, element), new)
        edits = self.editor.edits(group)
        old = _values(values(source), self._layout(source), group.lanes, edits.element)
        return slot, Struck(group.lanes, edits.element, old, edits.changed(old))

    def _stored_rows(self, node: Node, group: Group, values: Read) -> Patch | None:
        """Return the closed form of stored words that stand for several values each, all of them in one row."""
        source, slot = self._slot(node, group.place)
        if slot is None or group.place.role != "parameter" or source not in self.stored:
            return None
        spread, golden = self._spread(group), self.program.constants[source]
        columns = golden[0].numel() if golden.ndim > 1 else 0
        if spread is None or spread[0].ndim == 1 or not columns:
            return None
        place, new = spread
        if not bool((place // columns == place[:, :1] // columns).all()):
            return None
        row = place[:, 0] // columns
        fresh = golden.reshape(len(golden), columns)[row].scatter(1, place % columns, new).view(-1, *golden.shape[1:])
        return row_patch(node, slot, group.lanes, row, fresh, value=values, layout=self._layout)

    def _spread(self, group: Group) -> tuple[Tensor, Tensor] | None:
        """Return which values of a stored parameter the words of *group* change, each alone, and to what."""
        stored, part = self.stored[group.place.node], group.place.part
        edits = self.editor.edits(group)
        fresh = edits.changed(picked(stored.words[part], edits.element))
        found = stored.storage.spread(stored.words, stored.shape, part, edits.element, fresh)
        return None if found is None else (found[0], found[1].to(stored.dtype))

    def _slot(self, node: Node, place: Place) -> tuple[int, int | None]:
        """Return the struck operand's node, and its argument's position where *node* reads it directly and once."""
        source = place.node if place.role == "parameter" else lane_arguments(node, self.program)[place.which]
        slots = [i for i, argument in enumerate(node.args) if argument == Ref(source)]
        nested = any(source in _nested(argument) for argument in (*node.args, *node.kwargs.values()))
        return source, slots[0] if len(slots) == 1 and not nested else None

    def apply(self, node: Node, value: Value, lanes: Tensor, rows: NDArray[np.int64], values: Read) -> Value:
        """Apply the events *rows* of the trials, one per entry of *lanes*, to *value* in place; return it."""
        by_role: dict[str, list[Group]] = {"input": [], "parameter": [], "output": []}
        for group in self.groups(lanes, rows):
            by_role[group.place.role].append(group)
        self._apply_operands(node, value, by_role["input"], by_role["parameter"], values)
        for which, mine in by_tensor(by_role["output"]):
            tensor = value[which] if isinstance(value, tuple) else value
            layout = node.layout[which] if isinstance(node.layout, tuple) else node.layout
            assert isinstance(layout, LaneAxis)
            self.editor.write(tensor, layout, mine)
        return value

    def _apply_operands(
        self, node: Node, value: Value, inputs: list[Group], parameters: list[Group], values: Read
    ) -> None:
        if inputs and parameters:
            struck = torch.cat([group.lanes for group in inputs])
            both = torch.cat([group.lanes for group in parameters]).unique()
            both = both[torch.isin(both, struck)]
            if len(both):
                self._apply_both(node, value, both, among(inputs, both), among(parameters, both), values)
                inputs, parameters = (among(part, both, inside=False) for part in (inputs, parameters))
        if inputs:
            self._apply_inputs(node, value, inputs, values)
        if parameters:
            self._apply_parameters(node, value, parameters, values)

    def _apply_both(
        self, node: Node, value: Value, lanes: Tensor, inputs: list[Group], parameters: list[Group], values: Read
    ) -> None:
        """Run *node* for *lanes* on edited inputs, and strike its parameters there."""
        arguments = lane_arguments(node, self.program)
        if self.modules is not None or len(set(arguments)) < len(arguments):  # an operand read twice is struck once
            self.anew.on_parameters(node, value, parameters, lanes, values, inputs)
            return
        operands, result = self.anew.on_inputs(node, inputs, lanes, values)
        here = [replace(group, lanes=torch.searchsorted(lanes, group.lanes)) for group in parameters]
        left = self._apply_together(node, result, here, lambda p: operands[p] if p in operands else values(p))
        put_value(value, node.layout, lanes, result)
        if len(left := lanes[left]):
            self.anew.on_parameters(node, value, among(parameters, left), left, values, among(inputs, left))

    def _apply_inputs(self, node: Node, value: Value, groups: list[Group], values: Read) -> None:
        times = torch.cat([group.lanes for group in groups]).unique(return_counts=True)[1]
        most = _MOST_ROUNDS if len(groups) == 1 else 1
        if int(times.max()) <= most and isinstance(node.layout, LaneAxis):
            groups = [group for group in groups if not self._apply_closed(node, value, group, values)]
        if groups:
            lanes = torch.cat([group.lanes for group in groups]).unique()
            put_value(value, node.layout, lanes, self.anew.on_inputs(node, groups, lanes, values)[1])

    def _apply_closed(self, node: Node, value: Tensor, group: Group, values: Read) -> bool:
        """Apply *group* by its closed form, one event per lane at a time; return whether there was one."""
        for part in rounds(group):
            patch = self.patch(node, part, values)
            if patch is None:
                return False
            assert isinstance(node.layout, LaneAxis)
            output = lanes_first(value, node.layout)
            patch.write(output, part.lanes, patch.result(output, part.lanes))
        return True

    def _apply_parameters(self, node: Node, value: Value, groups: list[Group], values: Read) -> None:
        lanes = self._apply_together(node, value, groups, values)
        if len(lanes):
            self.anew.on_parameters(node, value, among(groups, lanes), lanes, values)

    def _apply_together(self, node: Node, value: Value, groups: list[Group], values: Read) -> Tensor:
        """Apply what has a closed form; return, sorted, the lanes that must run anew."""
        if not isinstance(node.layout, LaneAxis):
            return torch.cat([group.lanes for group in groups]).unique()  # type: ignore[no-any-return]
        plain: dict[int, Struck] = {}
        others: list[Group] = []
        for group in groups:
            found = None if self.modules is not None else self._struck(node, group, values)
            if found is None or found[0] in plain:  # two parts of a stored parameter may change one value
                others.append(group)
            else:
                plain[found[0]] = found[1]
        left = torch.zeros(0, dtype=torch.int64, device=self.device)
        if others:
            left = self._apply_alone(node, value, groups, others, values)
            plain = {slot: one.where(~torch.isin(one.rows, left)) for slot, one in plain.items()}
            plain = {slot: one for slot, one in plain.items() if len(one.rows)}
        if plain:
            output = lanes_first(value, node.layout)
            more = strike_together(node, output, plain, value=values, layout=self._layout)
            left = torch.cat([left, more]).sort().values
        return left

    def _apply_alone(self, node: Node, value: Tensor, groups: list[Group], others: list[Group], values: Read) -> Tensor:
        """Apply *others* in lanes that nothing else of *groups* strikes; return their other lanes."""
        lanes, times = torch.cat([group.lanes for group in groups]).unique(return_counts=True)
        alone = among(others, lanes[times == 1])
        done = [group.lanes for group in alone if self._apply_closed(node, value, group, values)]
        left: Tensor = torch.cat([group.lanes for group in others]).unique()
        return left[~torch.isin(left, torch.cat(done))] if done else left


def _values(tensor: Tensor, layout: Any, lanes: Tensor, element: Tensor) -> Tensor:
    """Return the values at flat *element*: of *tensor*, or of one of its *lanes* each."""
    if layout is None:
        return tensor[torch.unravel_index(element, tensor.shape)] if tensor.ndim else tensor.expand(len(element))
    first = lanes_first(tensor, layout)
    return first[(lanes, *torch.unravel_index(element, first.shape[1:]))]


def _nested(argument: Any) -> set[int]:
    """Return the nodes referred to inside lists of *argument*."""
    found: set[int] = set()
    if isinstance(argument, list | tuple):
        for part in argument:
            found |= {part.node} if isinstance(part, Ref) else _nested(part)
    return found
