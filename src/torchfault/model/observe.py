"""Watch a model run on several inputs together and on one of them alone, and read off its activations."""

import warnings

import torch
from torch import nn

from torchfault.data import Data, Tree, call, leaves, rows
from torchfault.errors import ModelError, first_line
from torchfault.model.conduct import conduct_of
from torchfault.model.disturb import reset_states, undisturbed
from torchfault.model.foreign import foreign
from torchfault.model.lane_axis import LaneAxis, axis_by_shapes, find_axis
from torchfault.model.probes import PROBES, probe_inputs, repeated, spread
from torchfault.model.record import Record
from torchfault.model.rounding import exactly
from torchfault.model.states import find_cells
from torchfault.model.struck_proof import mixing
from torchfault.model.traits import leaf_paths, varies
from torchfault.model.watch import Moment, Visitor, visiting

__all__ = ["watch"]

_PATHS = 16
"""The most inputs that are looked at one by one where a model decides by values what to compute."""


def watch(model: nn.Module, data: Data, *, operations: bool, steps: bool = True) -> Record:
    """Return what *model* showed on a few of the inputs.

    Functional *operations* are looked at if asked for, and the *steps* of modules with states. A model that decides by
    values what to compute is looked at on single inputs as well, from all over *data*: each may take a path of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a model warns of, it does where its user runs it
        return _watched(model, data, operations=operations, steps=steps)


def _watched(model: nn.Module, data: Data, *, operations: bool, steps: bool) -> Record:
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    data = data.to(device)
    inputs = probe_inputs(data)
    conduct = conduct_of(model, inputs)
    if conduct.alone:
        inputs = rows(inputs, slice(0, 1))
    trained = (m for m in model.modules() if not any(room.always_alike(m) for room in foreign()))
    record = Record(model, any(module.training for module in trained), conduct)
    if steps:
        with undisturbed(model):
            record.cells = find_cells(model, inputs)
    many, few = _pair(record, inputs, operations=operations)
    record.mixes = _mixing(record, data, many, few)
    if record.mixes:  # then the values do not tell where the lanes are, but the shapes do
        _pair(record, inputs, operations=operations)
    paths: set[tuple[str, ...]] = set()
    for number in spread(data, most=_PATHS) if conduct.decides else ():
        same = rows(data.inputs, slice(number, number + 1)) if conduct.alone else repeated(data, number)
        if (path := _path(record, rows(same, record.fewer), operations=operations)) not in paths:
            paths.add(path)
            _pair(record, same, operations=operations)
    return record


def _path(record: Record, inputs: Tree, *, operations: bool) -> tuple[str, ...]:
    """Return what the model computes for *inputs*, by name: a run of its own, far cheaper than a pair that compares."""
    met: list[str] = []

    def visitor(moment: Moment) -> None:
        met.extend((*moment.stored, *(moment.name(i) for i in range(len(moment.tensors)))))

    _run(record, inputs, visitor, operations=operations)
    return tuple(met)


def _pair(record: Record, inputs: Tree, *, operations: bool) -> tuple[Tree, Tree]:
    """Run the model on fewer of the *inputs* and on all, for *record*; return what it gave for all, and for fewer."""
    few = _run(record, rows(inputs, record.fewer), record.few, operations=operations)
    many = _run(record, inputs, record.many, operations=operations)
    record.end()
    return many, few


def _run(record: Record, inputs: Tree, visitor: Visitor, *, operations: bool) -> Tree:
    """Run the model on *inputs*, from the state that it was found in, and show it to *visitor*."""
    model, names = record.model, None if operations else ()
    with undisturbed(model), exactly():
        reset_states(model)
        try:
            with visiting(model, visitor, modules=leaf_paths(model), operations=names, cells=record.cells):
                return call(model, inputs)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} must run on batches of {PROBES} and fewer of the inputs, got "
                f"{type(error).__name__}: {first_line(error)}; check the inputs"
            ) from error


def _mixing(record: Record, data: Data, many: Tree, few: Tree) -> str:
    """Return how the outputs for one input depend on the others in its batch; empty where they do not."""
    model = record.model
    if _outputs_mix(record, many, few) and not record.conduct.alone:
        return "what it gives for one input depends on the others in its batch"
    done = {seen.moment.operation for seen in record.seen.values()}
    ranges = any(room.shares_ranges(module) for room in foreign() for module in model.modules())
    if ranges or any(room.mixes(operation) for room in foreign() for operation in done):
        return "it quantises what it reads by the range of the whole batch"
    if record.conduct.alone or record.conduct.decides or any(varies(module) for module in model.modules()):
        return ""  # runs lane by lane in any case
    return mixing(model, data, record.layouts, record.cells)


def _outputs_mix(record: Record, many: Tree, few: Tree) -> bool:
    """Check that the outputs have one row per input, and tell whether the rows depend on each other."""
    name = type(record.model).__name__
    if not leaves(many):
        raise ModelError(
            f"{name} must give tensors, in tuples, lists, dictionaries or registered classes; got {type(many).__name__}"
        )
    count = record.fewer.stop - record.fewer.start
    tensors = [len(leaves(tree)) for tree in (many, few)]
    if tensors[0] != tensors[1]:
        raise ModelError(
            f"{name} gives {tensors[0]} tensors for {PROBES} inputs and {tensors[1]} for {count}, where one row per "
            "input is needed; wrap it so that one axis counts the inputs (padded_detections does it for detectors)"
        )
    pairs = list(zip(leaves(many), leaves(few), strict=True))
    for several, less in pairs:
        grown = axis_by_shapes(several.shape, less.shape, lanes=record.lanes, fewer=count)
        if record.conduct.alone:
            grown = LaneAxis(0) if several.shape[:1] == (1,) else None
        if grown is None:
            raise ModelError(
                f"the outputs of {name} need an axis that counts the inputs, got shape {tuple(several.shape)} for "
                f"{record.lanes} inputs and {tuple(less.shape)} for {count}; keep that axis, as squeeze(-1) does and "
                "squeeze() does not, or wrap the model"
            )
        record.axes.append(grown.axis)
    return count > 1 or any(
        find_axis(several, less, lanes=record.lanes, lane=record.fewer.start) is None for several, less in pairs
    )
