"""The numbers that a neuron keeps outside of parameters and buffers: thresholds, decay constants, reset levels."""

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchfault.data import Tree, call, leaves
from torchfault.errors import SpaceError, did_you_mean
from torchfault.model.disturb import plain_kernels, reset_states, undisturbed
from torchfault.model.home import Home
from torchfault.model.states import Cell, module_slots
from torchfault.model.watch import memory_address
from torchfault.names import CONSTANT, SiteName, site_name
from torchfault.storages import Part
from torchfault.words import WORDS, encode, word_of

__all__ = ["constant_home", "find_constants", "is_constant"]

_DEPTH = 3
_SCALES = (1.0, 1e3, -1e3)


def is_constant(name: str) -> bool:
    """Whether *name* is that of a neuron's constant.

    >>> is_constant("lif1:constant.v_threshold"), is_constant("lif1:state.v")
    (True, False)
    """
    return site_name(name).role == CONSTANT


def find_constants(model: nn.Module, cells: Sequence[Cell], inputs: Tree) -> tuple[str, ...]:
    """Return the names of the constants that the *cells* of *model* read, in the order of the modules.

    A constant is a Python float, or a floating-point tensor that is no parameter and no buffer, in an attribute of a
    cell or of a module in it, or inside a named tuple, a dataclass, a dictionary, a list or a tuple there. It counts
    where another number in its place changes what the cell gives or keeps, on *inputs* or on larger ones, and where
    the run leaves it alone, as it does not leave states. The model is left as it was.

    >>> class Leaky(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.decay, self.unused, self.level = 0.5, 1.0, torch.zeros(1)
    ...     def forward(self, x):
    ...         self.level = self.decay * self.level + x
    ...         return self.level
    >>> from torchfault.model.states import Slot
    >>> neuron = Leaky()
    >>> model = nn.Sequential(neuron, nn.Linear(3, 3), neuron)
    >>> find_constants(model, [Cell("0", held=(Slot("level"),))], torch.ones(1, 3))
    ('0:constant.decay',)
    """
    modules, watches = dict(model.named_modules()), []
    stored = {memory_address(tensor) for tensor in (*model.parameters(), *model.buffers())} - {0}
    left = set(modules)
    with undisturbed(model), plain_kernels(), ExitStack() as hooks:
        for cell in cells:
            paths = [p for p in modules if p in left and (p == cell.path or p.startswith(f"{cell.path}."))]
            left -= set(paths)  # the constants of a cell within a cell are tried with the outer one
            places = [place for path in paths for place in _places(modules[path], path, stored)]
            if places:
                watches.append(_Watch(modules[cell.path], modules, places))
                handle = modules[cell.path].register_forward_pre_hook(watches[-1], with_kwargs=True)
                hooks.callback(handle.remove)
        if watches:
            reset_states(model)
            call(model, inputs)
        return tuple(place.name for watch in watches for place in watch.found())


def constant_home(model: nn.Module, name: str) -> Home:
    """Return the home of the constant called *name*; raises :class:`SpaceError` where there is none.

    >>> class Neuron(nn.Module):
    ...     tau = 2.0
    >>> cell = Neuron()
    >>> home = constant_home(nn.Sequential(cell), "0:constant.tau")
    >>> undo = home.install({"0:constant.tau": torch.tensor(3.0)})
    >>> changed = cell.tau
    >>> undo()
    >>> home.words, changed, cell.tau
    ({'0:constant.tau': tensor(2.)}, 3.0, 2.0)
    """
    path = site_name(name).base
    modules = dict(model.named_modules(remove_duplicate=False))
    known = {place.name: place for place in _places(modules[path], path)} if path in modules else {}
    if name not in known:
        raise SpaceError(f"no number is called '{name}'{did_you_mean(name, known)}")
    place, module = known[name], modules[path]
    before = place.read(module)
    words = torch.tensor(before, dtype=torch.float32) if isinstance(before, float) else before.detach()
    fmt = word_of(words)

    def install(changed: Mapping[str, Tensor]) -> Callable[[], None]:
        new = changed[name]
        if torch.equal(encode(new, fmt), encode(words, fmt)):  # a number that did not change keeps its double precision
            return lambda: None
        return place.write(module, float(new) if isinstance(before, float) else new)

    part = Part(fmt.name, CONSTANT, 0 if words.ndim else None)
    return Home({name: words}, {name: part}, "", path, install)


@dataclass(frozen=True)
class _Place:
    """A place in the attributes of the module at *path*: the name of the attribute, then the way into it."""

    path: str
    keys: tuple[str | int, ...]

    @property
    def name(self) -> str:
        return str(SiteName(self.path, CONSTANT, part=".".join(map(str, self.keys))))

    def read(self, module: nn.Module) -> Any:
        value = _attributes(module)[self.keys[0]]  # type: ignore[index]
        for key in self.keys[1:]:
            value = _parts(value)[key]
        return value

    def write(self, module: nn.Module, value: Any) -> Callable[[], None]:
        """Put *value* there, past whatever checks the module makes; return what brings the old attribute back."""
        root = str(self.keys[0])
        own, before = root in module.__dict__, _attributes(module)[root]
        module.__dict__[root] = _with(before, self.keys[1:], value)

        def back() -> None:
            if own:
                module.__dict__[root] = before
            else:
                del module.__dict__[root]

        return back


