"""The layers of a model as an accelerator sees them, measured from the captured graph."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchfault.data import Data, leaves
from torchfault.engine import Engine
from torchfault.errors import HardwareError, ModelError
from torchfault.hardware.work import Convolution, Product, Shape, Work
from torchfault.model.discover import find
from torchfault.model.export import capture
from torchfault.model.lane_axis import LaneAxis, per_sample
from torchfault.model.memory import homes
from torchfault.model.places import Captured, Place, lane_arguments
from torchfault.model.program import Node, Program, Ref, evaluate
from torchfault.space import FaultSpace
from torchfault.storages import InBlocks, Stored

__all__ = ["Layers", "layers_in", "layers_of", "measure_work"]


@dataclass(frozen=True, eq=False)
class Layers:
    """A model as an accelerator sees it: its *works*, the captured *program*, and the *space* of all its sites.

    *nbytes* is what all values of the program take for one input. *kept* tells, by the name of their site, how those
    variables are kept whose words do not stand for values by themselves.
    """

    works: tuple[Work, ...]
    program: Program
    space: FaultSpace
    nbytes: int
    kept: Mapping[str, Stored | InBlocks] = field(default_factory=dict)


@torch.inference_mode()
def layers_of(model: nn.Module, data: Data) -> Layers:
    """Return the layers of *model* on inputs like those of *data*.

    Raises :class:`torchfault.errors.ModelError` where the model cannot be captured, and :class:`HardwareError` where
    it has no layer that multiplies and accumulates.

    >>> layers = layers_of(nn.Sequential(nn.Conv2d(1, 10, 5), nn.Flatten()).eval(), Data(torch.zeros(2, 1, 28, 28)))
    >>> layers.works[0].macs, layers.works[0].variables
    (144000, (784, 250, 5760))
    """
    with torch.inference_mode(False):
        found = find(model, data, steps=False)
        try:
            captured = capture(model, data, found)
        except ModelError as error:
            raise ModelError(
                f"what an accelerator works on is read from the captured graph, but {error}; 'torchfault run' strikes "
                "such models all the same"
            ) from None
    return _measured(model, captured, found.space, data)


@torch.inference_mode()
def layers_in(engine: Engine) -> Layers:
    """Return :func:`layers_of` the model of *engine*, by the graph that it captured where it has one.

    >>> from torchfault import demo
    >>> len(layers_in(Engine(demo.model(), demo.data().take(slice(0, 4)))).works)
    4
    """
    space = engine.space
    if engine.captured is None or any(site.steps is not None for site in space.sites):  # steps apart are other places
        return layers_of(engine.model, engine.data)
    return _measured(engine.model, engine.captured, space, engine.data)


def _measured(model: nn.Module, captured: Captured, space: FaultSpace, data: Data) -> Layers:
    program, places = captured.program, captured.places
    values = evaluate(program, [leaf[:1] for leaf in leaves(data.inputs)], 1)
    varying = [values[node.position] for node in program.nodes if not node.constant]
    nbytes = sum(leaf.nbytes for leaf in leaves(varying))
    kept: dict[str, Stored | InBlocks] = {
        home.parameter: home.stored for home in homes(model) if home.stored is not None and len(home.words) > 1
    }
    kept |= {name: place.blocks for name, place in places.items() if place.blocks is not None and not place.part}
    return Layers(measure_work(program, values, places), program, space, nbytes, kept)


@dataclass(frozen=True, eq=False)
class _Seen:
    """One operation and what it reads: shapes without the lanes, and the names of the sites."""

    node: Node
    program: Program
    values: dict[int, Any]
    sites: dict[tuple[int, str, int], str]
    names: dict[int, str]

    def shape(self, position: int, which: int = 0) -> Shape:
        value, layout = self.values[position], self.program.nodes[position].layout
        if isinstance(value, tuple | list):
            value, layout = value[which], layout[which] if isinstance(layout, tuple) else layout
        if isinstance(layout, LaneAxis):
            return per_sample(value.shape, layout, lanes=1)
        return tuple(value.shape)

    def reads(self, *arguments: Any) -> tuple[str, ...]:
        """Return the sites of *arguments*, each a reference: an input of this operation, or a parameter."""
        lanes = lane_arguments(self.node, self.program)
        found = []
        for argument in arguments:
            if argument.node in self.names:
                found.append(self.names[argument.node])
            elif argument.node in lanes:
                which = lanes.index(argument.node)
                lanes[which] = -1  # the same value read twice has two sites
                found.append(self.sites.get((self.node.position, "input", which), ""))
        return tuple(name for name in found if name)

    def outputs(self) -> tuple[str, ...]:
        name = self.sites.get((self.node.position, "output", 0))
        return (name,) if name else ()

    def work(
        self, macs: int, streaming: tuple[Any, ...], staying: tuple[Any, ...], product: Product | None = None
    ) -> Work:
        counts = (sum(math.prod(self.shape(ref.node)) for ref in refs) for refs in (streaming, staying))
        inputs, outputs = self.reads(*streaming, *staying), self.outputs()
        first = self.reads(*streaming)
        node = self.node
        layer = (outputs or inputs or (node.call or node.op,))[0].partition(":")[0]
        variables = (*counts, math.prod(self.shape(node.position)))
        position = node.position
        return Work(layer, node.op, macs, first, inputs[len(first) :], outputs, variables, product, position)  # type: ignore[arg-type]


def measure_work(program: Program, values: dict[int, Any], places: dict[str, Place]) -> tuple[Work, ...]:
    """Return the work of every operation of *program* that multiplies and accumulates, in execution order.

    *values* holds the value of every node for one input, and *places* where its sites are. Counted are convolutions,
    also depthwise and transposed ones, linear layers, matrix products of activations, attention (both of its products),
    einsum of two operands, and all steps of LSTM, GRU and plain recurrent layers. Padding counts as work, as in
    ``torch.utils.flop_counter``. Raises :class:`HardwareError` where nothing of the kind is there.
    """
    sites = {(place.node, place.role, place.which): name for name, place in places.items() if not place.part}
    for node in program.nodes:  # what a layer gives may be rounded, and its words are there
        if node.rounded is not None and node.rounded.role == "output" and (node.position, "output", 0) in sites:
            sites[node.reads[0], "output", 0] = sites[node.position, "output", 0]
    # A stored word is an element: scales come along with it, and are no variables of a product.
    names = {place.node: name for name, place in places.items() if place.role == "parameter" and not place.part}
    works = []
    for node in program.nodes:
        rule = _RULES.get(node.op)
        if rule is not None and node.target is not None and not node.constant:
            works.append(rule(_Seen(node, program, values, sites, names)))
    if not any(work.macs for work in works):
        raise HardwareError(f"a layer is one of {', '.join(sorted(_RULES))}; the model has none of them")
    return tuple(works)


def _bound(node: Node) -> dict[str, Any]:
    """Return the arguments of *node* by the names of its schema, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {argument.name: argument.default_value for argument in schema.arguments}
    bound.update(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    return {**bound, **node.kwargs}


def _each(value: Any, axes: int) -> Shape:
    sizes = tuple(value) if isinstance(value, list | tuple) else (value,)
    return sizes * axes if len(sizes) == 1 else sizes


def _convolution(seen: _Seen) -> Work:
    given = _bound(seen.node)
    source, weight = given["input"], given["weight"]
    shape, filters, out = seen.shape(source.node), seen.shape(weight.node), seen.shape(seen.node.position)
    axes = len(filters) - 2
    kernel, groups = filters[2:], int(given["groups"])
    depth = filters[1] * math.prod(kernel)
    product = None
    if len(shape) == len(out) == axes + 1:
        dilation = _each(given["dilation"], axes)
        before = _padding(given["padding"], kernel, dilation)
        place = Convolution(shape[0], shape[1:], out[1:], kernel, _each(given["stride"], axes), before, dilation)
        product = Product(groups, math.prod(out[1:]), depth, filters[0] // groups, place)
    return seen.work(math.prod(out) * depth, (source,), (weight,), product)


def _padding(given: Any, kernel: Shape, dilation: Shape) -> Shape:
    if given == "valid":
        return (0,) * len(kernel)
    if given == "same":  # an odd total puts the larger half behind
        return tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    return _each(given, len(kernel))


def _transposed(seen: _Seen) -> Work:
    given = _bound(seen.node)
    source, weight = given["input"], given["weight"]
    filters = seen.shape(weight.node)  # (in, out / groups, ...): each input word meets this many weights
    return seen.work(math.prod(seen.shape(source.node)) * math.prod(filters[1:]), (source,), (weight,))


def _linear(seen: _Seen) -> Work:
    given = _bound(seen.node)
    source, weight = given["input"], given["weight"]
    shape, (columns, depth) = seen.shape(source.node), seen.shape(weight.node)
    rows = math.prod(shape) // depth
    product = Product(1, rows, depth, columns, transposed=True)
    return seen.work(rows * depth * columns, (source,), (weight,), product)


def _matmul(seen: _Seen) -> Work:
    refs = [argument for argument in seen.node.args if isinstance(argument, Ref)]
    one, two = refs[-2], refs[-1]  # addmm and baddbmm begin with what they add
    first, second = seen.shape(one.node), seen.shape(two.node)
    out = seen.shape(seen.node.position)
    depth = first[-1]
    product = None
    if len(second) <= 2:
        columns = second[-1] if len(second) == 2 else 1
        product = Product(1, math.prod(first) // depth, depth, columns)
    elif len(first) == len(second) and first[:-2] == second[:-2]:
        product = Product(math.prod(first[:-2]), first[-2], depth, second[-1])
    return seen.work(math.prod(out) * depth, (one,), (two,), product)


def _attention(seen: _Seen) -> Work:
    given = _bound(seen.node)
    query, key, value = given["query"], given["key"], given["value"]
    q, k, v = (seen.shape(ref.node) for ref in (query, key, value))
    pairs = math.prod(q[:-1]) * k[-2]
    return seen.work(pairs * q[-1] + pairs * v[-1], (query,), (key, value))


def _einsum(seen: _Seen) -> Work:
    equation, operands = seen.node.args[0], tuple(seen.node.args[1])
    terms = str(equation).replace(" ", "").partition("->")[0].split(",")
    if len(operands) != 2 or "." in str(equation):
        raise HardwareError(f"einsum is counted for two operands without dots, got '{equation}'; write it as matmul")
    sizes: dict[str, int] = {}
    for term, ref in zip(terms, operands, strict=True):
        sizes.update(zip(term, tuple(seen.values[ref.node].shape), strict=True))  # one input: its lane axis has size 1
    return seen.work(math.prod(sizes.values()), operands[:1], operands[1:])


def _recurrent(seen: _Seen) -> Work:
    given = _bound(seen.node)
    if "params" not in given or "data" in given:
        raise HardwareError(f"'{seen.node.call}' runs on packed sequences, whose steps are not counted; pad them")
    source, weights = given["input"], [ref for ref in given["params"] if isinstance(ref, Ref)]
    steps = math.prod(seen.shape(source.node)[:-1])
    matrices = tuple(ref for ref in weights if len(seen.shape(ref.node)) == 2)
    macs = steps * sum(math.prod(seen.shape(ref.node)) for ref in matrices)
    return seen.work(macs, (source,), matrices)


_RULES: dict[str, Callable[[_Seen], Work]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm"), _matmul),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}
