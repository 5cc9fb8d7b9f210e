"""Capture a model with ``torch.export`` into a program whose batch size is open, and prove that lanes do not mix."""

import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from torchfault.data import Data, leaves
from torchfault.errors import ModelError, first_line
from torchfault.model.disturb import reset_states, undisturbed
from torchfault.model.lane_axis import LaneAxis, axis_by_shapes, find_axis
from torchfault.model.marks import mark_operator, marked
from torchfault.model.observe import PROBES, probe_inputs
from torchfault.model.program import Node, Program, Ref, Size, Value, evaluate
from torchfault.model.rounding import ROUND_BLOCKS, ROUND_WORDS, Rounded
from torchfault.model.states import Cell
from torchfault.names import site_name
from torchfault.storages import InBlocks, activation_storage

__all__ = ["capture", "with_layouts"]

_RESHAPES = {"view", "reshape", "_unsafe_view", "view_as", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"}
_PARTS = {"select", "slice", "split", "split_with_sizes", "tensor_split", "chunk", "unbind", "narrow", "getitem"}
_ORDERS = {"transpose", "permute", "t", "movedim", "swapaxes", "numpy_T", "expand", "expand_as", "unfold", "diagonal"}
_COPIES = {"detach", "alias", "clone", "lift_fresh_copy", "dropout", "feature_dropout"}
_VIEWS = frozenset(_RESHAPES | _PARTS | _ORDERS | _COPIES)
# These look at the type of their operand and make something of a given shape: the same for every input.
_FROM_NOTHING = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})
_CHECKS = ("assert", "sym_constrain", "_check", "record_function")


def capture(model: nn.Module, data: Data, *, cells: Sequence[Cell] = ()) -> Program:
    """Return *model* as a program that runs at any batch size, and in which the sites of *cells* are operations.

    Raises :class:`ModelError`, with the reason, where the model cannot be exported with an open batch size, changes
    its own state, or lets the inputs of a batch influence each other.

    >>> program = capture(nn.Linear(3, 2).eval(), Data(torch.randn(4, 3)))
    >>> [node.op for node in program.nodes if node.target]
    ['linear']
    """
    probe = probe_inputs(data)
    exported = _export(model, probe, cells)
    builder = _Builder(model, exported)
    for node in exported.graph.nodes:
        builder.add(node)
    return with_layouts(builder.program(exported), probe)


_CACHED = "it gives a key-value cache; put use_cache=False among the inputs, or set model.config.use_cache = False"


def _export(model: nn.Module, probe: Any, cells: Sequence[Cell]) -> torch.export.ExportedProgram:
    shapes = pytree.tree_map(lambda x: {0: torch.export.Dim.AUTO} if isinstance(x, Tensor) else None, probe)
    args, kwargs = ((), probe) if isinstance(probe, dict) else (probe if isinstance(probe, tuple) else (probe,), None)
    if kwargs is None and not isinstance(probe, tuple):
        shapes = (shapes,)
    try:
        with warnings.catch_warnings(), undisturbed(model), marked(model, cells, lambda n, x: mark_operator(x, n)):
            warnings.simplefilter("ignore")
            reset_states(model)
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            # Functional form: an in-place operation would overwrite the golden cache.
            functional: torch.export.ExportedProgram = exported.run_decompositions({})
            return functional
    except Exception as error:  # torch.export raises errors of many unrelated classes
        said = _CACHED if "Cache'> in output" in str(error) else first_line(error)[:300]
        raise ModelError(f"torch.export cannot capture {type(model).__name__}: {said}") from error


def _plain_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
    else:
        name = getattr(target, "__name__", str(target))
    return name.rstrip("_") or name


@dataclass
class _Builder:
    """Turns the nodes of an exported graph into ours, one after the other."""

    model: nn.Module
    exported: torch.export.ExportedProgram
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
        changed = [*signature.buffers_to_mutate.values(), *getattr(signature, "user_inputs_to_mutate", {}).values()]
        if changed:
            raise ModelError(f"the model changes its own state ({', '.join(changed[:3])}) while it runs")
        state = {**dict(self.model.named_parameters(remove_duplicate=False)), **self._buffers()}
        self.state = state
        self.paths = {id(module): path for path, module in self.model.named_modules()}
        self.first_name: dict[int, str] = {}
        for name, tensor in state.items():
            self.first_name.setdefault(id(tensor), name)

    def _buffers(self) -> dict[str, Tensor]:
        return dict(self.model.named_buffers(remove_duplicate=False))

    def add(self, node: fx.Node) -> None:
        """Take over one node of the exported graph."""
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "call_function":
            self._operation(node)
        elif node.op == "output":
            self.outputs = tuple(self._argument(a) for a in node.args[0])  # type: ignore[union-attr]
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
            self.parameters.setdefault(self.first_name[id(tensor)], position)
        if not isinstance(tensor, Tensor):
            raise ModelError(f"the graph reads '{target}', which is no tensor")
        # A tied parameter is one node, so that a fault in it strikes every consumer.
        self.known[node.name] = Ref(self.parameters.get(self.first_name.get(id(tensor), ""), position))
        self.constants[position] = tensor.detach()

    def _operation(self, node: fx.Node) -> None:
        name = _plain_name(node.target)
        if any(check in name for check in _CHECKS):
            return
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int | torch.SymBool | torch.SymFloat):
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
            node.target, node.args, mark = torch.ops.aten.clone.default, node.args[:1], str(node.args[1])
            position = self._append(node.target, (self._argument(node.args[0]),), {}, node)
            path = site_name(mark).base
            self.nodes[position] = replace(self.nodes[position], op=name, call=mark, module=path, view=False)
            self.known[node.name] = Ref(position)
            return
        if name == "rounded":
            self.known[node.name] = Ref(self._rounding(node))
            return
        if name == "view":
            # Operands may come in another memory format than the one that was traced.
            node.target = torch.ops.aten.reshape.default
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
        return position

    def _argument(self, argument: Any) -> Any:
        def swap(part: Any) -> Any:
            if isinstance(part, fx.Node):
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
        name = "getitem" if target is operator.getitem else _plain_name(target) if target else ""
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
                view=name in _VIEWS,
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

    def program(self, exported: torch.export.ExportedProgram) -> Program:
        """Return the finished program, layouts still unknown."""
        spec = exported.call_spec.out_spec
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