_NOT_ITS_OWN = frozenset(nn.Module().__dict__)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what *module* holds besides what every module has, and the numbers that its classes give it."""
    own = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    shared = {k: v for one in reversed(own) for k, v in vars(one).items() if _is_number(v) and not k.startswith("__")}
    return shared | {name: value for name, value in module.__dict__.items() if name not in _NOT_ITS_OWN}


def _places(module: nn.Module, path: str, stored: Collection[int] = ()) -> Iterator[_Place]:
    """Yield the places of *module* that hold numbers, but for tensors at the addresses *stored*.

    Torch's own layers have none that are a neuron's.
    """
    if type(module).__module__.startswith("torch."):
        return
    for name, value in _attributes(module).items():
        for keys in _numbers(value, _DEPTH):
            place = _Place(path, (name, *keys))
            held = place.read(module)
            if not isinstance(held, Tensor) or memory_address(held) not in stored:
                yield place


def _numbers(value: Any, depth: int) -> Iterator[tuple[str | int, ...]]:
    if _is_number(value):
        yield ()
    elif depth:
        for key, part in _parts(value).items():
            yield from ((key, *keys) for keys in _numbers(part, depth - 1))


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        plain = value.is_floating_point() and value.layout == torch.strided and value.numel() > 0
        return plain and type(value) in (Tensor, nn.Parameter) and str(value.dtype).removeprefix("torch.") in WORDS
    return isinstance(value, float)


def _parts(value: Any) -> dict[str | int, Any]:
    """Return what a container holds, by the names by which it can be told."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if isinstance(value, dict):
        return {key: part for key, part in value.items() if isinstance(key, str) and not set(key) & set(".:#@")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if hasattr(value, one.name)}
    return {}


def _with(value: Any, keys: Sequence[str | int], new: Any) -> Any:
    """Return a copy of a container with *new* at *keys*; *new* itself where there are none."""
    if not keys:
        return new
    key, part = keys[0], _with(_parts(value)[keys[0]], keys[1:], new)
    if isinstance(value, tuple) and hasattr(value, "_replace"):
        return value._replace(**{str(key): part})
    if isinstance(value, tuple | list):
        return type(value)(part if i == key else held for i, held in enumerate(value))
    fresh = copy.copy(value)
    if isinstance(value, dict):
        fresh[key] = part
    else:
        object.__setattr__(fresh, str(key), part)  # a frozen dataclass as well
    return fresh


@dataclass(eq=False)
class _Watch:
    """Follows the calls of one cell, and tries each of the *places* in it with another number."""

    cell: nn.Module
    modules: Mapping[str, nn.Module]
    places: Sequence[_Place]
    read: set[_Place] = field(default_factory=set)
    before: dict[_Place, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = {place: _copied(self._held(place)) for place in self.places}

    def _held(self, place: _Place) -> Any:
        return place.read(self.modules[place.path])

    def __call__(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a call: run the cell on the arguments with each number changed, and see what comes of it."""
        for scale in _SCALES:
            given = pytree.tree_map(lambda x, s=scale: _scaled(x, s), (args, kwargs))
            open_places = [place for place in self.places if place not in self.read]
            golden = self._outcome(given) if open_places else None
            if golden is None:
                return
            for place in open_places:
                if any(_differ(golden, self._outcome(given, place, new)) for new in _others(self._held(place))):
                    self.read.add(place)

    def _outcome(self, given: Any, place: _Place | None = None, value: Any = None) -> list[Any] | None:
        """Return what the cell gives and keeps on copies of what is *given*, or nothing where it fails."""
        args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, given)
        with undisturbed(self.cell):
            undo = place.write(self.modules[place.path], value) if place is not None else lambda: None
            try:
                found = leaves(self.cell.forward(*args, **kwargs))
            except Exception:  # whatever the module thinks of the number
                return None
            finally:
                undo()
            slots = ((module, slot) for module in self.cell.modules() for slot in module_slots(module))
            return [*found, *(slot.read(module) for module, slot in slots)]

    def found(self) -> Iterator[_Place]:
        """Yield the places that are read, and hold what they held before the run."""
        for place in self.places:
            try:
                now = self._held(place)
            except (KeyError, IndexError):
                continue
            before = self.before[place]
            if place in self.read and type(now) is type(before) and _equal(now, before):
                yield place


def _scaled(value: Any, scale: float) -> Any:
    return value * scale if isinstance(value, Tensor) and value.is_floating_point() and scale != 1 else value


def _others(value: Any) -> list[Any]:
    """Return numbers to try in the place of *value*."""
    if isinstance(value, Tensor):
        return [torch.full_like(value, torch.nan), value.detach() * 1.5 + 0.25]
    return [float("nan"), value * 1.5 + 0.25]


def _differ(golden: list[Any], other: list[Any] | None) -> bool:
    if other is None:
        return False
    return len(golden) != len(other) or not all(_equal(a, b) for a, b in zip(golden, other, strict=True))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    return not isinstance(a, float) or a == b or (a != a and b != b)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
