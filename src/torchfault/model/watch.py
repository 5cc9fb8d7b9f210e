"""Watch or replace what modules and operations of a running model read and write."""

import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn, overrides
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from torchfault.model.disturb import unfused
from torchfault.model.foreign import foreign
from torchfault.model.marks import inside, marked
from torchfault.model.states import Cell
from torchfault.model.traits import is_leaf, slices
from torchfault.model.undo import Undo
from torchfault.names import site_name

__all__ = ["Moment", "Visitor", "hands_out", "memory_address", "operation_name", "visiting"]

# Operations that compute nothing, as in graph capture; their outputs are no sites.
_VIEWS = frozenset(
    name
    for names in (
        "view reshape transpose permute squeeze unsqueeze select slice expand expand_as t detach alias split chunk",
        "unbind flatten unflatten movedim moveaxis clone contiguous split_with_sizes narrow tensor_split swapaxes",
        "swapdims view_as reshape_as diagonal unfold broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d",
        "dsplit hsplit vsplit to float half double bfloat16 type type_as cpu cuda requires_grad get set data",
        "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout",
        "zeros ones empty full zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full",
        "new_tensor tensor as_tensor arange rand randn rand_like randn_like",
    )
    for name in names.split()
)
_ALIASES = {
    "getitem": "index",
    "norm": "linalg_vector_norm",
    **dict.fromkeys(("truediv", "true_divide", "divide"), "div"),
    "multiply": "mul",
    "subtract": "sub",
}
# Functions written in Python that graph capture takes apart.
_COMPOSITES = frozenset({F.multi_head_attention_forward, F.normalize})


class Moment(NamedTuple):
    """What a call reads (*role* ``input``) or gives (``output``): the tensors that faults and discovery work on.

    For a module with states it is one tensor at one time step, and the role as in ``lif1:state.mem#3``.
    *base* is the call's name, such as ``conv1``, ``relu@1`` or ``layer1.0.add``; *path* the module it belongs to,
    *call* the same with ``@k`` from the module's second call on, and *operation* the plain name of a functional
    operation, empty for a module. Parameters and buffers among the arguments are left out; *stored* names those that
    the call reads. *owned* tells which tensors nobody else holds, so that they may be edited in place, and *view* which
    outputs are arguments under another name.
    """

    base: str
    role: str
    path: str
    call: str
    operation: str
    tensors: Sequence[Tensor]
    owned: Sequence[bool]
    view: Sequence[bool]
    stored: Sequence[str] = ()

    def name(self, place: int = 0) -> str:
        """Return the name of the site that the tensor at *place* is."""
        return f"{self.base}:{self.role}{place or ''}"

    @property
    def kind(self) -> str:
        """The role alone: ``input``, ``output`` or ``state``."""
        return site_name(self.name()).role

    @property
    def marked(self) -> bool:
        """Whether a module with states shows the tensor at one time step."""
        return site_name(self.name()).step is not None


Visitor = Callable[[Moment], Sequence[Tensor] | None]
"""Looks at a moment; returns tensors to go on with instead, or ``None`` to change nothing."""


def operation_name(function: Any) -> str:
    """Return the plain name of an overridable torch function, as graph capture would call it.

    >>> import torch
    >>> operation_name(torch.Tensor.add_), operation_name(torch.Tensor.__rsub__), operation_name(F.relu)
    ('add', 'rsub', 'relu')
    """
    raw = str(getattr(function, "__name__", ""))
    name = raw.strip("_") if raw.startswith("__") else raw.rstrip("_")
    return _ALIASES.get(name, name)


def memory_address(tensor: Tensor) -> int:
    """Return the address of the tensor's memory, 0 where it has none to share.

    Stand-ins for tensors, as graph capture has them, have no memory, but share what stands for it.
    """
    try:
        storage = tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # sparse and other tensors without plain storage
        return 0
    try:
        return storage.data_ptr()
    except RuntimeError:
        return int(storage._cdata)


def _tensors(tree: Any) -> tuple[list[Any], Any, list[int]]:
    """Return the leaves of *tree*, its structure, and the positions of the tensors."""
    flat, spec = pytree.tree_flatten(tree)
    return flat, spec, [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor)]


def _replaced(flat: list[Any], spec: Any, kept: list[int], fresh: Sequence[Tensor]) -> Any:
    for position, tensor in zip(kept, fresh, strict=True):
        flat[position] = tensor
    return pytree.tree_unflatten(flat, spec)


def hands_out(module: nn.Module) -> bool:
    """Whether *module* gives tensors that it does not keep, as torch's own layers do."""
    own = type(module).__module__.startswith("torch.nn.modules.") or any(room.owns(module) for room in foreign())
    return own and is_leaf(module)


@dataclass(eq=False)
class _Frame:
    """A module that is running: its path, the name of this call, and the memory of its arguments."""

    path: str
    call: str
    read: set[int] | None = None


