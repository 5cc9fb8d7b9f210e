"""The proof that lanes do not mix: every value of a program for several inputs, held against that for one of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchfault.data import leaves, map_tensors
from torchfault.errors import ModelError, first_line
from torchfault.model.lane_axis import LaneAxis, axis_by_shapes, find_axis
from torchfault.model.probes import PROBES
from torchfault.model.program import Node, Program, Ref, Size, Value, run_node
from torchfault.model.traits import sampled

__all__ = ["with_layouts"]

# These look at the type of their operand and make something of a given shape: the same for every input.
_FROM_NOTHING = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})


@torch.no_grad()
def with_layouts(program: Program, probe: Any) -> tuple[Program, dict[int, Value]]:
    """Return *program* with the layout of every node, read off three lanes of *probe* together and the second alone.

    With it come a few values of every node (:func:`sampled`), of all lanes together and without any rounding: a value
    itself is let go of once it was read last. Raises :class:`ModelError` where the lanes mix.
    """
    reached, flat = _reached(program), leaves(probe)
    many, one = (_given(program, some) for some in (flat, [leaf[1:2] for leaf in flat]))
    fed, last, nodes, samples = program.fed(), _last_readers(program), list[Node](), dict[int, Value]()
    for node in program.nodes:
        if node.position not in many:
            _evaluate(node, many, one)
        samples[node.position] = map_tensors(sampled, many[node.position])
        if node.position not in reached:
            nodes.append(node)
        else:
            mine, alone = many[node.position], one[node.position]
            scaled = None if node.position in fed else _scaled(mine, alone)
            layout = _layout(node, mine, alone, required=scaled is None)
            nodes.append(replace(node, layout=layout or scaled, positional=layout is None))
        for source in (node.position, *node.reads):
            if source in reached and last[source] == node.position:
                many[source] = one[source] = None
    folded = {node.position: many[node.position] for node in program.nodes if node.position not in reached}
    _check_outputs(program, nodes)
    return replace(program, nodes=tuple(nodes), constants={**program.constants, **folded}), samples


def _given(program: Program, inputs: Sequence[Tensor]) -> dict[int, Value]:
    given = zip(program.inputs, inputs, strict=True)
    return {**program.constants, **{position: leaf for position, leaf in given if position is not None}}


def _evaluate(node: Node, many: dict[int, Value], one: dict[int, Value]) -> None:
    """Compute *node* for all lanes and for one."""
    if node.rounded:  # which would make whole steps of the last bits in which a batch differs from a lane alone
        node = replace(node, target=torch.clone)
    many[node.position] = run_node(node, many.__getitem__, PROBES)
    try:
        one[node.position] = run_node(node, one.__getitem__, 1)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ModelError(
            f"the captured graph is bound to one batch size ({first_line(error)[:120]}); "
            "take it from x.shape[0], not from len(x)"
        ) from error


def _last_readers(program: Program) -> list[int]:
    """Return, for every node, the last one that reads it: itself where none does."""
    return [max([node.position, *readers]) for node, readers in zip(program.nodes, program.readers(), strict=True)]


def _reached(program: Program) -> set[int]:
    """Return the nodes that an input or the batch size reaches."""
    reached = {position for position in program.inputs if position is not None}
    for node in program.nodes:
        sized = any(isinstance(part, Size) for part in pytree.tree_leaves([node.args, dict(node.kwargs)]))
        fed = any(source in reached for source in node.reads) and node.op not in _FROM_NOTHING
        if sized or fed:
            reached.add(node.position)
    return reached


def _scaled(many: Value, one: Value) -> LaneAxis | None:
    """Return the axis that counts the lanes, by the shapes alone, or ``None`` where none does."""
    found = axis_by_shapes(many.shape, one.shape, lanes=PROBES, fewer=1) if isinstance(many, Tensor) else None
    return None if found is None else LaneAxis(found.axis)


def _layout(node: Node, many: Value, one: Value, *, required: bool) -> LaneAxis | tuple[LaneAxis | None, ...] | None:
    if isinstance(many, tuple | list):
        return tuple(
            find_axis(a, b, lanes=PROBES, lane=1) if isinstance(a, Tensor) else None
            for a, b in zip(many, one, strict=True)
        )
    if not isinstance(many, Tensor):
        raise ModelError(f"operation '{node.op}' of '{node.module}' gives a {type(many).__name__}, not a tensor")
    found = find_axis(many, one, lanes=PROBES, lane=1)
    if found is None and required:
        raise ModelError(
            f"operation '{node.op}' of '{node.module or 'the model'}' mixes the inputs of a batch, or hides them"
        )
    return found


def _check_outputs(program: Program, nodes: list[Node]) -> None:
    for output in program.outputs:
        if isinstance(output, Ref) and not isinstance(nodes[output.node].layout, LaneAxis):
            raise ModelError("an output of the model does not depend on its input, or has no batch axis")
