"""Sizes that grow with the batch, found in two captures where a model takes them from ``len(x)``, a plain number."""

from dataclasses import replace
from functools import partial
from math import isnan
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind

from torchfault.errors import ModelError
from torchfault.model.probes import PROBES
from torchfault.model.program import Node, Program, Size

__all__ = ["MORE", "is_bound", "opened"]

MORE = PROBES + 2
"""How many inputs run together in the second capture."""


def is_bound(exported: torch.export.ExportedProgram) -> bool:
    """Return whether the graph was captured for one batch size, though all were asked for."""
    names = {spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}
    values = [node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder" and node.name in names]
    sizes: list[Any] = [value.shape[0] for value in values if isinstance(value, Tensor) and value.ndim]
    return any(isinstance(size, int) or not size.node.expr.free_symbols for size in sizes)


def opened(program: Program, other: Program) -> Program:
    """Return *program*, captured for a few inputs, with sizes that depend on their number as *other*, for more, tells.

    Raises :class:`ModelError` where the two do not differ by sizes alone.
    """
    if len(program.nodes) != len(other.nodes):
        raise _bound(f"{PROBES} inputs take {len(program.nodes)} operations, {MORE} take {len(other.nodes)}")
    for position, value in program.constants.items():
        theirs = other.constants.get(position)
        if isinstance(value, Tensor) and not (isinstance(theirs, Tensor) and _equal(value, theirs)):
            raise _bound(f"a constant of shape {tuple(value.shape)} depends on it")
    nodes = tuple(_opened(mine, theirs) for mine, theirs in zip(program.nodes, other.nodes, strict=True))
    outputs = tuple(_open(mine, theirs) for mine, theirs in zip(program.outputs, other.outputs, strict=True))
    if any(isinstance(part, Size) for part in outputs):
        raise _bound("the model gives it as an output")
    return replace(program, nodes=nodes)


def _opened(mine: Node, theirs: Node) -> Node:
    try:
        if (
            mine.target != theirs.target
            or len(mine.args) != len(theirs.args)
            or mine.kwargs.keys() != theirs.kwargs.keys()
        ):
            raise _bound(f"'{mine.op}' runs for {PROBES} inputs, '{theirs.op}' for {MORE}")
        return replace(
            mine,
            args=_open(mine.args, theirs.args),
            kwargs=_open(dict(mine.kwargs), dict(theirs.kwargs)),
        )
    except _Differ as error:
        raise _bound(f"operation '{mine.op}' of '{mine.module or 'the model'}' computes with it") from error


class _Differ(Exception):
    """Arguments differ by more than sizes."""


def _open(mine: Any, theirs: Any) -> Any:
    """Return *mine*, an argument or several, with numbers that *theirs* has otherwise as sizes."""
    if isinstance(mine, Size) and isinstance(theirs, Size):
        return mine
    if isinstance(mine, list | tuple) and type(mine) is type(theirs) and len(mine) == len(theirs):
        return type(mine)([_open(a, b) for a, b in zip(mine, theirs, strict=True)])
    if isinstance(mine, dict):
        return {key: _open(value, theirs[key]) for key, value in mine.items()}
    if type(mine) is not type(theirs):
        raise _Differ
    nan = isinstance(mine, float) and isnan(mine) and isnan(theirs)
    same = _equal(mine, theirs) if isinstance(mine, Tensor) else nan or mine == theirs
    if same:
        return mine
    if type(mine) is not int or (theirs - mine) % (MORE - PROBES):
        raise _Differ
    return Size(partial(_grown, mine, (theirs - mine) // (MORE - PROBES)))


def _grown(size: int, each: int, lanes: int) -> int:
    return size + each * (lanes - PROBES)


def _equal(one: Tensor, two: Tensor) -> bool:
    return one is two or (one.shape == two.shape and one.dtype == two.dtype and bool(torch.equal(one, two)))


def _bound(why: str) -> ModelError:
    return ModelError(f"the captured graph is bound to one batch size ({why}); take sizes from x.shape[0]")
