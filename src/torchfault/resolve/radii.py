"""How large a change of a word may be before the top class could be another one: certificates of sites."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from torchfault.data import Data, leaves, rows
from torchfault.errors import first_line
from torchfault.model.gains import CONVOLUTIONS, PRODUCTS, Gains, Unbounded, convolution_arguments
from torchfault.model.lane_axis import LaneAxis
from torchfault.model.places import Captured
from torchfault.model.program import Node, Program, Ref, evaluate
from torchfault.space import FaultSpace, Site

__all__ = ["Certificate", "certificates"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_BATCH = 8
_ROUNDINGS = 64  # times what golden outputs are off by, and eps of the largest one, are kept of each margin
_APART = 8  # times what an activation is off by against float64, two passes of float32 are apart at most
_KEPT = 0.99  # of a radius; the rest is for the rounding of what the change itself adds on its way
_LARGEST = 1e30  # no radius is larger, so that nothing overflows on the way
_WORDS = frozenset({"float32", "float64"})


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is proven of one site: that a change of element e by d on input n leaves the top class as it is where
    ``|d| * met[n, operand[e]] < radius[n, column[e]]``.

    *met*, (inputs, operands), is the l2 norm of all that the element is multiplied by, and *radius*, (inputs, channels
    + 1), the norm of the smallest change that might matter where it strikes: within each channel, and of any kind.
    *apart* is by how much the value of an element may differ between two passes: 0 for stored words.
    """

    radius: Floats
    column: Ints
    met: Floats
    operand: Ints
    apart: float = 0.0

    def proves(self, change: Floats, element: Ints, inputs: Ints) -> NDArray[np.bool_]:
        """Return which changes of elements on *inputs* are proven to leave the top class as it is, shape (n,)."""
        met = self.met[np.minimum(inputs, len(self.met) - 1), self.operand[element]]
        with np.errstate(invalid="ignore"):
            small = np.abs(change) * met < self.radius[inputs, self.column[element]]
        return np.isfinite(change) & small


def certificates(
    captured: Captured, data: Data, golden: Tensor, space: FaultSpace
) -> tuple[dict[str, Certificate], dict[str, str]]:
    """Return the certificates of the sites of *space* by name, and why each of the others has none.

    *golden* are the outputs without faults as the engine computes them, scores of shape (inputs, classes). Sites are
    weights and biases of convolutions and linear layers that nothing else reads, and what these layers take in, in
    float32 or float64, behind which every operation has a bound (:class:`~torchfault.model.gains.Gains`).

    The proof is one of real numbers, with outward slack for those of the machine: margins are those of a pass in
    float64, less 64 times what *golden* is off by where it is off most, and 64 roundings of the largest output;
    activations are taken to be larger by 8 times the most that float32 is off by in their tensor; a radius is kept 1 %
    smaller. The slack is measured and generous, not derived: worst-case bounds of float32's rounding through twenty
    layers exceed every margin.
    Source: Tsuzuku et al., Lipschitz-margin training, arXiv:1802.04034, proposition 1, with a norm for each pair of
    classes.
    """
    struck: dict[str, tuple[Node, int]] = {}
    without: dict[str, str] = {}
    for site in space.sites:
        strikes = _struck(site, captured)
        if isinstance(strikes, str):
            without[site.name] = strikes
        else:
            struck[site.name] = strikes
    if not struck:
        return {}, without
    try:
        seen = _seen(captured.program, data, {node.position for node, _ in struck.values()})
    except RuntimeError as error:
        return {}, without | dict.fromkeys(struck, f"the model does not run in float64: {first_line(error)}")
    gains, found = Gains(captured.program, seen.one), dict[str, Certificate]()
    radius: dict[int, Floats | Unbounded] = {}
    for name, (node, which) in struck.items():
        behind = gains.behind(node) if which == 0 else node
        if behind.position not in radius:
            radius[behind.position] = _radius(gains, behind, seen.outputs, golden.detach().double().cpu())
        mine = radius[behind.position]
        if isinstance(mine, Unbounded):
            without[name] = f"no bound is known for {mine}"
        elif which == 0:
            found[name] = _of_input(space.site(name), node, behind, gains, mine, seen.apart[node.position])
        else:
            found[name] = _of_parameter(space.site(name), node, which, gains, mine, seen.met[node.position])
    return found, without


