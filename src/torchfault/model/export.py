"""Capture a model with ``torch.export`` into a program whose batch size is open, and prove that lanes do not mix."""

import functools
import io
import logging
import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from torchfault.data import Data
from torchfault.errors import ModelError, first_line
from torchfault.model.arguments import as_arguments, data_sites
from torchfault.model.discover import Discovery
from torchfault.model.disturb import reset_states, undisturbed
from torchfault.model.lane_proof import with_layouts
from torchfault.model.notes import Noted, noting
from torchfault.model.open_sizes import MORE, is_bound, opened
from torchfault.model.places import Captured, Place, parameter_places, value_at
from torchfault.model.probes import probe_inputs
from torchfault.model.program import VIEWS, Node, Program, Ref, Size, Value, plain_name
from torchfault.model.rounding import ROUND_BLOCKS, ROUND_WORDS, Rounded
from torchfault.model.traits import leaf_paths
from torchfault.model.watch import memory_address, visiting
from torchfault.names import site_name
from torchfault.storages import InBlocks, activation_storage

__all__ = ["capture"]

_CHECKS = ("assert", "sym_constrain", "_check", "record_function")


def capture(model: nn.Module, data: Data, found: Discovery) -> Captured:
    """Return *model* as a program that runs at any batch size, and where in it the sites *found* are.

    Every place has been held against what the model itself computes there: a site whose value differs has none. Raises
    :class:`ModelError`, with the reason, where the model cannot be exported with an open batch size, changes its own
    state, or lets the inputs of a batch influence each other.

    >>> from torchfault.model.discover import find
    >>> model, data = nn.Linear(3, 2).eval(), Data(torch.randn(4, 3))
    >>> captured = capture(model, data, find(model, data))
    >>> [node.op for node in captured.program.nodes if node.target], captured.places["linear:output"].role
    (['linear'], 'output')
    """
    if found.mixes:
        raise ModelError(f"{type(model).__name__} mixes the inputs of a batch: {found.mixes}")
    probe = probe_inputs(data)
    builder = _built(model, probe, found)
    program = builder.program()
    if is_bound(builder.exported):
        program = opened(program, _built(model, probe_inputs(data, lanes=MORE), found).program())
    program, values = with_layouts(program, probe)
    places = builder.noted.places(program)
    places = {name: place for name, place in places.items() if found.shows(name, value_at(place, program, values))}
    for site, position in zip(data_sites(model, data), program.inputs, strict=True):
        if site is not None and position is not None:
            places[site.name] = Place(position, "output")
    return Captured(program, places | parameter_places(model, program, found.sites))


def _built(model: nn.Module, probe: Any, found: Discovery) -> "_Builder":
    exported = _export(model, probe, found)
    builder = _Builder(model, exported, {site.name for site in found.sites})
    for node in exported.graph.nodes:
        builder.add(node)
    return builder


_CACHED = "it gives a key-value cache; put use_cache=False among the inputs, or set model.config.use_cache = False"


