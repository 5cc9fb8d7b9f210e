"""Capture a model whose modules keep their words to themselves: packed weights, tensors made of several.

``torch.fx`` follows the model's forward pass, and every call of one of torch's modules becomes one operation, which
runs that module as it is. Quantised tensors are passed on as their integer codes, so that lanes of them are gathered,
compared and struck like those of any other tensor; the scale and zero point of each are the same for all lanes.
"""

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from torchfault.data import Data, leaves
from torchfault.errors import ModelError, first_line
from torchfault.model.arguments import argument_names, as_arguments
from torchfault.model.discover import Discovery
from torchfault.model.disturb import undisturbed
from torchfault.model.foreign import Rows, foreign, of_tensor
from torchfault.model.lane_axis import LaneAxis
from torchfault.model.lane_proof import with_layouts
from torchfault.model.opaque.steps import Step, alike_scales, like_of, plain
from torchfault.model.places import Place, lane_arguments
from torchfault.model.probes import PROBES, probe_inputs
from torchfault.model.program import Node, Program, Ref, Size, fill
from torchfault.model.rounding import rounded_as
from torchfault.model.traits import varies
from torchfault.model.watch import memory_address, operation_name

__all__ = ["Traced", "trace"]

_LOOKS = frozenset({"item", "tolist", "numpy"})


@dataclass(frozen=True, eq=False)
class Traced:
    """A model as a *program* of module calls, the *places* of its sites, and layers that run by output channels."""

    program: Program
    places: dict[str, Place]
    rows: dict[int, Rows]


def trace(model: nn.Module, data: Data, found: Discovery) -> Traced:
    """Return *model* as a program whose operations are calls of its modules, with the places of the sites in *found*.

    Sites without a place cannot be struck in the program: words that several modules read, the scale of what a module
    gives. Raises :class:`ModelError`, with the reason, where the model cannot be followed, changes its own state, lets
    the inputs of a batch influence each other, or where no weight has a place.

    >>> from torchfault.model.discover import find
    >>> model, data = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval(), Data(torch.randn(4, 3))
    >>> traced = trace(model, data, find(model, data))
    >>> [node.call for node in traced.program.nodes if node.target], traced.places["0.weight"].role
    (['0', '1'], 'parameter')
    """
    name = type(model).__name__
    if found.cells or any(varies(module) for module in model.modules()):
        raise ModelError(f"{name} runs over time, or by chance")
    if found.mixes:
        raise ModelError(f"{name} mixes the inputs of a batch: {found.mixes}")
    if rounds := dict(rounded_as(model)):
        raise ModelError(f"'{next(iter(rounds))}' is rounded around modules that run as they are; hooks strike it")
    probe = probe_inputs(data)
    with undisturbed(model) as changed:
        builder = _Builder(model, probe)
        for node in _followed(model).nodes:
            builder.add(node)
        program, _ = with_layouts(builder.program(), probe)
        values = {position: many for position, (many, _) in builder.values.items()}
        rows = {p: row for room in foreign() for p, row in room.rows_of(program, builder.likes, values).items()}
        if changed():
            raise ModelError(f"{name} changes its own state while it runs")
    places = builder.places(program, found)
    if not any(site.kind == "weight" and site.name in places for site in found.space.sites):
        raise ModelError("no module alone reads a weight")
    return Traced(program, places, rows)