def _struck(site: Site, captured: Captured) -> tuple[Node, int] | str:
    """Return the operation whose input (0), weight (1) or bias (2) a site is, or why it is none."""
    place, program = captured.places.get(site.name), captured.program
    if place is None or place.part or place.blocks or site.steps or site.word not in _WORDS:
        return "it is no single number in float32 or float64"
    if place.role == "parameter":
        readers = [node for node in program.nodes if place.node in node.reads]
        argument = place.node
    else:
        readers = [program.nodes[place.node]] if place.role == "input" and place.which == 0 else []
        argument = readers[0].reads[0] if readers and readers[0].reads else -1
    node = readers[0] if len(readers) == 1 else None
    if node is None or node.op not in PRODUCTS or node.kwargs or node.layout != LaneAxis():
        return "it is no input, weight or bias of one convolution or linear layer that is read as it is"
    which = [number for number, given in enumerate(node.args) if given == Ref(argument)]
    if which not in ([0], [1], [2]) or (which == [0]) != (place.role == "input"):
        return "its layer reads it twice"
    try:
        if node.op in CONVOLUTIONS:
            convolution_arguments(node)
    except Unbounded as unbounded:
        return f"no bound is known for {unbounded}"
    return node, which[0]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a pass in float64 has shown: the values of all nodes on *one* input, all *outputs*, (inputs, classes), what
    the weights of each struck node have *met*, (inputs, operands), and how far *apart* passes may be in its input."""

    one: Mapping[int, Any]
    outputs: Tensor
    met: Mapping[int, Floats]
    apart: Mapping[int, float]


def _seen(program: Program, data: Data, struck: set[int]) -> _Seen:
    constants = {position: _wide(value) for position, value in program.constants.items()}
    wide = replace(program, constants=constants)
    outputs, met, off = [], {position: list[Floats]() for position in struck}, dict.fromkeys(struck, 0.0)
    one: dict[int, Any] = {}
    with torch.inference_mode():
        for first in range(0, len(data), _BATCH):
            part = rows(data.inputs, slice(first, first + _BATCH))
            lanes = min(_BATCH, len(data) - first)
            values = evaluate(wide, [_wide(leaf) for leaf in leaves(part)], lanes)
            one = one or evaluate(wide, [_wide(leaf[:1]) for leaf in leaves(part)], 1)
            outputs.append(leaves(program.output(values.__getitem__))[0])
            narrow = evaluate(program, leaves(part), lanes)
            for position in struck:
                node = program.nodes[position]
                source = node.args[0].node
                off[position] = max(off[position], float((values[source] - narrow[source]).abs().max()))
                met[position].append(_met(node, values))
    apart = {position: _APART * most for position, most in off.items()}
    reached = {p: np.concatenate(parts) + apart[p] * _positions(program.nodes[p], one) for p, parts in met.items()}
    return _Seen(one, torch.cat(outputs).cpu(), reached, apart)


def _positions(node: Node, one: Mapping[int, Any]) -> float:
    """Return the norm of ones at all places at which a layer is applied."""
    shape = one[node.position].shape
    return math.sqrt(math.prod(shape[1:-1] if node.op == "linear" else shape[2:]))


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _met(node: Node, values: Mapping[int, Any]) -> Floats:
    """Return the l2 norm of all that each word of a filter, or column of a weight, is multiplied by, (lanes, n)."""
    squares, outer = values[node.args[0].node].square(), values[node.position].shape[2:]
    if node.op == "linear":
        return np.asarray(squares.reshape(len(squares), -1, squares.shape[-1]).sum(1).sqrt().cpu().numpy())
    stride, padding, dilation, _ = convolution_arguments(node)
    padded = F.pad(squares, [side for one in reversed(padding) for side in (one, one)])
    each = []
    for tap in itertools.product(*(range(k) for k in values[node.args[1].node].shape[2:])):
        axes = zip(tap, stride, dilation, outer, strict=True)
        windows = [slice(t * d, t * d + s * (n - 1) + 1, s) for t, s, d, n in axes]
        each.append(padded[(slice(None), slice(None), *windows)].flatten(2).sum(2))
    return np.asarray(torch.stack(each, dim=2).flatten(1).sqrt().cpu().numpy())


def _radius(gains: Gains, node: Node, outputs: Tensor, golden: Tensor) -> Floats | Unbounded:
    """Return the norm of the smallest change of a node's value that might matter, (inputs, channels + 1)."""
    try:
        return _smallest(gains, node, outputs, golden)
    except Unbounded as unbounded:
        return unbounded


