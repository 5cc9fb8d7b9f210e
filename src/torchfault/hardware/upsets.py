"""Upsets of flip-flops as trials of the engine: which words of which sites change, and to what.

An operand that is wrong in some products only is no fault of a tensor: no site holds that wrong copy. But what it does
is known in closed form: each reached output differs by (wrong - right operand) x other operand. So the trial overwrites
the reached outputs of the layer with golden + difference, words like any other edit of the engine. The difference is
computed in double precision from golden operands and rounded once. Where outputs are kept in blocks, the blocks that it
reaches are rounded anew, with the scales that they then have.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.cells import Space
from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import Accelerator, FlipFlops
from torchfault.hardware.golden import Golden, Machine, golden_of, held_together
from torchfault.hardware.layers import Layers
from torchfault.hardware.operands import input_element, output_element, weight_element
from torchfault.hardware.patterns import Reach, find_pattern, reach_of
from torchfault.hardware.registers import ActivationBlocks, Register, StoredBlocks, flipping, products_of
from torchfault.hardware.upset_space import SCALE_BIT, Upsets, UpsetSpace, as_upsets
from torchfault.hardware.variables import scale_of
from torchfault.hardware.work import Product, Work
from torchfault.model.lane_axis import LaneAxis
from torchfault.model.program import Ref
from torchfault.space import FaultSpace, Site
from torchfault.storages import InBlocks, Stored
from torchfault.trials import Trials
from torchfault.words import WordFormat, edit, encode, held_in, word

__all__ = ["Upset"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Rows = tuple[Ints, Ints, Ints, Words, Words]
_NO_ROWS: Rows = (*np.zeros((3, 0), dtype=np.int64), *np.zeros((2, 0), dtype=np.uint64))
_PARTS = 512  # upsets whose running sums are gathered at a time, a row of the layer's depth each
_AT_ONCE = 8192  # trials made together
_EDIT = 128  # bytes that one changed word takes until it is an edit


@dataclass(frozen=True, eq=False)
class Upset:
    """The fault model of upsets: what each of an :class:`UpsetSpace` of *layers* does to the words of an engine.

    >>> import torch
    >>> from torchfault import Data, Engine
    >>> from torchfault.hardware.accelerator import FLAT
    >>> from torchfault.hardware.layers import layers_of
    >>> from torchfault.hardware.upset_space import upset_space
    >>> from torchfault.zoo import digits_cnn
    >>> engine = Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8)))
    >>> fault = Upset(layers_of(engine.model, engine.data))
    >>> space = upset_space(FLAT, fault.layers.works, engine.space)
    >>> index, inputs, words = np.array([7, 70_000]), np.array([0, 3]), np.zeros(2, dtype=np.uint64)
    >>> [(trials.inputs, at) for trials, at in fault.parts(space, index, inputs, words=words, engine=engine)]
    [(array([0, 3]), array([0, 1]))]
    """

    layers: Layers = field(compare=False)  # whose works the space holds; the rest is the model, which has a digest

    def check(self, space: Space, mass: Floats, engine: Machine) -> None:
        """Raise :class:`HardwareError` unless *space* is one of upsets in these layers, whose sites *engine* has.

        Control has no trial, so the *mass* of its cells has to be 0.
        """
        if not isinstance(space, UpsetSpace) or space.works != tuple(
            replace(one, node=-1) for one in self.layers.works
        ):
            raise HardwareError(f"upsets strike the layers of the model, got {space!r}; make the space of these layers")
        for work in space.works:
            for name in (*work.inputs, *work.weights, *work.outputs):
                engine.space.position(name)
        if (mass[space.is_control] > 0).any():
            raise HardwareError(
                "upsets of control are crashes, known and never run, got a measure with them; "
                "take measure=UpsetMeasure(in_use=True)"
            )

    def strikes(self, space: Space, index: Ints) -> NDArray[np.bool_]:
        """Return which of upsets *index* become a trial, shape (n,): the others strike a variable that no product uses.

        Raises :class:`HardwareError` for upsets of control, which are crashes without a trial.
        """
        return np.asarray(self._located(as_upsets(space), index).row >= 0)

    def fitting(self, space: Space, index: Ints, *, engine: Machine) -> int:
        """Return how many of the first of upsets *index* fit into the memory as trials, 1 at least."""
        space = as_upsets(space)
        edits = np.cumsum(self._edits(space, index, self._located(space, index)))
        return max(1, int(np.searchsorted(edits, _most_edits(engine), side="right")))

    @torch.inference_mode()
    def _made(
        self, space: UpsetSpace, index: Ints, inputs: Ints, *, words: Words, engine: Machine
    ) -> tuple[Trials, Ints]:
        """Return the trials of upsets on inputs whose golden operands are held at once, and the positions of these."""
        upsets = self._located(space, index)
        golden = golden_of(self.layers, engine, np.unique(inputs))
        lane = golden.rows(inputs)
        rows: list[Rows] = [_NO_ROWS]
        for at, which, here in space.by_pair(space.cell_of(index)):
            here = here[upsets.row[here] >= 0]
            if len(here):
                one, work = space.accelerator.types[which], self.layers.works[at]
                mine = lane[here], upsets.take(here), words[here]
                struck = _Struck(space.accelerator, self.layers, work, one, engine.space, golden, *mine)
                owner, site, element, keep, toggle = struck.rows()
                rows.append((here[owner], site, element, keep, toggle))
        owner, site, element, keep, toggle = (np.concatenate(column) for column in zip(*rows, strict=True))
        order = np.lexsort((element, site, owner))
        kept, counts = np.unique(owner, return_counts=True)
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        columns = element[order], keep[order], toggle[order]
        return Trials(engine.space.sites, offsets, inputs[kept], site[order].astype(np.int32), *columns), kept

    def parts(
        self, space: Space, index: Ints, inputs: Ints, *, words: Words, engine: Machine
    ) -> Iterator[tuple[Trials, Ints]]:
        """Yield the trials that upsets *index* become on *inputs*, shape (n,), and the positions of theirs, in parts.

        A part fits into the engine's memory, and is of inputs whose golden values are held together; an engine
        that runs a part before it asks for the next needs no pass without faults of its own. *words*, shape (n,), are
        random ones, which some types leave. Raises :class:`HardwareError` for upsets of control.
        """
        space = as_upsets(space)
        upsets, most = self._located(space, index), _most_edits(engine)
        ends = [part[-1] for part in held_together(self.layers, engine, inputs)]
        order = np.argsort(inputs, kind="stable")
        group = np.searchsorted(ends, inputs[order])
        edits = np.cumsum(np.concatenate(([0], self._edits(space, index, upsets)[order])))
        begin = 0
        while begin < len(order):
            end = int(np.searchsorted(group, group[begin], side="right"))
            fits = int(np.searchsorted(edits, edits[begin] + most, side="right")) - 1
            end = max(begin + 1, min(end, begin + _AT_ONCE, fits))
            part = order[begin:end]
            trials, kept = self._made(space, index[part], inputs[part], words=words[part], engine=engine)
            yield trials, part[kept]
            begin = end

    def _located(self, space: UpsetSpace, index: Ints) -> Upsets:
        upsets = space.locate(index)
        if (upsets.element < 0).any():
            raise HardwareError("an upset of control strikes no variable, so it has no trial; count it as a crash")
        return upsets

    def _edits(self, space: UpsetSpace, index: Ints, upsets: Upsets) -> Ints:
        """Return the number of words that each upset changes, shape (n,)."""
        counts = np.ones(len(index), dtype=np.int64)
        for at, which, here in space.by_pair(space.cell_of(index)):
            one, product = space.accelerator.types[which], space.works[at].product
            if product is not None and find_pattern(one.pattern).effect == "operand":
                here = here[upsets.row[here] >= 0]
                grid = product.grid(height=space.accelerator.height, width=space.accelerator.width)
                counts[here] = reach_of(one.pattern, upsets.row[here], upsets.column[here], grid).outputs
            kept = [self.layers.kept[name] for name in space.works[at].outputs if name in self.layers.kept]
            if kept and isinstance(kept[0], InBlocks):
                counts[here] *= kept[0].kept.block + 1  # with an output all of its block, and the scale
        return counts


def _most_edits(engine: Machine) -> int:
    """Return how many words trials may change together: a quarter of the memory goes to these."""
    return max(1, engine.memory // 4 // _EDIT)


@dataclass(frozen=True, eq=False)
class _Struck:
    """Upsets of the type *one* in one layer, *lane* being each one's row of golden, *words* its random word."""

    accelerator: Accelerator
    layers: Layers
    work: Work
    one: FlipFlops
    space: FaultSpace
    golden: Golden
    lane: Ints
    upsets: Upsets
    words: Words

    def rows(self) -> Rows:
        """Return the edits: owner, site, element, keep and toggle."""
        effect = find_pattern(self.one.pattern).effect
        if effect == "random":
            return self._random()
        if effect == "operand" and self.work.product is not None:
            return self._operand()
        if effect in ("partial", "tile-partial") and self.work.product is not None:
            return self._partial(tiled=effect == "tile-partial")
        return self._flips()

    def _variables(self) -> tuple[Ints, Ints, Ints, np.uint64]:
        """Return owner, site and element of the variables themselves, and the mask of all bits of their words."""
        names = self.work.sites(self.one.holds)
        positions = [self.space.position(name) for name in names]
        starts = np.cumsum([0, *(self.space.sites[i].elements for i in positions)])
        which = np.searchsorted(starts, self.upsets.element, side="right") - 1
        full = np.uint64((1 << self.space.sites[positions[0]].width) - 1)
        return np.arange(len(self.lane)), np.asarray(positions)[which], self.upsets.element - starts[which], full

    def _flips(self) -> Rows:
        """Flip the struck bit of the variable itself."""
        owner, site, element, full = self._variables()
        toggle = np.uint64(1) << (self.upsets.bit % SCALE_BIT).astype(np.uint64)
        keep = np.full_like(toggle, full)
        for position in np.unique(site):
            here = (site == position) & (self.upsets.bit >= SCALE_BIT)
            scale = scale_of(self.space, self.space.names[position]) if here.any() else None
            if scale is not None:
                element[here] = self._register(self.space.names[position]).shared(element[here])
                site[here], keep[here] = self.space.position(scale.name), (1 << scale.width) - 1
        return owner, site, element, keep, toggle

    def _random(self) -> Rows:
        """Overwrite the output with the upper bits of a random word."""
        owner, site, element, full = self._variables()
        words = self.words >> np.uint64(64 - int(full).bit_length())
        return owner, site, element, np.zeros_like(words), words

    def _operands(self) -> tuple[int, int]:
        """Return the nodes of the operand that streams and of the one that stays."""
        node = self.golden.program.nodes[self.work.node]
        refs = [argument for argument in node.args if isinstance(argument, Ref)]
        one, two = refs[-2:] if node.op in ("addmm", "baddbmm") else refs[:2]
        return one.node, two.node

    def _operand(self) -> Rows:
        """Give each reached output one product with the wrong operand, or those of a block with the wrong scale."""
        product, upsets = self.work.product, self.upsets
        assert product is not None
        grid = product.grid(height=self.accelerator.height, width=self.accelerator.width)
        owner, row, column = _cells(reach_of(self.one.pattern, upsets.row, upsets.column, grid))
        change = torch.zeros(len(owner), dtype=torch.float64)
        scale = upsets.bit[owner] >= SCALE_BIT
        for rule, here in ((self._one_product, ~scale), (self._products_of_block, scale)):
            at = np.flatnonzero(here)
            for begin in range(0, len(at), _PARTS):
                part = at[begin : begin + _PARTS]
                change[torch.from_numpy(part)] = rule(product, owner[part], row[part], column[part])
        return self._written(owner, output_element(product, upsets.group[owner], row, column), change)

    def _one_product(self, product: Product, owner: Ints, row: Ints, column: Ints) -> Tensor:
        """Return what an output at *row* and *column* changes by if an operand of one of its products is wrong."""
        group, step, lane = self.upsets.group[owner], self.upsets.step[owner], self.lane[owner]
        places = (input_element(product, group, row, step), weight_element(product, group, step, column))
        inputs, weights = (self.golden.read(node, lane, at) for node, at in zip(self._operands(), places, strict=True))
        streams, bit = self.one.holds == "input", self.upsets.bit[owner]
        right, other, mine = (inputs, weights, places[0]) if streams else (weights, inputs, places[1])
        (name,) = self.work.sites(self.one.holds)
        if name in self.layers.kept:
            wrong = self._register(name).element(lane, np.maximum(mine, 0), bit).to(right.dtype)
            wrong = torch.where(torch.from_numpy(mine >= 0), wrong, right)
        else:
            wrong = self._flipped(right, bit, self._format(self.space.site(name)))
        return wrong.double() * other.double() - right.double() * other.double()

    def _products_of_block(self, product: Product, owner: Ints, row: Ints, column: Ints) -> Tensor:
        """Return what an output at *row* and *column* changes by if a block of its operands has the wrong scale."""
        group, step, lane = self.upsets.group[owner], self.upsets.step[owner], self.lane[owner]
        streaming, staying = self._operands()
        streams = self.one.holds == "input"
        mine = input_element(product, group, row, step) if streams else weight_element(product, group, step, column)
        (name,) = self.work.sites(self.one.holds)
        place, wrong = self._register(name).block(lane, np.maximum(mine, 0), self.upsets.bit[owner] - SCALE_BIT)
        steps, used, which = products_of(product, self.one.holds, place, group, row, column)
        lane, group, row, column = (values[:, None] for values in (lane, group, row, column))
        if streams:
            right = self.golden.read(streaming, lane, place)
            other = self.golden.read(staying, lane, weight_element(product, group, steps, column))
        else:
            right = self.golden.read(staying, lane, place)
            other = self.golden.read(streaming, lane, input_element(product, group, row, steps))
        taken = torch.from_numpy(used & (mine >= 0)[:, None])
        change = wrong[:, which].double() * other.double() - right[:, which].double() * other.double()
        return torch.where(taken, change, 0.0).sum(1)

    def _register(self, name: str) -> Register:
        """Return what holds the variables called *name*, which are kept in blocks."""
        kept = self.layers.kept[name]
        if isinstance(kept, Stored):
            return StoredBlocks(kept)
        inputs, weights = self._operands() if self.work.product is not None else (self.work.node, self.work.node)
        node = inputs if name in self.work.inputs else weights if name in self.work.weights else self.work.node
        return self._blocks(name, kept, node)

    def _blocks(self, name: str, kept: InBlocks, node: int) -> ActivationBlocks:
        layout, shape = self.golden.program.nodes[node].layout, self.space.site(name).shape
        merged = isinstance(layout, LaneAxis) and not layout.plain  # else the axis of the inputs is one of its own
        row = kept.row(shape if merged else (1, *shape))
        return ActivationBlocks(kept, row, self.golden.flat(node))

    def _partial(self, *, tiled: bool) -> Rows:
        """Flip a bit of the sum after the struck step."""
        product, upsets = self.work.product, self.upsets
        assert product is not None
        streaming, staying = self._operands()
        first = upsets.step // self.accelerator.height * self.accelerator.height if tiled else 0 * upsets.step
        steps = np.arange(product.depth)
        sums = []
        for begin in range(0, len(self.lane), _PARTS):
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
        blocks = isinstance(self.layers.kept.get(self.work.outputs[0]), InBlocks)
        fmt = word("float32") if blocks else self._format(self.space.site(self.work.outputs[0]))
        wrong = self._flipped(right, upsets.bit, fmt)
        element = output_element(product, upsets.group, upsets.row, upsets.column)
        return self._written(np.arange(len(self.lane)), element, wrong.double() - right.double())

    def _written(self, owner: Ints, element: Ints, change: Tensor) -> Rows:
        """Overwrite outputs with golden + *change*."""
        (name,) = self.work.outputs
        kept = self.layers.kept.get(name)
        if isinstance(kept, InBlocks):
            blocks = self._blocks(name, kept, self.work.node)
            found = blocks.rewritten(owner, self.lane[owner], element, change)
            rows = [self._overwritten(f"{name}.{part}" if part else name, *columns) for part, columns in found.items()]
        else:
            golden = self.golden.read(self.work.node, self.lane[owner], element)
            rows = [self._overwritten(name, owner, element, (golden.double() + change).to(golden.dtype))]
        owner, site, element, keep, toggle = (np.concatenate(column) for column in zip(*rows, strict=True))
        return owner, site, element, keep, toggle

    def _overwritten(self, name: str, owner: Ints, element: Ints, values: Tensor) -> Rows:
        """Return edits that put *values* in the place of words of the site called *name*."""
        position = self.space.position(name)
        fmt = word(self.space.sites[position].word)
        words = encode(values, held_in(fmt, values.dtype) if values.dtype.is_floating_point else fmt).numpy()
        unsigned = words.view(np.dtype(f"u{words.dtype.itemsize}")).astype(np.uint64)
        return owner, np.full(len(owner), position), element, np.zeros_like(unsigned), unsigned

    def _format(self, site: Site) -> WordFormat:
        """Return the format of what products and sums read and write, whose words stand for values by themselves."""
        fmt = word(site.word)
        if site.name in _with_parts(self.space.names) or not fmt.dtype.is_floating_point:
            raise HardwareError(
                f"'{site.name}' is kept as {site.word} codes of another library; upsets of operands and sums need a "
                "number format, or codes and blocks of represent()"
            )
        return fmt

    def _flipped(self, values: Tensor, bit: Ints, fmt: WordFormat) -> Tensor:
        held = held_in(fmt, values.dtype)
        return edit(values, None, flipping(bit, held), held)


@lru_cache(maxsize=4)
def _with_parts(names: tuple[str, ...]) -> frozenset[str]:
    """Return what stands before every colon or dot in *names*: sites that have others beside them, such as scales."""
    return frozenset(name[:at] for name in names for at, mark in enumerate(name) if mark in ":.")


def _cells(reach: Reach) -> tuple[Ints, Ints, Ints]:
    """Return every output of every rectangle: the upset it belongs to, its row and its column."""
    counts = reach.outputs
    owner = np.repeat(np.arange(len(counts)), counts)
    inner = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(inner, (reach.column_end - reach.column)[owner])
    return owner, reach.row[owner] + row, reach.column[owner] + column
