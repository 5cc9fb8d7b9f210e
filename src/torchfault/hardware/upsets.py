"""Upsets of flip-flops as trials of the engine: which words of which sites change, and to what.

An operand that is wrong in some products only is no fault of a tensor: no site holds that wrong copy. But what it does
is known in closed form: each reached output differs by (wrong - right operand) x other operand. So the trial overwrites
the reached outputs of the layer with golden + difference, words like any other edit of the engine. The difference is
computed in double precision from golden operands and rounded once.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Data, leaves, rows
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import Accelerator, FlipFlops
from torchfault.hardware.layers import Layers
from torchfault.hardware.operands import (
    input_element,
    output_element,
    random_use,
    use_of_output,
    use_of_weight,
    weight_element,
)
from torchfault.hardware.patterns import Reach, find_pattern, reach_of
from torchfault.hardware.work import Product, Work
from torchfault.model.lane_axis import LaneAxis, lanes_first
from torchfault.model.program import Ref, evaluate
from torchfault.space import FaultSpace, Site
from torchfault.trials import Trials
from torchfault.words import WordFormat, edit, encode, held_in, masks_to_words, word

__all__ = ["Upsets", "locate_upsets", "sum_slots", "upset_trials"]

Ints = NDArray[np.int64]
Rows = tuple[Ints, Ints, Ints, NDArray[np.uint64], NDArray[np.uint64]]
_PARTS = 512  # upsets whose running sums are gathered at a time, a row of the layer's depth each


@dataclass(frozen=True, eq=False)
class Upsets:
    """Upsets in columns, all of shape (n,): the *layer* and *kind* (positions among works and types) and the *bit*.

    *element* is the variable, counted through the sites of its kind; *group*, *row*, *step* and *column* the product
    served, *row* -1 where none uses the variable; *random* the word that local control leaves.
    """

    layer: Ints
    kind: Ints
    element: Ints
    bit: Ints
    group: Ints
    row: Ints
    step: Ints
    column: Ints
    random: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.layer)

    def take(self, index: Ints) -> "Upsets":
        """Return the upsets at *index*."""
        return Upsets(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def locate_upsets(
    accelerator: Accelerator, layers: Layers, layer: Ints, kind: Ints, bit: Ints, *, rng: np.random.Generator
) -> Upsets:
    """Return an upset for each given layer, type and bit: a variable, and the product that its flip-flop serves.

    Variables of the kind are equally likely, and so are the uses of one. Types must not be control.
    """
    n = len(layer)
    places = np.zeros((5, n), dtype=np.int64)  # element, group, row, step, column
    random = rng.integers(0, 2**64, size=n, dtype=np.uint64, endpoint=False) if n else np.zeros(0, dtype=np.uint64)
    for at, which in sorted(set(zip(layer.tolist(), kind.tolist(), strict=True))):
        here = np.flatnonzero((layer == at) & (kind == which))
        places[:, here] = _locate(accelerator, layers.works[at], which, len(here), rng)
    element, group, row, step, column = places
    return Upsets(layer, kind, element, bit, group, row, step, column, random)


def _locate(accelerator: Accelerator, work: Work, kind: int, n: int, rng: np.random.Generator) -> tuple[Ints, ...]:
    one = accelerator.types[kind]
    if one.holds == "control":
        raise HardwareError(f"an upset of '{one.name}' strikes no variable; count it as a crash")
    element = rng.integers(0, work.count(one.holds), size=n)
    product = work.product
    if product is None:
        return element, *(np.zeros(n, dtype=np.int64) for _ in range(4))
    if one.holds == "input":
        group, row, step = random_use(product, element, rng=rng)
        return element, group, row, step, rng.integers(0, product.columns, size=n)
    if one.holds == "weight":
        group, step, column = use_of_weight(product, element)
        return element, group, rng.integers(0, product.rows, size=n), step, column
    group, row, column = use_of_output(product, element)
    slots = sum_slots(accelerator, product, one)
    return element, group, row, slots[rng.integers(0, len(slots), size=n)], column


def sum_slots(accelerator: Accelerator, product: Product, one: FlipFlops) -> Ints:
    """Return the steps after which a sum of *product* may be struck in a register of the type *one*, equally likely.

    Sums of a weight-stationary array also pass the idle rows of its last tile, complete.
    """
    tiles = -(-product.depth // accelerator.height) if find_pattern(one.pattern).effect == "tile-partial" else 0
    return np.minimum(np.arange(tiles * accelerator.height or product.depth), product.depth - 1)


@torch.inference_mode()
def upset_trials(
    accelerator: Accelerator, layers: Layers, space: FaultSpace, data: Data, upsets: Upsets, inputs: Ints
) -> tuple[Trials, Ints]:
    """Return one trial per upset, on input *inputs* of *data* (shape (n,)), and the upsets that each trial is.

    Upsets whose variable no product uses change nothing and have no trial. *space* is that of the engine.
    """
    needed = np.unique(inputs)
    golden = _Golden(layers, data, needed)
    lane = np.searchsorted(needed, inputs)
    parts: list[Rows] = []
    for at, which in sorted(set(zip(upsets.layer.tolist(), upsets.kind.tolist(), strict=True))):
        here = np.flatnonzero((upsets.layer == at) & (upsets.kind == which) & (upsets.row >= 0))
        if len(here):
            struck = _Struck(accelerator, layers.works[at], which, space, golden, lane[here], upsets.take(here))
            owner, site, element, keep, toggle = struck.rows()
            parts.append((here[owner], site, element, keep, toggle))
    if not parts:
        empty = np.zeros(0, dtype=np.uint64)
        none = np.zeros(0, dtype=np.int64)
        return Trials(space.sites, np.zeros(1, np.int64), none, none.astype(np.int32), none, empty, empty), none
    owner, site, element, keep, toggle = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((element, site, owner))
    kept, counts = np.unique(owner, return_counts=True)
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    trials = Trials(
        space.sites, offsets, inputs[kept], site[order].astype(np.int32), element[order], keep[order], toggle[order]
    )
    return trials, kept


class _Golden:
    """The golden operands of some inputs, one row per input."""

    def __init__(self, layers: Layers, data: Data, inputs: Ints) -> None:
        self.layers = layers
        chosen = rows(data.inputs, torch.from_numpy(inputs))
        self.values = evaluate(layers.program, leaves(chosen), len(inputs))

    def __call__(self, node: int) -> tuple[Tensor, bool]:
        """Return the value of *node*, flat per input, and whether it differs between inputs."""
        value, layout = self.values[node], self.layers.program.nodes[node].layout
        if isinstance(layout, LaneAxis):
            first = lanes_first(value, layout)
            return first.reshape(first.shape[0], -1), True
        return value.reshape(1, -1), False

    def read(self, node: int, lane: Ints, element: Ints) -> Tensor:
        """Return element by element, 0 where it is -1 (padding)."""
        flat, varies = self(node)
        at = torch.from_numpy(np.array(element)).to(flat.device)
        row = torch.from_numpy(np.array(np.broadcast_to(lane if varies else 0, element.shape))).to(flat.device)
        return torch.where(at >= 0, flat[row, at.clamp(min=0)], flat.new_zeros(())).cpu()


@dataclass(frozen=True, eq=False)
class _Struck:
    """Upsets of one type in one layer, *lane* being each one's row of golden."""

    accelerator: Accelerator
    work: Work
    kind: int
    space: FaultSpace
    golden: _Golden
    lane: Ints
    upsets: Upsets

    def rows(self) -> Rows:
        """Return the edits: owner, site, element, keep and toggle."""
        one = self.accelerator.types[self.kind]
        effect = find_pattern(one.pattern).effect
        if effect == "random":
            return self._random()
        if effect == "operand" and self.work.product is not None:
            return self._operand()
        if effect in ("partial", "tile-partial") and self.work.product is not None:
            return self._partial(tiled=effect == "tile-partial")
        return self._flips(one.holds)

    def _flips(self, holds: str) -> Rows:
        """Flip the struck bit of the variable itself."""
        positions = [self.space.position(name) for name in self.work.sites(holds)]
        starts = np.cumsum([0, *(self.space.sites[i].elements for i in positions)])
        which = np.searchsorted(starts, self.upsets.element, side="right") - 1
        toggle = np.uint64(1) << self.upsets.bit.astype(np.uint64)
        owner = np.arange(len(self.upsets))
        element = self.upsets.element - starts[which]
        full = np.uint64((1 << self.space.sites[positions[0]].width) - 1)
        return owner, np.asarray(positions)[which], element, np.full_like(toggle, full), toggle

    def _random(self) -> Rows:
        owner, site, element, keep, _ = self._flips("output")
        width = np.uint64(64 - self.space.sites[int(site[0])].width)
        return owner, site, element, np.zeros_like(keep), self.upsets.random >> width

    def _operands(self) -> tuple[int, int]:
        """Return the nodes of the operand that streams and of the one that stays."""
        node = self.golden.layers.program.nodes[self.work.node]
        refs = [argument for argument in node.args if isinstance(argument, Ref)]
        one, two = refs[-2:] if node.op in ("addmm", "baddbmm") else refs[:2]
        return one.node, two.node

    def _operand(self) -> Rows:
        """Give each reached output one product with the wrong operand."""
        product, upsets = self.work.product, self.upsets
        assert product is not None
        grid = product.grid(height=self.accelerator.height, width=self.accelerator.width)
        one = self.accelerator.types[self.kind]
        owner, row, column = _cells(reach_of(one.pattern, upsets.row, upsets.column, grid))
        streaming, staying = self._operands()
        group, step, lane = upsets.group[owner], upsets.step[owner], self.lane[owner]
        inputs = self.golden.read(streaming, lane, input_element(product, group, row, step))
        weights = self.golden.read(staying, lane, weight_element(product, group, step, column))
        right, other = (inputs, weights) if one.holds == "input" else (weights, inputs)
        wrong = _flipped(right, upsets.bit[owner], self.space.site(self.work.sites(one.holds)[0]))
        change = wrong.double() * other.double() - right.double() * other.double()
        return self._written(owner, output_element(product, group, row, column), change)

    def _partial(self, *, tiled: bool) -> Rows:
        """Flip a bit of the sum after the struck step."""
        product, upsets = self.work.product, self.upsets
        assert product is not None
        streaming, staying = self._operands()
        first = upsets.step // self.accelerator.height * self.accelerator.height if tiled else 0 * upsets.step
        steps = np.arange(product.depth)
        sums = []
        for begin in range(0, len(upsets), _PARTS):
            part = slice(begin, begin + _PARTS)
            group, row, column = (values[part, None] for values in (upsets.group, upsets.row, upsets.column))
            lane = self.lane[part, None]
            inputs = self.golden.read(streaming, lane, input_element(product, group, row, steps))
            weights = self.golden.read(staying, lane, weight_element(product, group, steps, column))
            held = (steps >= first[part, None]) & (steps <= upsets.step[part, None])
            # Weights are read for all steps: a product outside the sum must not enter it, not even as NaN x 0.
            terms = torch.where(torch.from_numpy(held), inputs.double() * weights.double(), 0.0)
            sums.append(terms.sum(1).to(inputs.dtype))
        right = torch.cat(sums)
        wrong = _flipped(right, upsets.bit, self.space.site(self.work.outputs[0]))
        element = output_element(product, upsets.group, upsets.row, upsets.column)
        return self._written(np.arange(len(upsets)), element, wrong.double() - right.double())

    def _written(self, owner: Ints, element: Ints, change: Tensor) -> Rows:
        """Overwrite outputs with golden + *change*."""
        position = self.space.position(self.work.outputs[0])
        fmt = _format(self.space.sites[position])
        golden = self.golden.read(self.work.node, self.lane[owner], element)
        words = encode((golden.double() + change).to(golden.dtype), held_in(fmt, golden.dtype)).numpy()
        unsigned = words.view(np.dtype(f"u{words.dtype.itemsize}")).astype(np.uint64)
        return owner, np.full(len(owner), position), element, np.zeros_like(unsigned), unsigned


def _cells(reach: Reach) -> tuple[Ints, Ints, Ints]:
    """Return every output of every rectangle: the upset it belongs to, its row and its column."""
    counts = reach.outputs
    owner = np.repeat(np.arange(len(counts)), counts)
    inner = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(inner, (reach.column_end - reach.column)[owner])
    return owner, reach.row[owner] + row, reach.column[owner] + column


def _format(site: Site) -> WordFormat:
    fmt = word(site.word)
    if not fmt.dtype.is_floating_point:
        raise HardwareError(f"'{site.name}' is kept as {site.word} codes; upsets need activations in a number format")
    return fmt


def _flipped(values: Tensor, bit: Ints, site: Site) -> Tensor:
    fmt = held_in(_format(site), values.dtype)
    toggle = masks_to_words(np.uint64(1) << bit.astype(np.uint64), fmt)
    return edit(values, None, toggle, fmt)
