"""Run the one struck operation anew, for lanes whose faults have no closed form there."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchfault.data import leaves
from torchfault.engine.graph.groups import Editor, Group, among, by_tensor
from torchfault.engine.graph.modules import Modules
from torchfault.engine.stored import edited
from torchfault.model.lane_axis import LaneAxis, join, lanes_first, put, take, take_value
from torchfault.model.places import lane_arguments
from torchfault.model.program import Node, Program, Value, run_node
from torchfault.storages import Stored

__all__ = ["Anew", "put_value"]

_VMAP_BYTES = 64 << 20  # of parameters of lanes that run together, and of what is computed from these alone

Read = Callable[[int], Value]


@dataclass(frozen=True, eq=False)
class Anew:
    """Runs operations of *program* on operands that *editor* has changed: inputs, parameters, or both in turn.

    With *bitwise* the sign of a NaN matters, since a later fault may strike its word: ``vmap`` need not keep it.
    """

    program: Program
    editor: Editor
    stored: Mapping[int, Stored]
    modules: Modules | None = None
    bitwise: bool = True

    def on_inputs(
        self, node: Node, groups: Sequence[Group], lanes: Tensor, values: Read
    ) -> tuple[dict[int, Value], Value]:
        """Return the edited inputs of *node* for the sorted *lanes*, and what it makes of them."""
        read, arguments = partial(self._of_lanes, lanes, values), lane_arguments(node, self.program)
        copies: list[Value] = [_clone(read(source)) for source in arguments]
        for which, mine in by_tensor(groups):
            layout = self.program.nodes[arguments[which]].layout
            assert isinstance(layout, LaneAxis)
            local = [replace(group, lanes=torch.searchsorted(lanes, group.lanes)) for group in mine]
            self.editor.write(copies[which], layout, local)
        pending = iter(copies)

        def swap(position: int) -> Value:
            return read(position) if self.program.nodes[position].constant else next(pending)

        return dict(zip(arguments, copies, strict=True)), run_node(node, swap, len(lanes))

    def _of_lanes(self, lanes: Tensor, values: Read, position: int) -> Value:
        """Return the value of a node for *lanes* alone.

        No closure that calls itself: such a one keeps *values*, a whole sweep, until Python looks for cycles.
        """
        node = self.program.nodes[position]
        if node.positional:
            return run_node(node, partial(self._of_lanes, lanes, values), len(lanes))
        return take_value(values(position), node.layout, lanes)

    def on_parameters(
        self,
        node: Node,
        value: Value,
        groups: Sequence[Group],
        lanes: Tensor,
        values: Read,
        inputs: Sequence[Group] = (),
    ) -> None:
        """Run *node* for *lanes*, each with its own parameters and *inputs*: by ``vmap`` if it can, else one by one."""
        if self.modules is not None:
            for some, targets in self.modules.by_words(groups, lanes, self.editor.trials):
                with edited(targets):
                    result = self.on_inputs(node, among(inputs, some), some, values)[1]
                put_value(value, node.layout, some, result)
            return
        if not inputs and self._on_many(node, value, groups, lanes, values):
            if not self.bitwise:
                return
            lanes = lanes[~_finite(take(value, node.layout, lanes), node.layout)]  # type: ignore[arg-type]
        for lane in lanes:
            one = lane.view(1)
            mine = among(groups, one)
            own = {p: self._parameter(p, mine) for p in {g.place.node for g in mine}}
            changed = self._changed(self._between(own, node), own)
            read = lambda p, c=changed: c[p] if p in c else values(p)  # noqa: E731
            put_value(value, node.layout, one, self.on_inputs(node, among(inputs, one), one, read)[1])

    def _parameter(self, position: int, groups: Sequence[Group]) -> Tensor:
        """Return a copy of a parameter with all words of *groups* edited (one lane's)."""
        mine = [group for group in groups if group.place.node == position]
        if position in self.stored:
            return self._stored_value(position, mine)
        tensor: Tensor = self.program.constants[position].clone()
        for group in mine:
            replace(self.editor.edits(group), lane=None).write(tensor.unsqueeze(0))
        return tensor

    def _stored_value(self, position: int, groups: Sequence[Group]) -> Tensor:
        """Return the value of a stored parameter with all words of *groups* edited (one lane's)."""
        stored = self.stored[position]
        changed: dict[str, Tensor] = {}
        for group in groups:
            words = stored.words[group.place.part].clone()
            replace(self.editor.edits(group), lane=None).write(words.unsqueeze(0))
            changed[group.place.part] = words
        return stored.value(changed)

    def _changed(self, computed: Sequence[Node], edited: Mapping[int, Tensor]) -> dict[int, Value]:
        """Return the values of *edited* parameters and of all that is *computed* from them."""
        changed: dict[int, Value] = dict(edited)
        for node in computed:
            changed[node.position] = run_node(
                node, lambda p: changed[p] if p in changed else self.program.constants[p], 1
            )
        return changed

    def _between(self, edited: Collection[int], node: Node) -> list[Node]:
        """Return what is computed from the parameters at *edited* alone before *node*."""
        found: dict[int, Node] = {}
        for between in self.program.nodes[min(edited, default=node.position) : node.position]:
            if between.constant and between.target and any(s in edited or s in found for s in between.reads):
                found[between.position] = between
        return list(found.values())

    def _on_many(self, node: Node, value: Value, groups: Sequence[Group], lanes: Tensor, values: Read) -> bool:
        if len(lanes) < 2 or not isinstance(node.layout, LaneAxis):
            return False
        positions = sorted({g.place.node for g in groups})
        computed = self._between(positions, node)
        held = (*positions, *(one.position for one in computed if not one.view))
        bytes_each = sum(leaf.nbytes for p in held for leaf in leaves(self.program.constants[p]))
        step = int(max(1, _VMAP_BYTES // max(bytes_each, 1)))
        for begin in range(0, len(lanes), step):
            part = lanes[begin : begin + step]
            stacks = [self._stack(p, groups, part) for p in positions]
            try:
                result = self._vmap(node, computed, positions, stacks, part, values)
            except (RuntimeError, ValueError):
                return False  # no batching rule for this operation
            put(value, node.layout, part, result)
        return True

    def _stack(self, position: int, groups: Sequence[Group], lanes: Tensor) -> Tensor:
        mine = among([group for group in groups if group.place.node == position], lanes)
        if position in self.stored:
            return torch.stack([self._parameter(position, among(mine, lane.view(1))) for lane in lanes])
        constant: Tensor = self.program.constants[position]
        stack = constant.expand(len(lanes), *constant.shape).clone()
        for group in mine:
            self.editor.write(stack, LaneAxis(0), [replace(group, lanes=torch.searchsorted(lanes, group.lanes))])
        return stack

    def _vmap(
        self,
        node: Node,
        computed: Sequence[Node],
        positions: list[int],
        stacks: list[Tensor],
        lanes: Tensor,
        values: Read,
    ) -> Tensor:
        sources = list(dict.fromkeys(lane_arguments(node, self.program)))
        layouts = [self.program.nodes[s].layout for s in sources]
        if not all(isinstance(w, LaneAxis) for w in layouts) or any(self.program.nodes[s].positional for s in sources):
            raise ValueError("an operand has several results, or depends on the place of a lane in the batch")
        operands = [lanes_first(take(values(s), w, lanes), w) for s, w in zip(sources, layouts, strict=True)]  # type: ignore[arg-type]
        shapes = [_one_lane_shape(values(s), w) for s, w in zip(sources, layouts, strict=True)]

        def one(parameters: list[Tensor], inputs: list[Tensor]) -> Tensor:
            changed = self._changed(computed, dict(zip(positions, parameters, strict=True)))
            mine = {s: x.reshape(shape) for s, x, shape in zip(sources, inputs, shapes, strict=True)}
            known = {**self.program.constants, **mine, **changed}
            result: Tensor = run_node(node, known.__getitem__, 1)
            return result

        stacked = torch.func.vmap(one)(stacks, operands)
        layout = node.layout
        assert isinstance(layout, LaneAxis)
        parts = [stacked[i] for i in range(len(lanes))]
        return join(parts, layout)


def _finite(value: Tensor, layout: LaneAxis) -> Tensor:
    """Return which lanes have nothing but finite values."""
    first = lanes_first(value, layout)
    return first.reshape(len(first), -1).isfinite().all(1)


def _one_lane_shape(value: Tensor, layout: Any) -> list[int]:
    shape = list(value.shape)
    shape[layout.axis] = layout.outer * layout.inner
    return shape


def _clone(value: Value) -> Value:
    return tuple(_clone(v) for v in value) if isinstance(value, tuple | list) else value.clone()


def put_value(value: Value, layout: Any, lanes: Tensor, result: Value) -> None:
    """Overwrite *lanes* of *value*, or of each of several results, in place."""
    if isinstance(layout, tuple):
        for mine, theirs, where in zip(value, result, layout, strict=True):
            if where is not None:
                put(mine, where, lanes, theirs)
    else:
        put(value, layout, lanes, result)
