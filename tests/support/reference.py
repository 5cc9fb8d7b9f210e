"""The slow reference: one trial at a time, one input at a time, by nothing that the engine uses.

With a batch of one, the flat position of an element in a tensor is that in the sample, wherever the batch axis is.
"""

import inspect
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tests.support.reference_states import Steps, struck_states
from torchfault.data import Data, Tree, call, concatenate, rows
from torchfault.trials import Trials

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
MIRROR = {torch.bfloat16: torch.int16}  # what NumPy has no type for
_BYTES = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
MIRROR |= {getattr(torch, name): torch.uint8 for name in _BYTES if hasattr(torch, name)}  # older torch lacks the last


def reference(model: nn.Module, data: Data, trials: Trials, *, reached: bool = True) -> Tree:
    """Return the outputs of *model* under each trial, on the trial's input alone, one row per trial.

    Unless told, the model must have *reached* every site.
    """
    stored, outputs = dict((*model.named_parameters(), *model.named_buffers())), []
    for which, begin, end in zip(trials.inputs, trials.offsets[:-1], trials.offsets[1:], strict=True):
        edits: dict[str, list[tuple[int, int, int]]] = {}
        states: dict[str, Steps] = {}
        for row in range(begin, end):
            site, element = trials.sites[trials.site[row]], int(trials.element[row])
            masks, step = (int(trials.keep[row]), int(trials.toggle[row])), 0
            if site.steps is not None:
                step, element = divmod(element, math.prod(site.shape[1:]))
                step += site.steps[0]
            if site.kind == "state":
                states.setdefault(site.name, {}).setdefault(step, []).append((element, *masks))
            else:
                edits.setdefault(_at(site.name, step), []).append((element, *masks))
        saved = {name: stored[name].detach().clone() for name in edits if ":" not in name}
        for name, before in saved.items():
            stored[name].data.copy_(changed(before, edits.pop(name)))
        given = with_data(model, rows(data.inputs, slice(int(which), int(which) + 1)), edits)
        with torch.no_grad(), struck_states(model, states, changed), struck(model, edits, reached=reached):
            outputs.append(call(model, given))
        for name, before in saved.items():
            stored[name].data.copy_(before)
    return concatenate(outputs)


def with_data(model: nn.Module, inputs: Tree, edits: dict[str, list[tuple[int, int, int]]]) -> Tree:
    """Return *inputs* with the edits of the model's arguments, which are taken out of *edits*."""
    if isinstance(inputs, dict):
        return {k: changed(v, edits.pop(f"{k}:data")) if f"{k}:data" in edits else v for k, v in inputs.items()}
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    named = dict(zip(inspect.signature(model.forward).parameters, given, strict=False))
    return tuple(with_data(model, named, edits).values())


def _at(name: str, step: int) -> str:
    """Return what the site *name* is called at a time step: the call of that number."""
    base, _, role = name.partition(":")
    return f"{base}@{step}:{role}" if step else name


def changed(tensor: Tensor, edits: list[tuple[int, int, int]]) -> Tensor:
    """Return a copy of *tensor* with the words at flat positions edited, one after the other."""
    values = tensor.detach().contiguous().clone()
    words = values.view(MIRROR.get(tensor.dtype, tensor.dtype)).numpy().reshape(-1).view(UNSIGNED[tensor.itemsize])
    for element, keep, toggle in edits:
        words[element] = (int(words[element]) & keep) ^ toggle
    return values


@contextmanager
def struck(model: nn.Module, edits: dict[str, list[tuple[int, int, int]]], *, reached: bool = True) -> Iterator[None]:
    """Edit activations of *model* in this scope; every edit must find its place exactly once, or at most if not so."""
    mode, fused = Activations(model, edits), torch.backends.mha.get_fastpath_enabled()
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(mode.before(path), with_kwargs=True))
        handles.append(module.register_forward_hook(mode.after))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with mode:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    assert not (reached and mode.left), f"the reference never met {mode.left}"


class Activations(TorchFunctionMode):
    """Edits what modules and functional operations read and give."""

    def __init__(self, model: nn.Module, edits: dict[str, list[tuple[int, int, int]]]) -> None:
        super().__init__()
        self.edits, self.left = edits, set(edits)
        plain = (t for t in (*model.parameters(), *model.buffers()) if not hasattr(t, "__tensor_flatten__"))
        self.stored = {t.untyped_storage().data_ptr() for t in plain}  # tensors of several have no memory of their own
        self.calls: Counter[str] = Counter()
        self.stack: list[str] = []

    def before(self, path: str) -> object:
        def hook(module: nn.Module, args: object, kwargs: object) -> object:
            self.stack.append(self._next(path))
            return self._edit(self.stack[-1] + ":input", (args, kwargs), in_place=getattr(module, "inplace", False))

        return hook

    def after(self, module: nn.Module, args: object, output: object) -> object:
        del args
        return self._edit(self.stack.pop() + ":output", output, in_place=getattr(module, "inplace", False))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        if func is F.multi_head_attention_forward:  # look inside, as graph capture does
            with mock.patch.object(F, "has_torch_function", return_value=False), self:
                return func(*args, **(kwargs or {}))
        prefix = self.stack[-1] + "." if self.stack and self.stack[-1] else ""
        raw = func.__name__
        plain = raw.strip("_") if raw.startswith("__") else raw.rstrip("_")
        indices = args[1] if plain == "getitem" and isinstance(args[1], tuple) else args[1:2]
        indexed = plain == "getitem" and any(isinstance(part, Tensor | list) for part in indices)
        name = prefix + ("index" if indexed else plain)  # without tensors and lists among the indices it is a view
        if not any(edited.startswith(name) for edited in self.edits):
            return func(*args, **(kwargs or {}))
        name = self._next(name)
        in_place = raw.startswith("__i") if raw.startswith("__") else raw.endswith("_")
        args, kwargs = self._edit(name + ":input", (args, kwargs or {}), in_place=in_place)
        return self._edit(name + ":output", func(*args, **kwargs), in_place=in_place)

    def _next(self, name: str) -> str:
        self.calls[name] += 1
        return name if self.calls[name] == 1 else f"{name}@{self.calls[name] - 1}"

    def _edit(self, end: str, tree: Tree, *, in_place: bool = False) -> Tree:
        mine = [name for name in self.edits if name.rstrip("0123456789") == end]
        if not mine:
            return tree
        flat, spec = pytree.tree_flatten(tree)
        known = self.stored if end.endswith("input") else ()
        places = [
            i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known
        ]
        for name in mine:
            place = places[int(name[len(end) :] or 0)]
            fresh = changed(flat[place], self.edits[name])
            # What an operation overwrites with its result is read by nobody else as it was.
            flat[place] = flat[place].copy_(fresh) if in_place else fresh
            self.left.remove(name)
        return pytree.tree_unflatten(flat, spec)