@dataclass(eq=False)
class _Watch:
    """The state of one visit: which modules are running, and how often each call has happened in this forward pass."""

    model: nn.Module
    visitor: Visitor
    closed: frozenset[str] = frozenset()
    names: dict[int, str] = field(default_factory=dict)
    stored: dict[int, str] = field(default_factory=dict)
    newest: Tensor | None = None
    held: list[tuple[str, Tensor]] = field(default_factory=list)
    stack: list["_Frame"] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    paused: bool = False

    def begin(self) -> None:
        """Count the calls of a new pass from 0, and know what the model now has as parameters: capture swaps them."""
        self.counts.clear()
        newest = next(self.model.parameters(), None)
        if newest is not self.newest or not self.names:
            self.newest = newest
            # Held, so that what a model replaces does not leave its address to an activation.
            self.held = [*self.model.named_buffers(), *self.model.named_parameters()]
            self.names = {id(tensor): name for name, tensor in self.held}
            self.stored = {memory_address(tensor): name for name, tensor in self.held}
            self.stored.pop(0, None)

    def numbered(self, name: str) -> str:
        """Return *name* with ``@k`` if it has been used k times before."""
        return f"{name}@{self.counts[name]}" if self.counts[name] else name

    def memory(self, args: Any, kwargs: Any) -> set[int]:
        """Return the addresses of the memory of all tensors among the arguments of a call."""
        plain = not kwargs and all(isinstance(argument, Tensor) for argument in args)
        tensors = args if plain else [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        return {memory_address(tensor) for tensor in tensors} - {0}

    def arguments(
        self,
        base: str,
        path: str,
        call: str,
        op: str,
        args: Any,
        kwargs: Any,
        *,
        own: Sequence[str] = (),
        mutates: bool = False,
    ) -> tuple[Any, Any, set[int]]:
        """Show the arguments of a call; return them, changed or not, and the memory they use.

        A call that *mutates* its first tensor has nobody read it as it was, so that no copy need be struck.
        """
        flat, spec, everything = _tensors((args, kwargs))
        memory = {i: memory_address(flat[i]) for i in everything}
        names = {i: self.stored.get(memory[i]) or self.names.get(id(flat[i]), "") for i in everything}
        kept = [i for i in everything if not names[i]]
        stored = own or [name for name in names.values() if name]
        tensors = [flat[i] for i in kept]
        nobody = [False] * len(tensors)
        owned = [mutates and place == 0 for place in range(len(tensors))]
        moment = Moment(base, "input", path, call, op, tensors, owned, nobody, stored)
        fresh = self.visitor(moment) if tensors or stored else None
        if fresh is not None:
            args, kwargs = _replaced(flat, spec, kept, fresh)
        return args, kwargs, set(memory.values()) - {0}

    def results(
        self, base: str, path: str, call: str, op: str, result: Any, read: set[int], *, owns: bool, mutates: bool
    ) -> Any:
        """Show what a call gave; return it, changed or not."""
        if isinstance(result, Tensor):  # the rest below for one tensor, spelt out, since this is on the fast path
            address = memory_address(result)
            known = address in read or address in self.stored or not address
            mine = mutates or (owns and not known)
            fresh = self.visitor(Moment(base, "output", path, call, op, (result,), (mine,), (known and not mutates,)))
            return result if fresh is None else fresh[0]
        flat, spec, kept = _tensors(result)
        if not kept:
            return result
        tensors = [flat[i] for i in kept]
        memory = [memory_address(t) for t in tensors]
        shared = [m in read or m in self.stored or not m for m in memory]
        owned = [(mutates or (owns and not s)) and memory.count(m) == 1 for m, s in zip(memory, shared, strict=True)]
        view = [s and not mutates for s in shared]
        fresh = self.visitor(Moment(base, "output", path, call, op, tensors, owned, view))
        return result if fresh is None else _replaced(flat, spec, kept, fresh)


def _hook(watch: _Watch, module: nn.Module, path: str, undo: Undo, *, inputs: bool, outputs: bool) -> None:
    """Follow the calls of *module*, and show them to the visitor as asked for; *undo* takes the hooks off."""
    owns, in_place = hands_out(module), bool(getattr(module, "inplace", False))
    own = (*module._parameters.values(), *module._buffers.values())
    stored = [watch.names[id(tensor)] for tensor in own if id(tensor) in watch.names]

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if not watch.stack:
            watch.begin()
        frame = _Frame(path, watch.numbered(path))
        watch.counts[path] += 1
        watch.stack.append(frame)  # before anything can fail: the hook behind takes it off in any case
        if not inputs:
            return None
        watch.paused = True  # what happens now is the visitor's, not the model's
        try:
            args, kwargs, frame.read = watch.arguments(
                frame.call, path, frame.call, "", args, kwargs, own=stored, mutates=in_place
            )
        finally:
            watch.paused = False
        return args, kwargs

    def after(_: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        if not watch.stack:
            return None
        frame = watch.stack.pop()
        if not outputs or result is None:
            return None
        watch.paused = True
        try:
            read = frame.read if frame.read is not None else watch.memory(args, kwargs)
            return watch.results(frame.call, path, frame.call, "", result, read, owns=owns, mutates=in_place)
        finally:
            watch.paused = False

    undo.add(module.register_forward_pre_hook(before, with_kwargs=True, prepend=not path).remove)
    undo.add(module.register_forward_hook(after, always_call=True, with_kwargs=True).remove)


def _show_marks(watch: _Watch, model: nn.Module, cells: Sequence[Cell]) -> AbstractContextManager[None]:
    """Show the sites of *cells* to the visitor at every time step."""
    modules = dict(model.named_modules())
    own = {cell.path: [t for m in modules[cell.path].modules() for t in _stored(m)] for cell in cells}
    reads = {path: [watch.names[id(t)] for t in tensors if id(t) in watch.names] for path, tensors in own.items()}

    def show(name: str, tensor: Tensor) -> Tensor:
        path, role = name.split(":")
        nobody, stored = (False,), reads.pop(path, ())
        before, watch.paused = watch.paused, True
        try:
            fresh = watch.visitor(Moment(path, role, path, path, "", (tensor,), nobody, nobody, stored))
        finally:
            watch.paused = before
        return tensor if fresh is None else fresh[0]

    return marked(model, cells, show)


def _stored(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


class _Operations(TorchFunctionMode):
    """Shows the functional operations of a model, named by the module that is running."""

    def __init__(self, watch: _Watch, names: Collection[str] | None) -> None:
        super().__init__()
        self.watch = watch
        self.names = names

    def leave(self) -> None:
        """Take the mode out of torch's stack, wherever it stands there: scopes may end in any order."""
        self.watch.paused = True  # also where the scope ends in another thread than it began in
        above: list[TorchFunctionMode] = []
        while (mode := overrides._get_current_function_mode()) is not None:
            overrides._pop_mode()
            if mode is self:
                break
            above.append(mode)
        for mode in reversed(above):
            overrides._push_mode(mode)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        watch, name = self.watch, operation_name(func)
        ours = getattr(func, "namespace", "") == "torchfault"
        if ours or watch.paused or not watch.stack or watch.stack[-1].path in watch.closed:
            return func(*args, **kwargs)
        if func in _COMPOSITES:
            with self:
                return _opened(func)(*args, **kwargs)
        if name in _VIEWS or slices(func, args) or (self.names is not None and name not in self.names):
            return func(*args, **kwargs)
        path, call = watch.stack[-1].path, watch.stack[-1].call
        stem = f"{call}.{name}" if call else name
        base = watch.numbered(stem)
        mutates = _mutates(func, kwargs)
        args, kwargs, read = watch.arguments(base, path, call, name, args, kwargs, mutates=mutates)
        result = func(*args, **kwargs)
        mutates |= getattr(func, "__module__", None) == "torch.nn.functional" and bool(args) and result is args[0]
        if not mutates and not _computed(result, read | watch.stored.keys()):
            return result
        watch.counts[stem] += 1
        return watch.results(base, path, call, name, result, read, owns=True, mutates=mutates)


def _mutates(func: Any, kwargs: Any) -> bool:
    """Whether *func* says that it writes its result into its first argument."""
    raw = str(getattr(func, "__name__", ""))
    if raw.startswith("__"):
        return raw.startswith("__i") and raw not in ("__invert__", "__index__", "__int__")
    return raw.endswith("_") or bool(kwargs.get("inplace"))


def _computed(result: Any, known: set[int]) -> bool:
    """Whether *result* holds a tensor that is not a view of an argument."""
    return any(isinstance(leaf, Tensor) and memory_address(leaf) not in known for leaf in pytree.tree_leaves(result))


def _opened(function: Any) -> Any:
    """Return *function* without its own override check, so that the operations inside it come by one by one."""
    checks = [name for name in function.__globals__ if name.startswith("has_torch_function")]
    scope = {**function.__globals__, **dict.fromkeys(checks, _never)}
    return types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)


def _never(*_: Any) -> bool:
    return False


@contextmanager
def visiting(
    model: nn.Module,
    visitor: Visitor,
    *,
    modules: Collection[str],
    operations: Collection[str] | None = (),
    read: Collection[str] | None = None,
    cells: Sequence[Cell] = (),
) -> Iterator[None]:
    """Show *visitor* the arguments and results of the named *modules*, and of functional *operations* (``None``: all).

    *read* names those of the modules whose arguments are of interest, if not all are; the others' are not shown. The
    sites of *cells* are shown at every time step, as roles such as ``state.mem#3``, and nothing inside them.

    The scope is :func:`unfused`, and no more: who injects compares with passes outside it.
    """
    closed = inside(model, cells)
    watch = _Watch(model, visitor, closed)
    watch.begin()
    follow_all = operations is None or bool(operations)
    known = dict(model.named_modules(remove_duplicate=False))
    wanted = {id(known[name]) for name in modules if name not in closed}
    reading = wanted if read is None else {id(known[name]) for name in read}
    with Undo() as undo, unfused():
        with undo.guard:
            for path, module in model.named_modules():
                if follow_all or not path or id(module) in wanted:
                    inputs, outputs = id(module) in reading, id(module) in wanted
                    _hook(watch, module, path, undo, inputs=inputs, outputs=outputs)
            if follow_all:
                mode = _Operations(watch, operations)
                undo.add(mode.leave)
                overrides._push_mode(mode)
        with _show_marks(watch, model, cells):
            yield
