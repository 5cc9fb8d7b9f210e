"""Find the modules that keep something from one time step to the next, and where: by watching a model run."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchfault.data import Tree, call, leaves
from torchfault.errors import ModelError, first_line
from torchfault.model.disturb import contents, plain_kernels, put_back, reset_states, undisturbed
from torchfault.model.timesteps import runs_inside

__all__ = ["Cell", "Slot", "find_cells", "module_slots"]


@dataclass(frozen=True)
class Slot:
    """A place in a module that holds a state: a buffer, an attribute, or an entry of a dictionary among these.

    >>> slot, module = Slot("mem"), nn.Identity()
    >>> module.register_buffer("mem", torch.zeros(2))
    >>> slot.write(module, torch.ones(2))
    >>> slot.read(module)
    tensor([1., 1.])
    """

    name: str
    holder: str = ""

    def _home(self, module: nn.Module) -> dict[str, Any]:
        if self.holder:
            home: dict[str, Any] = module.__dict__[self.holder]
            return home
        return module._buffers if self.name in module._buffers else module.__dict__

    def read(self, module: nn.Module) -> Any:
        """Return what the place holds."""
        return self._home(module).get(self.name)

    def write(self, module: nn.Module, value: Any) -> None:
        """Put *value* there, past whatever checks the module makes."""
        self._home(module)[self.name] = value

    def kept(self, module: nn.Module) -> Callable[[], None]:
        """Return what lets the place hold again what it holds now, nothing included."""
        there, value = self.name in self._home(module), self.read(module)
        content = value.detach().clone() if isinstance(value, Tensor) else None

        def back() -> None:
            if content is not None and not torch.equal(value, content):
                value.data.copy_(content)
            if there:
                self.write(module, value)
            else:
                self._home(module).pop(self.name, None)

        return back


@dataclass(frozen=True)
class Cell:
    """A module with states: *held* in places of its own, or *passed* from call to call; or a layer within one.

    Passed states are at places among its output's tensors, with names, and *taken* are those among its arguments at
    which they come back. *inside* says that it runs all its time steps within one call. A cell is one operation: its
    inputs, its outputs and its states are sites, and nothing between.
    """

    path: str
    held: tuple[Slot, ...] = ()
    passed: tuple[tuple[int, str], ...] = ()
    taken: frozenset[str] = frozenset()
    inside: bool = False


def find_cells(model: nn.Module, inputs: Tree) -> tuple[Cell, ...]:
    """Return the modules of *model* that keep something between the time steps of one run on *inputs*.

    A state is a floating-point tensor that a module changes when it is called and reads when it is called again: in a
    buffer, in an attribute, or given by one call and taken by the next. Modules that run all time steps within a call
    are known by their kind, see :mod:`torchfault.model.timesteps`. The model is left as it was.

    >>> class Counter(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.level = torch.zeros(1)
    ...     def forward(self, x):
    ...         self.level = 0.5 * self.level + x
    ...         return self.level
    >>> model = nn.Sequential(nn.Linear(2, 3), counter := Counter(), counter)
    >>> find_cells(model, torch.ones(1, 2))
    (Cell(path='1', held=(Slot(name='level', holder=''),), passed=(), taken=frozenset(), inside=False),)
    """
    inner = [Cell(path, inside=True) for path, module in model.named_modules() if path and runs_inside(module)]
    watch = _Watch({cell.path for cell in inner})
    with undisturbed(model), plain_kernels(), ExitStack() as hooks:
        for path, module in model.named_modules():
            if path and not any(path == cell.path or path.startswith(f"{cell.path}.") for cell in inner):
                for handle in watch.hooks(path, module):
                    hooks.callback(handle.remove)
        reset_states(model)
        try:
            call(model, inputs)
        except ModelError:
            raise
        except Exception as error:
            said = first_line(error)
            raise ModelError(
                f"{type(model).__name__} must run on batches of 3 and fewer of the inputs, got "
                f"{type(error).__name__}: {said}; check the inputs"
            ) from error
    found = {cell.path: cell for cell in (*inner, *watch.cells())}
    layers = [Cell(path) for path, module in model.named_modules() if _layer_within(path, module, found)]
    found = {cell.path: cell for cell in layers} | found
    return tuple(found[path] for path, _ in model.named_modules() if path in found)


def _layer_within(path: str, module: nn.Module, cells: Mapping[str, Cell]) -> bool:
    """Whether *module* is a layer with parameters of its own inside one of *cells*, such as recurrent weights."""
    plain = any(True for _ in module.parameters(recurse=False)) and not any(True for _ in module.children())
    return plain and path not in cells and any(path.startswith(f"{cell}.") for cell in cells)


def module_slots(module: nn.Module) -> Iterator[Slot]:
    """Yield the places of *module* that may hold a state."""
    yield from (Slot(name) for name, value in module._buffers.items() if isinstance(value, Tensor))
    for name, value in module.__dict__.items():
        if isinstance(value, dict) and name not in ("_parameters", "_buffers", "_modules") and "hooks" not in name:
            yield from (Slot(key, name) for key in value if isinstance(key, str))
        elif not isinstance(value, dict):
            yield Slot(name)


@dataclass(eq=False)
class _Seen:
    """What calls of one module have shown so far."""

    calls: int = 0
    before: dict[Slot, Any] = field(default_factory=dict)
    changed: dict[Slot, bool] = field(default_factory=dict)
    given: list[Tensor] = field(default_factory=list)
    passed: dict[int, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


class _Watch:
    """Follows the calls of all modules in one run."""

    def __init__(self, inner: set[str]) -> None:
        self.inner = inner
        self.seen: dict[str, _Seen] = {}
        self.claimed: set[int] = set()
        self.kept: list[Any] = []  # so that no address is used twice

    def hooks(self, path: str, module: nn.Module) -> Iterator[Any]:
        """Yield the handles of the hooks that follow *module*."""
        seen = self.seen.setdefault(path, _Seen())

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            seen.before = {slot: _version(slot.read(module)) for slot in module_slots(module)}
            if seen.calls:
                _note_passed(module, seen, args, kwargs, self.claimed)
            if seen.calls == 1:
                _drop_unread(module, seen, args, kwargs)
            seen.calls += 1

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if seen.calls == 1:
                seen.changed = dict.fromkeys(
                    (s for s in module_slots(module) if _moved(s.read(module), seen.before.get(s))), True
                )
            seen.given = leaves(output)
            self.kept.append((args, kwargs, output))
            if path not in self.inner:
                self.claimed |= {id(tensor) for i, tensor in enumerate(seen.given) if i in seen.passed}

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after, with_kwargs=True)

    def cells(self) -> Iterator[Cell]:
        """Yield the modules that turned out to have states."""
        for path, seen in self.seen.items():
            if seen.calls < 2 or path in self.inner:
                continue
            held = tuple(slot for slot, read in seen.changed.items() if read)
            passed = tuple(sorted(seen.passed.items()))
            if held or passed:
                yield Cell(path, held, passed, frozenset(seen.taken))


def _version(value: Any) -> tuple[Any, int]:
    """Return *value* with a number that changes whenever it is edited in place."""
    return value, value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _moved(now: Any, before: tuple[Any, int] | None) -> bool:
    """Whether a place now holds a tensor of states that it did not hold before, or has edited the one it holds."""
    state = isinstance(now, Tensor) and now.is_floating_point() and now.ndim > 0
    return state and (before is None or now is not before[0] or _version(now)[1] != before[1])


def _note_passed(module: nn.Module, seen: _Seen, args: Any, kwargs: Any, claimed: set[int]) -> None:
    """Remember which of the tensors that the last call gave come back to this one, by the names they have here.

    The first argument is the input, and no state: a layer may well be called on its own output.
    """
    places, _ = pytree.tree_flatten_with_path((args, kwargs))
    first = next(iter(inspect.signature(module.forward).parameters), "")
    for keys, leaf in places:
        argument = _argument(module, keys, args, kwargs)
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or argument == first:
            continue
        for i, given in enumerate(seen.given):
            if _is(leaf, given) and id(given) not in claimed:
                seen.passed.setdefault(i, _name(module, keys, argument))
                seen.taken.add(pytree.keystr(keys))


def _is(tensor: Tensor, given: Tensor) -> bool:
    """Whether *tensor* is *given*, also where it was detached in between."""
    return tensor is given or (
        tensor.shape == given.shape and tensor.data_ptr() == given.data_ptr() != 0 and tensor.stride() == given.stride()
    )


def _argument(module: nn.Module, keys: Any, args: Any, kwargs: Any) -> str:
    """Return the name of the argument in which the tensor at *keys* of all arguments is."""
    if keys[0].idx == 1:
        return str(keys[1].key)
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    return next((name for name, value in bound.arguments.items() if value is args[keys[1].idx]), "state")


def _name(module: nn.Module, keys: Any, argument: str) -> str:
    """Return what to call a state by its place among the arguments: by its field, else by the argument."""
    if isinstance(module, nn.RNNCellBase):
        return "c" if isinstance(module, nn.LSTMCell) and getattr(keys[-1], "idx", 0) == 1 else "h"
    if isinstance(keys[-1], pytree.GetAttrKey):
        return str(keys[-1].name)
    return argument + "".join(str(getattr(key, "idx", getattr(key, "key", ""))) for key in keys[2:])


def _drop_unread(module: nn.Module, seen: _Seen, args: Any, kwargs: Any) -> None:
    """Forget the places that a call changes without looking at them first: they carry nothing from step to step."""
    values = {slot: value for slot in seen.changed if isinstance(value := slot.read(module), Tensor)}
    if not values:
        return
    homes = contents(module)

    def outcome(spoilt: Slot | None) -> list[Any]:
        for slot, value in values.items():  # copies, since the module may edit them in place
            slot.write(module, torch.full_like(value, torch.nan) if slot == spoilt else value.clone())
        mine, named = pytree.tree_map(_copied, (args, kwargs))  # caches, to which a call adds what it computes
        given = leaves(module.forward(*mine, **named))
        found = [*given, *(slot.read(module) for slot in values)]
        put_back(homes)
        return found

    plain = outcome(None)
    for slot in values:
        seen.changed[slot] = not all(_same(a, b) for a, b in zip(plain, outcome(slot), strict=True))


def _copied(argument: Any) -> Any:
    return argument if isinstance(argument, Tensor) else copy.deepcopy(argument)


def _same(a: Any, b: Any) -> bool:
    plain = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
    return not plain or bool(torch.allclose(a, b, equal_nan=True, rtol=0, atol=0))