def _size(value: Any) -> Any:
    """Return a number as it is, and a symbolic one as a formula in the number of lanes."""
    if not isinstance(value, torch.SymInt):
        if isinstance(value, int):
            return value
        raise ModelError("the graph computes with a symbolic float or truth value of the batch size")
    expression = value.node.expr
    symbols = sorted(expression.free_symbols, key=str)
    if not symbols:
        return int(expression)
    if len(symbols) > 1:
        raise ModelError(f"the graph has more than one open size ({', '.join(map(str, symbols))})")
    formula = sympy.lambdify(symbols, expression, modules="math")
    return Size(lambda lanes: int(formula(lanes)))


def _references(arguments: Iterable[Any]) -> Iterable[int]:
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument.node
        elif isinstance(argument, list | tuple):
            yield from _references(argument)
        elif isinstance(argument, dict):
            yield from _references(argument.values())


@torch.no_grad()
def with_layouts(program: Program, probe: Any) -> Program:
    """Return *program* with the layout of every node, read off three lanes of *probe* together and the second alone."""
    reached = _reached(program)
    flat = leaves(probe)
    # Rounding would make whole steps of the last bits in which a batch differs from a lane alone.
    exact = replace(program, nodes=tuple(replace(n, target=torch.clone) if n.rounded else n for n in program.nodes))
    many = evaluate(exact, flat, PROBES)
    try:
        one = evaluate(exact, [leaf[1:2] for leaf in flat], 1)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ModelError(
            f"the captured graph is bound to one batch size ({first_line(error)[:120]}); "
            "take it from x.shape[0], not from len(x)"
        ) from error
    folded = {p: many[p] for p in range(len(program.nodes)) if p not in reached and p in many}
    fed = program.fed()
    nodes = []
    for node in program.nodes:
        if node.position not in reached:
            nodes.append(node)
            continue
        mine, alone = many[node.position], one[node.position]
        scaled = None if node.position in fed else _scaled(mine, alone)
        layout = _layout(node, mine, alone, required=scaled is None)
        nodes.append(replace(node, layout=layout or scaled, positional=layout is None))
    _check_outputs(program, nodes)
    return replace(program, nodes=tuple(nodes), constants={**program.constants, **folded})


def _reached(program: Program) -> set[int]:
    """Return the nodes that an input or the batch size reaches."""
    reached = {position for position in program.inputs if position is not None}
    for node in program.nodes:
        sized = any(isinstance(part, Size) for part in pytree.tree_leaves([node.args, dict(node.kwargs)]))
        fed = any(source in reached for source in node.reads) and node.op not in _FROM_NOTHING
        if sized or fed:
            reached.add(node.position)
    return reached


def _scaled(many: Value, one: Value) -> LaneAxis | None:
    """Return the axis that counts the lanes, by the shapes alone, or ``None`` where none does."""
    found = axis_by_shapes(many.shape, one.shape, lanes=PROBES, fewer=1) if isinstance(many, Tensor) else None
    return None if found is None else LaneAxis(found.axis)


def _layout(node: Node, many: Value, one: Value, *, required: bool) -> LaneAxis | tuple[LaneAxis | None, ...] | None:
    if isinstance(many, tuple | list):
        return tuple(
            find_axis(a, b, lanes=PROBES, lane=1) if isinstance(a, Tensor) else None
            for a, b in zip(many, one, strict=True)
        )
    if not isinstance(many, Tensor):
        raise ModelError(f"operation '{node.op}' of '{node.module}' gives a {type(many).__name__}, not a tensor")
    found = find_axis(many, one, lanes=PROBES, lane=1)
    if found is None and required:
        raise ModelError(
            f"operation '{node.op}' of '{node.module or 'the model'}' mixes the inputs of a batch, or hides them"
        )
    return found


def _check_outputs(program: Program, nodes: list[Node]) -> None:
    for output in program.outputs:
        if isinstance(output, Ref) and not isinstance(nodes[output.node].layout, LaneAxis):
            raise ModelError("an output of the model does not depend on its input, or has no batch axis")