class _Tracer(fx.Tracer):
    """Follows a forward pass as far as torch's own modules and those that round."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or any(room.is_whole(m) for room in foreign())


def _followed(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:  # whatever a forward pass may raise that meets a stand-in for a tensor
        raise ModelError(f"torch.fx cannot follow {type(model).__name__}: {first_line(error)[:300]}") from error


@dataclass(eq=False)
class _Builder:
    """Turns the nodes of a followed forward pass into ours, running each on several inputs and on one of them."""

    model: nn.Module
    probe: Any
    nodes: list[Node] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    holders: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    known: dict[fx.Node, Any] = field(default_factory=dict)
    likes: dict[int, Any] = field(default_factory=dict)
    values: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    bases: dict[int, str] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)
    outputs: Any = None

    def __post_init__(self) -> None:
        self.given = self._arguments()
        self.paths = {id(module): path for path, module in self.model.named_modules()}

    def _arguments(self) -> dict[str, Any]:
        args, kwargs = as_arguments(self.probe)
        bound = inspect.signature(self.model.forward).bind(*args, **kwargs)
        if not all(isinstance(value, Tensor) for value in bound.arguments.values()):
            raise ModelError("the inputs are more than one tensor for each argument")
        return dict(bound.arguments)

    def add(self, node: fx.Node) -> None:
        """Take over one node."""
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "get_attr":
            self._attribute(node)
        elif node.op == "output":
            self.outputs = self._argument(node.args[0])
        else:
            self._operation(node)

    def _append(self, node: Node, many: Any, one: Any) -> Ref:
        self.nodes.append(node)
        self.values[node.position] = (many, one)
        return Ref(node.position)

    def _still(self, value: Any) -> Ref:
        """Add a node for a value that no input reaches."""
        self.constants[len(self.nodes)] = value
        return self._append(Node(len(self.nodes), None, (), {}, (), None), value, value)

    def _placeholder(self, node: fx.Node) -> None:
        name = str(node.target)
        if name not in self.given:
            self.known[node] = node.args[0] if node.args else None
            return
        self.inputs[name], whole = len(self.nodes), self.given[name]
        self.known[node] = self._append(Node(len(self.nodes), None, (), {}, (), None), whole, whole[1:2])

    def _attribute(self, node: fx.Node) -> None:
        path = str(node.target)
        value: Any = operator.attrgetter(path)(self.model)
        if not isinstance(value, Tensor):
            self.known[node] = value
            return
        if of_tensor(value) is not None:
            raise ModelError(f"'{path}' is a quantised tensor that no module packs")
        stored = (*self.model.named_parameters(), *self.model.named_buffers())
        name = next((known for known, tensor in stored if tensor is value), path)
        self.known[node] = Ref(self.parameters[name]) if name in self.parameters else self._still(value.detach())
        self.parameters[name] = self.known[node].node

    def _argument(self, argument: Any) -> Any:
        return fx.node.map_aggregate(argument, lambda part: self.known[part] if isinstance(part, fx.Node) else part)

    def _operation(self, node: fx.Node) -> None:
        function, name, module = self._function(node)
        args, kwargs = _lists(self._argument(node.args)), _lists(self._argument(node.kwargs))
        flat = pytree.tree_leaves((args, kwargs))
        step = Step(function, False, tuple(like for part in flat for like in self._scales(part)))
        step = replace(step, copied=self._overwritten(step, args, kwargs, node))
        raw = [self._run(step, args, kwargs, which, lanes, node) for which, lanes in ((0, PROBES), (1, 1))]
        if not _tensors_only(raw[0]):
            self.known[node] = _in_general(raw[0], raw[1], name)
            return
        like, held = like_of(raw[0]), () if module is None else (self._holder(module),)
        path, called = self._where(node)
        position, step = len(self.nodes), replace(step, held=bool(held))
        reads = tuple(dict.fromkeys(part.node for part in (*held, *flat) if isinstance(part, Ref)))
        kind = type(self.model.get_submodule(path)).__name__
        # In brackets, since no rule for an operation of that name may be taken for codes.
        mine = Node(position, step, (*held, *args), kwargs, reads, None, path, called, kind, f"{name}()")
        if like is not None and not alike_scales(like, like_of(raw[1])):
            raise ModelError(f"'{name}' quantises by the inputs of a batch together")
        self.bases[position] = self._base(name, module is not None, called, raw[0], flat)
        self.likes[position] = like
        self.known[node] = self._append(mine, plain(raw[0]), plain(raw[1]))

    def _scales(self, part: Any) -> tuple[Any, ...]:
        """Return what the tensors that an argument stands for are quantised like, ``None`` for each that is not."""
        if not isinstance(part, Ref):
            return (None,)
        like, value = self.likes.get(part.node), self.values[part.node][0]
        return (like or (None,) * len(value)) if isinstance(value, tuple) else (like,)

    def _function(self, node: fx.Node) -> tuple[Callable[..., Any], str, nn.Module | None]:
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return module, type(module).__name__, module
        if node.op == "call_method":
            name = str(node.target)
            return getattr(Tensor, name, operator.methodcaller(name)), operation_name(getattr(Tensor, name)), None
        assert callable(node.target)
        return node.target, operation_name(node.target), None

    def _run(self, step: Step, args: Any, kwargs: Any, which: int, lanes: int, node: fx.Node) -> Any:
        values = lambda position: self.values[position][which]  # noqa: E731
        prepared = step.prepared(fill(args, values, lanes), fill(kwargs, values, lanes))
        return self._attempt(step, *prepared, node)

    @staticmethod
    def _attempt(step: Step, read: list[Any], spec: pytree.TreeSpec, node: fx.Node) -> Any:
        try:
            return step.run(read, spec)
        except Exception as error:
            raise ModelError(f"'{node}' cannot run on its own: {first_line(error)[:200]}") from error

    def _overwritten(self, step: Step, args: Any, kwargs: Any, node: fx.Node) -> frozenset[int]:
        """Return the leaves of the arguments that an operation overwrites; nobody else may read them afterwards."""
        flat, spec = pytree.tree_flatten(fill((args, kwargs), lambda position: self.values[position][0], PROBES))
        copies = [leaf.clone() if _plain_memory(leaf) else leaf for leaf in flat]
        read, _ = step.prepared(*pytree.tree_unflatten(copies, spec))
        before = [leaf._version if isinstance(leaf, Tensor) else 0 for leaf in read]
        self._attempt(step, read, spec, node)
        # By torch's count of changes, since some change nothing on these inputs; kernels may forget to count.
        counted = [isinstance(leaf, Tensor) and leaf._version != n for leaf, n in zip(read, before, strict=True)]
        pairs = enumerate(zip(flat, copies, counted, strict=True))
        struck = {i for i, (a, b, changed) in pairs if a is not b and (changed or not _same(a, b))}
        touched = {memory_address(flat[i]) for i in struck}
        for source, known in self.known.items() if struck else ():
            held = leaves(self.values[known.node][0]) if isinstance(known, Ref) else ()
            if any(memory_address(leaf) in touched for leaf in held) and any(node < user for user in source.users):
                raise ModelError(f"'{node}' overwrites what is read again later")
        return frozenset(struck)

    def _holder(self, module: nn.Module) -> Ref:
        path = self.paths[id(module)]
        if path not in self.holders:
            self.holders[path] = self._still(module).node
        return Ref(self.holders[path])

    def _where(self, node: fx.Node) -> tuple[str, str]:
        stack = list((node.meta.get("nn_module_stack") or {}).items())
        if not stack:
            return "", ""
        key, (path, _) = stack[-1]
        first = self.paths[id(self.model.get_submodule(path))]
        return first, first + str(key)[len(str(key).partition("@")[0]) :]

    def _base(self, name: str, whole: bool, called: str, result: Any, flat: Sequence[Any]) -> str:
        """Return what the sites of an operation are called, empty where it gives its arguments under another name."""
        if whole:
            return called
        given = {memory_address(v) for part in flat if isinstance(part, Ref) for v in leaves(self.values[part.node][0])}
        if all(memory_address(leaf) in given for leaf in leaves(plain(result))):
            return ""
        stem = f"{called}.{name}" if called else name
        self.used[stem] += 1
        return f"{stem}@{self.used[stem] - 1}" if self.used[stem] > 1 else stem

    def program(self) -> Program:
        """Return the finished program, layouts still unknown."""
        flat, spec = pytree.tree_flatten(self.outputs)
        if any(isinstance(part, Ref) and self.likes.get(part.node) is not None for part in flat):
            raise ModelError("an output of the model is quantised")
        names = argument_names(self.model, *as_arguments(self.probe))
        inputs = tuple(self.inputs.get(name) for name in names)
        rebuilt = lambda parts: pytree.tree_unflatten(list(parts), spec)  # noqa: E731
        return Program(tuple(self.nodes), self.constants, inputs, self.parameters, tuple(flat), rebuilt)

    def places(self, program: Program, found: Discovery) -> dict[str, Place]:
        """Return where the sites are, by name; one whose value is not what the model itself computed there is none."""
        sites, places = {site.name: site for site in found.space.sites}, {}
        for name, path in found.owners.items():
            if name in sites and path in self.holders:
                places[name] = Place(self.holders[path], "parameter")
        for name, position in self.inputs.items():
            if f"{name}:data" in sites:
                places[f"{name}:data"] = Place(position, "output")
        for position, base in self.bases.items():
            for name, place, value in self._ends(program, program.nodes[position], base) if base else ():
                if name in sites and found.shows(name, value):
                    places[name] = place
        return places

    def _ends(self, program: Program, node: Node, base: str) -> list[tuple[str, Place, Tensor]]:
        stored, lanes = {*self.parameters.values(), *self.holders.values()}, lane_arguments(node, program)
        flat = [part.node for part in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(part, Ref)]
        read = [source for source in flat if source not in stored]
        found = [
            (f"{base}:input{i or ''}", Place(node.position, "input", lanes.index(source)), self.values[source][0])
            for i, source in enumerate(read)
            if source in lanes and isinstance(program.nodes[source].layout, LaneAxis)
        ]
        given = self.values[node.position][0]
        results = given if isinstance(given, tuple) else (given,)
        layouts = node.layout if isinstance(node.layout, tuple) else (node.layout,)
        for i, (result, layout) in enumerate(zip(results, layouts, strict=True)):
            if isinstance(layout, LaneAxis):
                found.append((f"{base}:output{i or ''}", Place(node.position, "output", i), result))
        return found


def _lists(argument: Any) -> Any:
    """Return *argument* with torch.fx's own lists and dictionaries as plain ones."""
    if isinstance(argument, Mapping):
        return {key: _lists(part) for key, part in argument.items()}
    if isinstance(argument, list):
        return [_lists(part) for part in argument]
    if isinstance(argument, tuple) and not hasattr(argument, "_fields"):
        return tuple(_lists(part) for part in argument)
    return argument


def _tensors_only(value: Any) -> bool:
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return any(isinstance(part, Tensor) for part in value) and not any(isinstance(p, tuple | list) for p in value)
    return isinstance(value, Tensor)


def _in_general(many: Any, one: Any, name: str) -> Any:
    """Return what is no tensor as an argument for any number of lanes: itself, or a size that grows with them."""
    if isinstance(many, tuple | list) and len(many) == len(one):
        return tuple(_in_general(a, b, name) for a, b in zip(many, one, strict=True))
    if isinstance(many, int) and not isinstance(many, bool) and many == PROBES * one != one:
        return Size(lambda lanes: lanes * one)
    if name in _LOOKS or isinstance(many, float | bool | Tensor) or many != one:
        raise ModelError(f"'{name}' gives something else than tensors and sizes")
    return many


def _plain_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not hasattr(value, "__tensor_flatten__")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