def _export(model: nn.Module, probe: Any, found: Discovery) -> torch.export.ExportedProgram:
    args, kwargs = as_arguments(probe)
    shapes = pytree.tree_map(lambda x: {0: torch.export.Dim.AUTO} if isinstance(x, Tensor) else None, kwargs or args)
    note = noting([site.name for site in found.sites])
    watch = visiting(model, note, modules=leaf_paths(model), operations=None, cells=found.cells)
    try:
        with _quietly(), undisturbed(model), watch:
            reset_states(model)
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            # Functional form: an in-place operation would overwrite the golden cache.
            functional: torch.export.ExportedProgram = exported.run_decompositions({})
            return functional
    except Exception as error:  # torch.export raises errors of many unrelated classes
        said = _CACHED if "Cache'> in output" in str(error) else first_line(error)[:300]
        raise ModelError(f"torch.export cannot capture {type(model).__name__}: {said}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Let torch keep to itself what it prints, logs and warns of when it cannot capture a model."""
    before = logging.root.manager.disable
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            yield
    finally:
        logging.disable(before)


@dataclass
class _Builder:
    """Turns the nodes of an exported graph into ours, one after the other."""

    model: nn.Module
    exported: torch.export.ExportedProgram
    sites: Collection[str]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[int, Value] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    inputs: list[int | None] = field(default_factory=list)
    outputs: tuple[Any, ...] = ()
    known: dict[str, Ref | Size | Any] = field(default_factory=dict)
    single: set[str] = field(default_factory=set)
    calls: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        signature = self.exported.graph_signature
        self.specs = {spec.arg.name: spec for spec in signature.input_specs}
        self.noted = Noted(self.exported.graph, self.sites, self.nodes, self.known, self._copy)
        # Inputs that are written to are no state: what the graph would write there, nobody reads.
        changed = [*signature.buffers_to_mutate.values(), *getattr(signature, "parameters_to_mutate", {}).values()]
        if changed:
            raise ModelError(f"the model changes its own state ({', '.join(changed[:3])}) while it runs")
        state = {**dict(self.model.named_parameters(remove_duplicate=False)), **self._buffers()}
        self.state = state
        self.paths = {id(module): path for path, module in self.model.named_modules()}
        self.first_name: dict[Any, str] = {}
        for name, tensor in state.items():
            self.first_name.setdefault(_memory(tensor), name)

    def _buffers(self) -> dict[str, Tensor]:
        return dict(self.model.named_buffers(remove_duplicate=False))

    def add(self, node: fx.Node) -> None:
        """Take over one node of the exported graph."""
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "call_function":
            self._operation(node)
        elif node.op == "output":
            kinds = [spec.kind for spec in self.exported.graph_signature.output_specs]
            given = zip(node.args[0], kinds, strict=True)  # type: ignore[arg-type]
            self.outputs = tuple(self._argument(a) for a, kind in given if kind == OutputKind.USER_OUTPUT)
        else:
            raise ModelError(f"the graph holds a '{node.op}' node ({node.target}), which has no lanes")

    def _placeholder(self, node: fx.Node) -> None:
        spec = self.specs[node.name]
        position = self._append(None, (), {}, node)
        self.known[node.name] = Ref(position)
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(node.meta.get("val"), Tensor):
                self.inputs.append(position)
            else:
                self.known[node.name] = node.meta.get("val")
                self.constants[position] = None
            return
        target = str(spec.target)
        tensor = self.state.get(target)
        if tensor is None:
            tensor = self.exported.constants.get(target, self.exported.state_dict.get(target))
        else:
            self.parameters.setdefault(self.first_name[_memory(tensor)], position)
        if not isinstance(tensor, Tensor):
            raise ModelError(f"the graph reads '{target}', which is no tensor")
        # A tied parameter is one node, so that a fault in it strikes every consumer.
        self.known[node.name] = Ref(self.parameters.get(self.first_name.get(_memory(tensor), ""), position))
        self.constants[position] = tensor.detach()

    def _operation(self, node: fx.Node) -> None:
        name = plain_name(node.target)
        if name == "note":
            self.noted.add(node)
            return
        if any(check in name for check in _CHECKS):
            return
        value = node.meta.get("val")
        if isinstance(value, torch.SymBool | torch.SymFloat):  # no harm where it is but checked
            return
        if isinstance(value, torch.SymInt | int):
            self.known[node.name] = _size(value)
            return
        if "higher_order" in type(node.target).__module__ or "HigherOrder" in type(node.target).__name__:
            raise ModelError(f"the graph holds control flow or a nested graph ({name})")
        if name == "_native_batch_norm_legit_no_training":
            # Functional form splits off statistics that inference does not have; the plain operator gives one result.
            x, weight, bias, mean, var, momentum, epsilon = node.args
            node.args = (x, weight, bias, mean, var, False, momentum, epsilon, False)
            node.target = torch.ops.aten.batch_norm.default
            self.single.add(node.name)
        if name == "getitem" and str(node.args[0]) in self.single:
            self.known[node.name] = self.known[str(node.args[0])]
            return
        if name == "mark":
            source, mark = self._argument(node.args[0]), str(node.args[1])
            position = self._copy(source.node, node)
            self.nodes[position] = replace(self.nodes[position], call=mark, module=site_name(mark).base)
            self.known[node.name] = Ref(position)
            self.noted.found[mark] = Place(position, "output")
            return
        if name == "rounded":
            self.known[node.name] = Ref(self._rounding(node))
            return
        if node.target is torch.ops.aten.view.default:
            # Operands may come in another memory format than the one that was traced.
            node.target = torch.ops.aten.reshape.default
        elif name == "clone" and not node.kwargs:  # dropout in evaluation, say; nothing here is written to
            node.target = _same
        args = tuple(self._argument(a) for a in node.args)
        kwargs = {key: self._argument(a) for key, a in node.kwargs.items()}
        self.known[node.name] = Ref(self._append(node.target, args, kwargs, node))  # type: ignore[arg-type]

    def _rounding(self, node: fx.Node) -> int:
        source, how, role, place = node.args
        storage = activation_storage(str(how))
        position = self._append(storage.round, (self._argument(source),), {}, node)
        name = ROUND_BLOCKS if isinstance(storage, InBlocks) else ROUND_WORDS
        rounded = Rounded(storage, str(role), int(str(place)))
        self.nodes[position] = replace(self.nodes[position], op=name, rounded=rounded)
        self.noted.rounded[f"{self.nodes[position].call}:{role}{place or ''}"] = position
        return position

    def _copy(self, source: int, node: fx.Node) -> int:
        """Add a node that copies the value of another: one that counts as computed, with a memory of its own."""
        position = self._append(torch.ops.aten.clone.default, (Ref(source),), {}, node)
        self.nodes[position] = replace(self.nodes[position], op="mark", view=False)
        return position

    def _argument(self, argument: Any) -> Any:
        def swap(part: Any) -> Any:
            if isinstance(part, fx.Node):
                if isinstance(part.meta.get("val"), torch.SymBool | torch.SymFloat):
                    raise ModelError("the graph computes with a symbolic float or truth value of the batch size")
                return self.known.get(part.name)
            if isinstance(part, list):
                return [swap(item) for item in part]
            if isinstance(part, tuple):
                return tuple(swap(item) for item in part)
            if isinstance(part, dict):
                return {key: swap(item) for key, item in part.items()}
            return part

        return swap(argument)

    def _append(self, target: Callable[..., Value] | None, args: Any, kwargs: Any, node: fx.Node) -> int:
        position = len(self.nodes)
        path, call, kind = self._owner(node)
        names = {operator.getitem: "getitem", _same: "clone"}
        name = names[target] if target in names else plain_name(target) if target else ""
        self.nodes.append(
            Node(
                position,
                target,
                args,
                kwargs,
                tuple(dict.fromkeys(_references([*args, *kwargs.values()]))),
                None,
                module=path,
                call=call,
                module_type=kind,
                op=name,
                view=name in VIEWS,
            )
        )
        return position

    def _owner(self, node: fx.Node) -> tuple[str, str, str]:
        """Return the path of the module that runs *node*, its call (``@k`` from the second on), and its class."""
        stack = list((node.meta.get("nn_module_stack") or {}).items())
        if not stack or not isinstance(stack[-1][1], tuple):
            return "", "", type(self.model).__name__
        key, (path, _) = stack[-1]
        module = self.model.get_submodule(path.partition("@")[0])
        path = self.paths[id(module)]  # a module under several names goes by its first
        calls = self.calls.setdefault(path, [])
        if key not in calls:
            calls.append(key)
        repeat = calls.index(key)
        return path, f"{path}@{repeat}" if repeat else path, type(module).__name__

    def program(self) -> Program:
        """Return the finished program, layouts still unknown."""
        spec = self.exported.call_spec.out_spec
        if spec is None:
            raise ModelError("the exported graph does not say how its outputs are arranged")
        return Program(
            tuple(self.nodes),
            self.constants,
            tuple(self.inputs),
            self.parameters,
            self.outputs,
            lambda flat: pytree.tree_unflatten(list(flat), spec),
        )


def _same(value: Tensor) -> Tensor:
    """Return *value* itself."""
    return value


def _memory(tensor: Tensor) -> Any:
    """Return what two names of one tensor share: its memory, also where each is a parameter of its own."""
    address = memory_address(tensor)
    return (address, tensor.shape, tensor.stride(), tensor.storage_offset()) if address else id(tensor)


def _size(value: int | torch.SymInt) -> Any:
    """Return a number as it is, and a symbolic one as a formula in the number of lanes."""
    if not isinstance(value, torch.SymInt):
        return value
    expression = value.node.expr
    symbols = sorted(expression.free_symbols, key=str)
    if not symbols:
        return int(expression)
    if len(symbols) > 1:
        raise ModelError(f"the graph has more than one open size ({', '.join(map(str, symbols))})")
    formula = _formula(symbols[0], expression)
    return Size(lambda lanes: int(formula(lanes)))


@functools.cache
def _formula(symbol: sympy.Symbol, expression: sympy.Expr) -> Callable[[int], Any]:
    """Return *expression* in *symbol* as a function.

    It is kept for good: SymPy takes the lines of a function out of :mod:`linecache` where Python collects it, and
    Python 3.11's ``linecache.checkcache``, which doctest and the debugger call, raises ``KeyError`` when that happens
    amid its loop.
    """
    function: Callable[[int], Any] = sympy.lambdify([symbol], expression, modules="math")
    return function


def _references(arguments: Iterable[Any]) -> Iterable[int]:
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument.node
        elif isinstance(argument, list | tuple):
            yield from _references(argument)
        elif isinstance(argument, dict):
            yield from _references(argument.values())
