"""The proof that lanes do not mix under faults: one input beside others that hold what faults make of numbers.

Values without faults do not tell: ``x / x.abs().max().clamp(min=10)`` mixes the inputs of a batch once one of them is
large. So the model runs with every activation of the outer lanes overwritten, and the one between them must stay.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from torchfault.data import Data, Tree, call, leaves, map_tensors
from torchfault.errors import ModelError, first_line
from torchfault.model.disturb import reset_states, undisturbed
from torchfault.model.foreign import of_tensor
from torchfault.model.lane_axis import LaneAxis, by_sample, same_values
from torchfault.model.probes import probe_inputs
from torchfault.model.rounding import exactly
from torchfault.model.states import Cell
from torchfault.model.traits import codes, leaf_paths
from torchfault.model.watch import Moment, visiting

__all__ = ["mixing"]

_OUTER, _PLAIN = (0, 2), 1
_WIDE = 64.0
_RAISED = 8  # operations that raise, one behind the other, before nothing is known of what comes behind


def mixing(model: nn.Module, data: Data, layouts: Mapping[str, LaneAxis], cells: Sequence[Cell]) -> str:
    """Return which operation lets one input depend on a struck one in its batch; empty where none was seen to.

    *layouts* tells, by the names of activations, where the lanes are. The model is left as it was.

    >>> class Guard(nn.Module):
    ...     def forward(self, x):
    ...         return x / x.abs().max().clamp(min=10)
    >>> mixing(Guard(), Data(torch.randn(5, 3)), {"div:output": LaneAxis(0)}, ())
    "operation 'div' of the model lets one input depend on a struck one beside it"
    """
    plain = probe_inputs(data)
    watch = _Beside(layouts)
    for inputs, struck in _runs(data, plain):
        watch.struck, watch.since = struck, 0
        error = _run(model, inputs, watch, cells)
        for _ in range(_RAISED):
            if error is None:
                break
            # As it may: lanes that crash are run apart. Only what comes behind is struck.
            watch.since = watch.seen
            error = _run(model, map_tensors(torch.clone, plain), watch, cells)
        if error is not None:
            return f"it raises {type(error).__name__} beside a struck input: {first_line(error)[:120]}"
        if watch.mixed is not None:
            where = watch.mixed
            what = f"operation '{where.operation}' of " if where.operation else ""
            owner = f"'{where.path}'" if where.path else "the model"
            return f"{what}{owner} lets one input depend on a struck one beside it"
    return ""


def _run(model: nn.Module, inputs: Tree, watch: "_Beside", cells: Sequence[Cell]) -> Exception | None:
    """Run *model* from its first state, and return what it raised."""
    watch.seen, watch.spared = 0, [(leaf, LaneAxis(0)) for leaf in leaves(inputs)] if watch.since else []
    with undisturbed(model), exactly():
        reset_states(model)
        try:
            with visiting(model, watch, modules=leaf_paths(model), operations=None, cells=cells):
                call(model, inputs)
        except ModelError:
            raise
        except Exception as error:
            return error
    return None


def _runs(data: Data, plain: Tree) -> Iterator[tuple[Tree, tuple[float, float] | None]]:
    """Yield inputs and what strikes the outer ones: nothing at first, so that the one between them is known."""
    yield plain, None
    whole = _with_extremes(data, plain)
    scale = max((float(x[_PLAIN].abs().max()) for x in leaves(plain) if x.is_floating_point() and x.numel()), default=1)
    wide = _WIDE * scale if 0 < scale < torch.inf else _WIDE
    for pair in ((torch.nan, torch.nan), (torch.inf, -torch.inf), (1e30, -1e29), (wide, -wide / 4), (0.0, 1e-30)):
        yield map_tensors(partial(_struck, pair=pair), whole), pair


def _with_extremes(data: Data, plain: Tree) -> Tree:
    """Return *plain* with, as its outer inputs, those of the largest and the smallest whole numbers: lengths, masks."""
    whole = [leaf for leaf in leaves(data.inputs) if not leaf.is_floating_point() and not leaf.is_complex()]
    if not whole:
        return plain
    sums = torch.stack([leaf.flatten(1).double().sum(1) if leaf.ndim > 1 else leaf.double() for leaf in whole]).sum(0)
    index = [int(sums.argmax()), 0, int(sums.argmin())]
    flat = iter(leaves(data.inputs))

    def beside(leaf: Tensor) -> Tensor:
        found = next(flat)[index]
        found[_PLAIN] = leaf[_PLAIN]
        return found

    return map_tensors(beside, plain)


def _struck(tensor: Tensor, *, pair: tuple[float, float]) -> Tensor:
    return _strike(tensor.clone(), LaneAxis(0), pair)


def _strike(tensor: Tensor, layout: LaneAxis, pair: tuple[float, float]) -> Tensor:
    """Overwrite the outer lanes of *tensor*, as far as its type can hold the values."""
    if tensor.is_floating_point() and of_tensor(tensor) is None:
        limits, lanes = torch.finfo(tensor.dtype), by_sample(tensor, layout)
        for lane, value in zip(_OUTER, pair, strict=True):
            lanes[lane] = value if value - value != 0 else min(max(value, limits.min), limits.max)
    return tensor


@dataclass(eq=False)
class _Beside:
    """The visitor that strikes the outer lanes of all that is computed, and holds the one between against the first.

    It strikes from moment number *since* on, of those that it has *seen* in one run, and then in place what was
    *spared* before.
    """

    layouts: Mapping[str, LaneAxis]
    struck: tuple[float, float] | None = None
    mixed: Moment | None = None
    held: dict[str, Tensor] = field(default_factory=dict)
    since: int = 0
    seen: int = 0
    spared: list[tuple[Tensor, LaneAxis]] = field(default_factory=list)

    def __call__(self, moment: Moment) -> Sequence[Tensor] | None:
        self.seen += 1
        if self.struck is not None and self.seen > self.since:
            for spared, lanes in self.spared:
                _strike(spared, lanes, self.struck)
            self.spared = []
        if moment.role == "input" or self.mixed is not None:
            return None
        fresh = list(moment.tensors)
        for place, tensor in enumerate(moment.tensors):
            layout = self.layouts.get(moment.name(place))
            if layout is None:
                continue
            mine = by_sample(codes(tensor.detach()), layout)[_PLAIN]
            if self.struck is None:
                self.held[moment.name(place)] = mine.clone()
                continue
            if not self._as_before(moment.name(place), mine):
                self.mixed = moment._replace(tensors=())
                return None
            if self.seen <= self.since:
                self.spared.append((tensor, layout))
            elif not moment.view[place]:  # what it is a view of has been struck, and must stay one memory with it
                fresh[place] = _strike(tensor if moment.owned[place] else tensor.clone(), layout, self.struck)
        return None if self.struck is None else fresh

    def _as_before(self, name: str, mine: Tensor) -> bool:
        before = self.held.get(name)
        return before is not None and (torch.equal(mine, before) or same_values(mine, before))
