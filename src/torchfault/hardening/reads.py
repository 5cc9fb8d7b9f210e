"""In whose calls parameters are read: usually in those of the module that holds them, where a guard stands then."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["Reads", "inside", "readers"]

_CONTAINERS = nn.ParameterList | nn.ParameterDict


def readers(model: nn.Module, name: str, seen: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return where the parameter or buffer called *name* is read: paths of modules, each with its name in there.

    *seen* tells the paths for names that :class:`Reads` has found. Others are read by what holds them, of tied ones all
    that do: containers of parameters and the last layer of ``nn.MultiheadAttention`` do not run, and the module around
    them reads.

    >>> class Tied(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.attention, self.last = nn.MultiheadAttention(2, 1), nn.Linear(2, 2)
    ...         self.last.weight = self.attention.out_proj.weight
    >>> readers(Tied(), "attention.out_proj.weight", {})
    [('attention', 'out_proj.weight'), ('last', 'weight')]
    """
    names = _names(model)[id(_held(model, name))]
    paths = seen.get(name) or tuple(_runs(model, one.rpartition(".")[0]) for one in names)
    found: dict[nn.Module, tuple[str, str]] = {}
    for path in paths:
        place = next(one for one in names if _around(path, one))
        found.setdefault(model.get_submodule(path), (path, place.removeprefix(f"{path}.") if path else place))
    outer = [path for path, _ in found.values()]
    return [one for one in found.values() if not any(path != one[0] and _around(path, one[0]) for path in outer)]


def inside(module: nn.Module, place: str) -> tuple[nn.Module, str]:
    """Return the module that holds what *module* knows by a name such as ``out_proj.weight``, and its name there."""
    path, _, last = place.rpartition(".")
    return (module.get_submodule(path) if path else module), last


class Reads(TorchFunctionMode):
    """Notes, while a model runs, in whose calls the parameters and buffers are read; modules tell by :meth:`begin`.

    >>> import torch
    >>> class Direct(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc = nn.Linear(2, 2)
    ...
    ...     def forward(self, x):
    ...         return x @ self.fc.weight
    >>> model = Direct()
    >>> with Reads(model) as reads:
    ...     reads.begin("")
    ...     _ = model(torch.ones(1, 2))
    >>> reads.found
    {'fc.weight': ('',)}
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names, self._running = _names(model), list[str]()
        self._found: dict[str, dict[str, None]] = {}

    def begin(self, path: str) -> None:
        """Note that the module at *path* runs now."""
        self._running.append(path)

    def end(self) -> None:
        """Note that the module that ran last has ended."""
        self._running.pop()

    @property
    def found(self) -> dict[str, tuple[str, ...]]:
        """The paths of the modules that read, by the first name of what they read."""
        return {name: tuple(paths) for name, paths in self._found.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):  # a type or a shape is no value
            for leaf in pytree.tree_leaves((args, kwargs)):
                if names := self._names.get(id(leaf)):
                    self._note(names)
        return result

    def _note(self, names: list[str]) -> None:
        holds = (path for path in reversed(self._running) if any(_around(path, name) for name in names))
        if (path := next(holds, None)) is not None:
            self._found.setdefault(names[0], {})[path] = None


def _held(model: nn.Module, name: str) -> Tensor:
    module, last = inside(model, name)
    held = module._parameters[last] if last in module._parameters else module._buffers[last]
    assert held is not None
    return held


def _names(model: nn.Module) -> dict[int, list[str]]:
    """Return all names of each parameter and buffer, by the tensor's identity."""
    found: dict[int, list[str]] = {}
    for name, held in _all(model):
        found.setdefault(id(held), []).append(name)
    return found


def _all(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _runs(model: nn.Module, path: str) -> str:
    """Return the path of the module in whose calls what stands at *path* is read."""
    around = path.rpartition(".")[0]
    if not path:
        return path
    if isinstance(model.get_submodule(path), _CONTAINERS):
        return _runs(model, around)
    last = isinstance(model.get_submodule(around), nn.MultiheadAttention) and path.endswith("out_proj")
    return around if last else path


def _around(path: str, other: str) -> bool:
    """Return whether the module at *path* holds the module, parameter or buffer at *other*."""
    return not path or other.startswith(f"{path}.")