def _smallest(gains: Gains, node: Node, outputs: Tensor, golden: Tensor) -> Floats:
    margin, top = _margins(outputs, golden)
    last = gains.program.outputs[0].node
    end, readout = last, torch.eye(outputs.shape[1], dtype=torch.float64)
    closing = gains.program.nodes[last]
    if closing.op == "linear" and last != node.position and not closing.kwargs:
        weight = gains.constant(closing.args[1])
        assert weight is not None
        end, readout = closing.args[0].node, weight.double().cpu()
    reach = gains.reach(node.position, end)
    apart = readout[top][:, None] - readout[None]  # inputs, classes, features
    whole = _nearest(margin, apart.norm(dim=2))
    radius = whole[:, None] / reach.most
    if reach.confined:
        radius[:, :-1] = np.stack([_nearest(margin, part.abs()) for part in apart.unbind(2)], 1) / reach.most[:-1]
    return np.clip(np.nan_to_num(radius * _KEPT, nan=0.0, posinf=_LARGEST), 0.0, _LARGEST)


def _margins(outputs: Tensor, golden: Tensor) -> tuple[Floats, Tensor]:
    """Return the lead of the top class over each other one less the slack, (inputs, classes), and the top class."""
    top, usable = golden.argmax(1), (outputs.isfinite() & golden.isfinite()).all(1)
    off = torch.where(usable, (outputs - golden).abs().amax(1), 0.0).max()
    off = off + torch.finfo(torch.float32).eps * golden.abs().amax(1)
    lead = outputs.gather(1, top[:, None]) - outputs - _ROUNDINGS * off[:, None]
    lead = torch.where(usable[:, None], lead.clamp(min=0), 0.0)
    return lead.scatter(1, top[:, None], torch.inf).numpy(), top


def _nearest(margin: Floats, slope: Tensor) -> Floats:
    """Return how large a change may be before any class catches up, given how fast each does, (inputs,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.nan_to_num(margin / slope.numpy(), nan=0.0, posinf=np.inf).min(axis=1))


def _of_parameter(site: Site, node: Node, which: int, gains: Gains, radius: Floats, met: Floats) -> Certificate:
    inner, by_channel = gains.shape(node.args[0].node), node.op != "linear" or len(gains.shape(node.position)) == 2
    index = np.unravel_index(np.arange(site.elements), site.shape)
    column = index[0] if by_channel else np.full(site.elements, radius.shape[1] - 1)
    if which == 2:
        positions = np.full((1, 1), _positions(node, gains.values))
        return Certificate(radius, column, positions, np.zeros(site.elements, np.int64))
    operand = index[1]
    if node.op != "linear":
        groups = inner[1] // site.shape[1]
        channel = index[0] // (site.shape[0] // groups) * site.shape[1] + index[1]
        operand = np.ravel_multi_index((channel, *index[2:]), (inner[1], *site.shape[2:]))
    return Certificate(radius, column, met, operand)


def _of_input(site: Site, node: Node, behind: Node, gains: Gains, radius: Floats, apart: float) -> Certificate:
    """Return the certificate of what a layer takes in: one value meets at most all weights of its channel."""
    weight = gains.product(node, scale=behind if behind is not node else None)
    axis = -1 if node.op == "linear" else 0
    operand = np.unravel_index(np.arange(site.elements), site.shape)[axis]
    if node.op != "linear":
        *_, groups = convolution_arguments(node)
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1).T
    met = torch.linalg.vector_norm(weight, dim=0).numpy()[None]
    return Certificate(radius, np.full(site.elements, radius.shape[1] - 1), met, operand, apart)
