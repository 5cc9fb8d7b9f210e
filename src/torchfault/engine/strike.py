"""Apply the events of a node to the lanes on board: edited words, closed forms, or the one operation run anew."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.engine.deltas import Patch, Struck, patch_for, row_patch
from torchfault.engine.modules import Group, Modules
from torchfault.engine.stored import edited
from torchfault.faults import Trials, rank_in_run
from torchfault.model.graph_sites import Place, lane_arguments
from torchfault.model.layout import Layout, join, lanes_first, put, take, take_value, write_back
from torchfault.model.program import Node, Program, Ref, Value, run_node
from torchfault.storages import BlockEdits, Stored, row_length
from torchfault.words import edit, held_in, masks_to_words, word

__all__ = ["Group", "Striker"]

_MOST_ROUNDS = 4
_VMAP_BYTES = 64 << 20


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
        self.modules = modules
        self.places = [places.get(site.name) for site in trials.sites]
        self.element = torch.from_numpy(trials.element).to(device)

    def groups(self, lanes: Tensor, rows: NDArray[np.int64]) -> list[Group]:
        """Group the events of one node by site."""
        site = self.trials.site[rows]
        found = []
        for position in np.unique(site):
            mine = np.flatnonzero(site == position)
            place = self.places[position]
            assert place is not None
            found.append(Group(place, int(position), lanes[torch.from_numpy(mine).to(lanes.device)], rows[mine]))
        return found

    def edited(self, old: Tensor, site: int, rows: NDArray[np.int64]) -> Tensor:
        """Return the faulty words of *old*, one per row of the trials."""
        fmt = held_in(word(self.trials.sites[site].word), old.dtype)
        return edit(old.contiguous(), *self._masks(site, rows), fmt)

    def _masks(self, site: int, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        fmt = word(self.trials.sites[site].word)
        keep, toggle = (
            masks_to_words(column[rows], fmt, device=self.device) for column in (self.trials.keep, self.trials.toggle)
        )
        return keep, toggle

    def _block_edits(self, group: Group) -> BlockEdits:
        """Return the events of *group* in an activation that is kept in blocks."""
        return BlockEdits(
            group.place.part, group.lanes, self.elements(group.rows), *self._masks(group.site, group.rows)
        )

    def patch(self, node: Node, group: Group, values: Callable[[int], Value]) -> Patch | None:
        """Return the closed form of *group*, whose lanes are struck in one word each, or ``None``."""
        if self.modules is not None and group.place.role == "parameter":
            changed = lambda old: self.edited(old, group.site, group.rows)  # noqa: E731
            return self.modules.patch(node, group, self.trials, changed, values)
        source, slot = self._slot(node, group.place)
        if slot is None or (isinstance(node.layout, Layout) and node.layout.nested):
            return None
        if group.place.role == "parameter" and source in self.stored:
            return self._stored_patch(node, slot, group, values)
        element = self.elements(group.rows)
        if group.place.blocks is not None:
            if group.place.part:
                return None  # an exponent changes many values
            layout, row = self.program.nodes[source].layout, row_length(values(source).shape)
            assert isinstance(layout, Layout)
            first = lanes_first(values(source), layout)
            old, new = group.place.blocks.code_alone(first, row, self._block_edits(group))
        else:
            old = self._words(values(source), self.program.nodes[source].layout, group.lanes, element)
            new = self.edited(old, group.site, group.rows)
        struck = Struck(group.lanes, element, old, new)
        return patch_for(node, slot, struck, value=values, layout=lambda position: self.program.nodes[position].layout)

    def _stored_patch(self, node: Node, slot: int, group: Group, values: Callable[[int], Value]) -> Patch | None:
        """Return the closed form of words that stand for one value each, or for several in one row."""
        found = self._spread(group)
        if found is None:
            return None
        (place, new), golden = found, self.program.constants[group.place.node]
        layout = lambda position: self.program.nodes[position].layout  # noqa: E731
        if place.ndim == 1:
            old = self._words(golden, None, group.lanes, place)
            return patch_for(node, slot, Struck(group.lanes, place, old, new), value=values, layout=layout)
        columns = golden[0].numel() if golden.ndim > 1 else 0
        if not columns or not bool((place // columns == place[:, :1] // columns).all()):
            return None
        row = place[:, 0] // columns
        fresh = golden.reshape(len(golden), columns)[row].scatter(1, place % columns, new)
        return row_patch(node, slot, group.lanes, row, fresh.view(-1, *golden.shape[1:]), value=values, layout=layout)

    def _spread(self, group: Group) -> tuple[Tensor, Tensor] | None:
        """Return which values of a stored parameter the words of *group* change, each alone, and to what."""
        stored, part = self.stored[group.place.node], group.place.part
        element = self.elements(group.rows)
        fresh = self.edited(stored.words[part].reshape(-1)[element], group.site, group.rows)
        found = stored.storage.spread(stored.words, stored.shape, part, element, fresh)
        return None if found is None else (found[0], found[1].to(stored.dtype))

    def elements(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the flat elements that rows of the trials strike."""
        return self.element[torch.from_numpy(rows).to(self.device)]

    def _words(self, tensor: Tensor, layout: Any, lanes: Tensor, element: Tensor) -> Tensor:
        if layout is None:
            return tensor[torch.unravel_index(element, tensor.shape)] if tensor.ndim else tensor.expand(len(element))
        first = lanes_first(tensor, layout)
        return first[(lanes, *torch.unravel_index(element, first.shape[1:]))]

    def _slot(self, node: Node, place: Place) -> tuple[int, int | None]:
        """Return the struck operand's node, and its argument's position where *node* reads it directly and once."""
        source = place.node if place.role == "parameter" else lane_arguments(node, self.program)[place.which]
        slots = [i for i, argument in enumerate(node.args) if argument == Ref(source)]
        nested = any(source in _nested(argument) for argument in (*node.args, *node.kwargs.values()))
        return source, slots[0] if len(slots) == 1 and not nested else None

    def apply(
        self, node: Node, value: Value, lanes: Tensor, rows: NDArray[np.int64], values: Callable[[int], Value]
    ) -> Value:
        """Apply the events *rows* of the trials, one per entry of *lanes*, to *value* in place; return it."""
        groups = self.groups(lanes, rows)
        operands = [group for group in groups if group.place.role != "output"]
        if operands:
            self._apply_operands(node, value, operands, values)
        for which, mine in _by_tensor(group for group in groups if group.place.role == "output"):
            tensor = value[which] if isinstance(value, tuple) else value
            layout = node.layout[which] if isinstance(node.layout, tuple) else node.layout
            assert isinstance(layout, Layout)
            self._edit(tensor, layout, mine)
        return value

    def _edit(self, tensor: Tensor, layout: Layout, groups: Sequence[Group]) -> None:
        """Edit the words of one tensor; those of a block stand for its values together."""
        first, blocks = lanes_first(tensor, layout), groups[0].place.blocks
        if blocks is not None:
            blocks.struck(first, row_length(tensor.shape), [self._block_edits(group) for group in groups])
        for group in groups if blocks is None else ():
            where = (group.lanes, *torch.unravel_index(self.elements(group.rows), first.shape[1:]))
            first[where] = self.edited(first[where], group.site, group.rows)
        write_back(tensor, layout, first)

    def _apply_operands(self, node: Node, value: Value, groups: list[Group], values: Callable[[int], Value]) -> None:
        together = torch.cat([group.lanes for group in groups])
        times = together.unique(return_counts=True)[1]
        mixed = len(groups) > 1 and bool((times > 1).any())
        if not mixed and int(times.max()) <= _MOST_ROUNDS and isinstance(node.layout, Layout):
            groups = [g for g in groups if not self._apply_closed(node, value, g, values)]
        if not groups:
            return
        if all(group.place.role == "input" for group in groups):
            self._rerun_inputs(node, value, groups, values)
        else:
            # Without the lanes that a closed form has dealt with, whose groups are gone.
            self._rerun_parameters(node, value, groups, values, torch.cat([g.lanes for g in groups]).unique())

    def _apply_closed(self, node: Node, value: Tensor, group: Group, values: Callable[[int], Value]) -> bool:
        """Apply *group* by its closed form, one event per lane at a time; return whether there was one."""
        rounds = _rounds(group)
        if len(rounds) > 1 and group.place.role == "parameter" and self.modules is not None:
            return False  # two words of one output channel, which each patch would compute with one of them
        if len(rounds) > 1 and group.place.node in self.stored:
            found = self._spread(rounds[0])
            if found is None or found[0].ndim > 1:
                return False  # a second scale or index of the same lane may strike the same values
        for part in rounds:
            patch = self.patch(node, part, values)
            if patch is None:
                return False
            assert isinstance(node.layout, Layout)
            output = lanes_first(value, node.layout)
            patch.write(output, part.lanes, patch.result(output, part.lanes))
        return True

    def _rerun_inputs(self, node: Node, value: Value, groups: list[Group], values: Callable[[int], Value]) -> None:
        """Run *node* for the struck lanes together, each on its own edited copy of the inputs."""
        lanes = torch.cat([group.lanes for group in groups]).unique()
        read = self._sub_batch(lanes, values)
        result = self._run_edited(node, groups, lanes, read)
        _put_value(value, node.layout, lanes, result)

    def _sub_batch(self, lanes: Tensor, values: Callable[[int], Value]) -> Callable[[int], Value]:
        def read(position: int) -> Value:
            node = self.program.nodes[position]
            if node.positional:
                return run_node(node, read, len(lanes))
            return take_value(values(position), node.layout, lanes)

        return read

    def _run_edited(self, node: Node, groups: list[Group], lanes: Tensor, read: Callable[[int], Value]) -> Value:
        """Run *node* on the sub-batch *lanes*, with the inputs of *groups* edited; every argument its own copy."""
        arguments = lane_arguments(node, self.program)
        copies: list[Value] = [_clone(read(source)) for source in arguments]
        for which, mine in _by_tensor(groups):
            layout = self.program.nodes[arguments[which]].layout
            assert isinstance(layout, Layout)
            local = [replace(group, lanes=torch.searchsorted(lanes, group.lanes)) for group in mine]
            self._edit(copies[which], layout, local)
        pending = iter(copies)

        def swap(position: int) -> Value:
            return read(position) if self.program.nodes[position].constant else next(pending)

        return run_node(node, swap, len(lanes))

    def _rerun_parameters(
        self, node: Node, value: Value, groups: list[Group], values: Callable[[int], Value], lanes: Tensor
    ) -> None:
        """Run *node* for every struck lane with its own parameters: by ``vmap`` where it can, else one by one."""
        struck = [g for g in groups if g.place.role == "parameter"]
        inputs = [g for g in groups if g.place.role == "input"]
        if self.modules is not None:
            for some, targets in self.modules.by_words(struck, lanes, self.trials):
                fresh = [_only(group, some) for group in inputs]
                with edited(targets):
                    result = self._run_edited(node, fresh, some, self._sub_batch(some, values))
                _put_value(value, node.layout, some, result)
            return
        if not inputs and self._rerun_vmap(node, value, struck, values, lanes):
            return
        for lane in lanes:
            one = lane.view(1)
            read = self._sub_batch(one, values)
            mine = [_only(g, lane) for g in struck if bool((g.lanes == lane).any())]
            changed = self._changed(node, {p: self._parameter(p, mine) for p in {g.place.node for g in mine}})
            fresh = [_only(g, lane) for g in inputs if bool((g.lanes == lane).any())]
            result = self._run_edited(node, fresh, one, lambda p, c=changed, r=read: c[p] if p in c else r(p))  # type: ignore[misc]
            _put_value(value, node.layout, one, result)

    def _parameter(self, position: int, groups: Sequence[Group]) -> Tensor:
        """Return a copy of a parameter with all words of *groups* edited (one lane's)."""
        mine = [group for group in groups if group.place.node == position]
        if position in self.stored:
            return self._stored_value(position, mine)
        tensor: Tensor = self.program.constants[position].clone()
        for group in mine:
            where = torch.unravel_index(self.elements(group.rows), tensor.shape) if tensor.ndim else (...,)
            old = tensor[where].reshape(-1)
            tensor[where] = self.edited(old, group.site, group.rows).reshape(tensor[where].shape)
        return tensor

    def _stored_value(self, position: int, groups: Sequence[Group]) -> Tensor:
        """Return the value of a stored parameter with all words of *groups* edited (one lane's)."""
        stored = self.stored[position]
        changed: dict[str, Tensor] = {}
        for group in groups:
            words = stored.words[group.place.part].clone()
            flat, element = words.view(-1), self.elements(group.rows)
            flat[element] = self.edited(flat[element], group.site, group.rows)
            changed[group.place.part] = words
        return stored.value(changed)

    def _changed(self, node: Node, edited: Mapping[int, Tensor]) -> dict[int, Value]:
        """Return the values of *edited* parameters and of everything computed from them that *node* reads."""
        changed: dict[int, Value] = dict(edited)
        first = min(edited, default=node.position)
        for between in self.program.nodes[first : node.position]:
            if between.constant and between.target and any(source in changed for source in between.reads):
                changed[between.position] = run_node(
                    between, lambda p: changed[p] if p in changed else self.program.constants[p], 1
                )
        return changed

    def _rerun_vmap(
        self, node: Node, value: Value, groups: list[Group], values: Callable[[int], Value], lanes: Tensor
    ) -> bool:
        if len(lanes) < 2 or not isinstance(node.layout, Layout):
            return False
        positions = sorted({g.place.node for g in groups})
        bytes_each = sum(self.program.constants[p].nbytes for p in positions)
        step = int(max(1, _VMAP_BYTES // max(bytes_each, 1)))
        for begin in range(0, len(lanes), step):
            part = lanes[begin : begin + step]
            stacks = [self._stack(p, groups, part) for p in positions]
            try:
                result = self._vmap(node, positions, stacks, part, values)
            except (RuntimeError, ValueError):
                return False  # no batching rule for this operation
            put(value, node.layout, part, result)
        return True

    def _stack(self, position: int, groups: list[Group], lanes: Tensor) -> Tensor:
        if position in self.stored:
            mine = [[_only(g, lane) for g in groups if bool((g.lanes == lane).any())] for lane in lanes]
            return torch.stack([self._parameter(position, struck) for struck in mine])
        constant: Tensor = self.program.constants[position]
        stack = constant.expand(len(lanes), *constant.shape).clone()
        for group in groups:
            if group.place.node != position:
                continue
            inside = torch.isin(group.lanes, lanes)
            rows = group.rows[inside.cpu().numpy()]
            local = Group(group.place, group.site, torch.searchsorted(lanes, group.lanes[inside]), rows)
            self._edit(stack, Layout(0), [local])
        return stack

    def _vmap(
        self, node: Node, positions: list[int], stacks: list[Tensor], lanes: Tensor, values: Callable[[int], Value]
    ) -> Tensor:
        sources = list(dict.fromkeys(lane_arguments(node, self.program)))
        layouts = [self.program.nodes[s].layout for s in sources]
        if not all(isinstance(w, Layout) for w in layouts) or any(self.program.nodes[s].positional for s in sources):
            raise ValueError("an operand has several results, or depends on the place of a lane in the batch")
        operands = [lanes_first(take(values(s), w, lanes), w) for s, w in zip(sources, layouts, strict=True)]  # type: ignore[arg-type]
        shapes = [_one_lane_shape(values(s), w) for s, w in zip(sources, layouts, strict=True)]

        def one(parameters: list[Tensor], inputs: list[Tensor]) -> Tensor:
            changed = self._changed(node, dict(zip(positions, parameters, strict=True)))
            mine = {s: x.reshape(shape) for s, x, shape in zip(sources, inputs, shapes, strict=True)}
            known = {**self.program.constants, **mine, **changed}
            result: Tensor = run_node(node, known.__getitem__, 1)
            return result

        stacked = torch.func.vmap(one)(stacks, operands)
        layout = node.layout
        assert isinstance(layout, Layout)
        parts = [stacked[i] for i in range(len(lanes))]
        return join(parts, layout)


def _one_lane_shape(value: Tensor, layout: Any) -> list[int]:
    shape = list(value.shape)
    shape[layout.axis] = layout.outer * layout.inner
    return shape


def _only(group: Group, lanes: Tensor) -> Group:
    """Return the events of one lane, or of some, alone."""
    mine = torch.isin(group.lanes, lanes)
    return Group(group.place, group.site, group.lanes[mine], group.rows[mine.cpu().numpy()])


def _rounds(group: Group) -> list[Group]:
    """Split the events of *group* so that no lane occurs twice in a part."""
    lanes = group.lanes.cpu().numpy()
    order = np.argsort(lanes, kind="stable")
    ordered = lanes[order]
    fresh = np.ones(len(ordered), dtype=bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    if fresh.all():
        return [group]
    rank = rank_in_run(fresh)
    parts = [order[rank == level] for level in range(int(rank.max()) + 1)]
    return [
        Group(group.place, group.site, group.lanes[torch.from_numpy(p).to(group.lanes.device)], group.rows[p])
        for p in parts
    ]


def _by_tensor(groups: Iterable[Group]) -> list[tuple[int, list[Group]]]:
    """Return *groups* of one node and role by which of its inputs or outputs they strike."""
    found: dict[int, list[Group]] = {}
    for group in groups:
        found.setdefault(group.place.which, []).append(group)
    return list(found.items())


def _nested(argument: Any) -> set[int]:
    """Return the nodes referred to inside lists of *argument*."""
    found: set[int] = set()
    if isinstance(argument, list | tuple):
        for part in argument:
            found |= {part.node} if isinstance(part, Ref) else _nested(part)
    return found


def _clone(value: Value) -> Value:
    return tuple(_clone(v) for v in value) if isinstance(value, tuple | list) else value.clone()


def _put_value(value: Value, layout: Any, lanes: Tensor, result: Value) -> None:
    if isinstance(layout, tuple):
        for mine, theirs, where in zip(value, result, layout, strict=True):
            if where is not None:
                put(mine, where, lanes, theirs)
    else:
        put(value, layout, lanes, result)
