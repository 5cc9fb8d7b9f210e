"""The space of upsets: every bit of every variable at every use, layer by layer, numbered in closed form; NumPy only.

A cell is a (layer, type, bit); upsets of control, and such as leave a random word, have no bit. A place within a cell
is a variable and one of its uses: a rectangle of numbers, some of which, as at the border of a convolution, stand for
no use and have the probability 0 (:class:`torchfault.hardware.measure.UpsetMeasure`).

Where variables are kept in blocks, their registers hold elements and the scale of each block. Bits of scales count from
64 up, and their places are those of the elements: the scale is struck while it serves the product of one of these.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.cells import Axis, Cells, Space
from torchfault.errors import HardwareError, SpaceError, did_you_mean
from torchfault.hardware.accelerator import Accelerator, FlipFlops, Holds, accelerator_of, plain_accelerator
from torchfault.hardware.operands import input_offsets, use_of_input, use_of_output, use_of_weight
from torchfault.hardware.patterns import find_pattern
from torchfault.hardware.variables import NO_SCALES, scales_of, word_width
from torchfault.hardware.work import Product, Work, plain_work, read_work
from torchfault.space import FaultSpace

__all__ = [
    "SCALE_BIT",
    "UpsetSpace",
    "Upsets",
    "as_upsets",
    "read_upset_space",
    "sum_slots",
    "upset_space",
    "use_shape",
]

Ints = NDArray[np.int64]
_LARGEST = np.iinfo(np.int64).max
SCALE_BIT = 64
"""The number of the lowest bit of a scale that a block shares; words have fewer bits."""
_SUMS = 32  # bits of the float32 in which products of blocks are summed


class Upsets(NamedTuple):
    """Upsets in columns, all of shape (n,): the *layer* and *type* (positions among works and types) and the *bit*.

    *element* is the variable, counted through the sites of its kind, or one that has the struck scale; *group*, *row*,
    *step* and *column* the product served, *row* -1 where none uses the variable, all 0 where the use does not matter.
    *bit* is -1 where a random word is left, and all but layer and type are -1 for control.
    """

    layer: Ints
    type: Ints
    bit: Ints
    element: Ints
    group: Ints
    row: Ints
    step: Ints
    column: Ints

    def take(self, index: Ints) -> "Upsets":
        """Return the upsets at *index*."""
        return Upsets(*(column[index] for column in self))


@dataclass(frozen=True, repr=False)
class UpsetSpace:
    """Every upset of an *accelerator* while it computes *works*; *widths* are the bits of input, weight, output words.

    *scales* tells of the same the bits of a scale that blocks share, and how many there are, 0 and 0 without blocks.
    Upset ``i`` is an integer below ``len(space)``; :meth:`locate` tells which it is, without ever listing the space.
    The random word that some types leave is no part of the number. Raises :class:`torchfault.errors.SpaceError` for no
    upset, or more than 2^63 - 1.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> work = Work("fc", "linear", 6, ("fc:input",), ("fc.weight",), ("fc:output",), (3, 6, 2), Product(1, 1, 3, 2))
    >>> space = UpsetSpace(FLAT, (work,), ((32, 32, 32),))
    >>> len(space), len(space.cells)
    (449, 97)
    >>> {name: values.tolist()[0] for name, values in space.columns([200]).items() if name in ("holds", "bit", "row")}
    {'holds': 'weight', 'bit': 1, 'row': 0}
    """

    accelerator: Accelerator
    works: tuple[Work, ...]
    widths: tuple[tuple[int, int, int], ...]
    scales: tuple[tuple[tuple[int, int], ...], ...] = ()

    def __post_init__(self) -> None:
        # Where a layer is in a captured graph has nothing to do with which upset a number means.
        object.__setattr__(self, "works", tuple(replace(work, node=-1) for work in self.works))
        object.__setattr__(self, "widths", tuple(map(tuple, self.widths)))
        given = tuple(tuple(map(tuple, one)) for one in self.scales) or ((NO_SCALES,) * 3,) * len(self.works)
        object.__setattr__(self, "scales", given)
        if len(given) != len(self.works) or any(len(one) != 3 for one in given):
            raise HardwareError(f"each of {len(self.works)} layers has scales of three kinds, got {given}")
        if len(self.works) != len(self.widths) or not all(0 <= bits <= 64 for bits in itertools.chain(*self.widths)):
            raise HardwareError(f"each of {len(self.works)} layers has words of up to 64 bits, got {self.widths}")
        sizes = [size for *_, size in self._columns()]
        if not 0 < sum(sizes) <= _LARGEST:
            raise SpaceError(f"a space holds from 1 to 2^63 - 1 upsets, got {sum(sizes)}; take fewer layers")

    def _columns(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield layer, type, bit and size of every cell."""
        for at, work in enumerate(self.works):
            for which, one in enumerate(self.accelerator.types):
                size = math.prod(use_shape(work, one))
                for bit in self._bits(at, one):
                    yield at, which, bit, size

    def _bits(self, at: int, one: FlipFlops) -> Iterable[int]:
        if not has_bits(one):
            return (-1,)
        kind = _KINDS.index(one.holds)
        width, (scale, _) = self.widths[at][kind], self.scales[at][kind]
        if scale and one.holds == "output" and len(use_shape(self.works[at], one)) > 1:
            return range(_SUMS)
        return (*range(width), *range(SCALE_BIT, SCALE_BIT + scale))

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __repr__(self) -> str:
        return f"<UpsetSpace: {len(self):,} upsets of '{self.accelerator.name}' in {len(self.works)} layers>"

    @cached_property
    def _table(self) -> Ints:
        return np.array(list(self._columns()), dtype=np.int64).T

    @cached_property
    def _offsets(self) -> Ints:
        return np.concatenate(([0], np.cumsum(self._table[3])))

    @property
    def layer(self) -> Ints:
        """The position of each cell's layer among the works, shape (cells,)."""
        return np.asarray(self._table[0])

    @property
    def type(self) -> Ints:
        """The position of each cell's type among those of the accelerator, shape (cells,)."""
        return np.asarray(self._table[1])

    @cached_property
    def words(self) -> NDArray[np.float64]:
        """How many words have the bit of each cell, for each variable: 1, or fewer for scales; shape (cells,)."""
        found = np.ones(len(self.layer))
        for cell in np.flatnonzero(self.cells.bit >= SCALE_BIT):
            at, holds = self.layer[cell], self.accelerator.types[self.type[cell]].holds
            found[cell] = self.scales[at][_KINDS.index(holds)][1] / self.works[at].count(holds)
        return found

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """Which cells are of control, whose upsets are crashes, shape (cells,)."""
        return np.array([one.holds == "control" for one in self.accelerator.types])[self.type]

    @cached_property
    def cells(self) -> Cells:
        """The cells, in the order of layers, types and bits; layers of one name are one group."""
        code = {name: code for code, name in enumerate(self._layers)}
        group = np.array([code[work.layer] for work in self.works], dtype=np.int64)
        return Cells(self._table[3], group[self.layer], self._table[2])

    @property
    def _layers(self) -> list[str]:
        return list(dict.fromkeys(work.layer for work in self.works))

    def positions(self, layer: str) -> list[int]:
        """Return the positions of the works of *layer*; raises :class:`HardwareError`, with a suggestion, for none."""
        if layer not in self._layers:
            raise HardwareError(f"no layer is called '{layer}'{did_you_mean(layer, self._layers)}")
        return [at for at, work in enumerate(self.works) if work.layer == layer]

    def cell_of(self, index: ArrayLike) -> Ints:
        """Return the cell of each upset number, shape (n,)."""
        return np.asarray(np.searchsorted(self._offsets, self._checked(index), side="right") - 1)

    def place_of(self, index: ArrayLike) -> Ints:
        """Return the place of each upset number within its cell, shape (n,)."""
        return np.asarray(self._checked(index) - self._offsets[self.cell_of(index)])

    def number_of(self, cell: ArrayLike, place: ArrayLike) -> Ints:
        """Return the number of each upset, given its *cell* and its *place* within it; both broadcast.

        Raises :class:`torchfault.errors.SpaceError` for a cell or a place that is not there.
        """
        cells, places = np.broadcast_arrays(_whole(cell), _whole(place))
        if not _inside(cells, len(self.cells)):
            raise SpaceError(f"cells run from 0 to {len(self.cells) - 1}, got {cells.min()} to {cells.max()}")
        outside = (places < 0) | (places >= self.cells.sizes[cells])
        if outside.any():
            size = self.cells.sizes[cells[outside][0]]
            raise SpaceError(f"places of this cell run from 0 to {size - 1}, got {places[outside][0]}")
        return np.asarray(self._offsets[cells] + places)

    def _checked(self, index: ArrayLike) -> Ints:
        numbers = _whole(index)
        if not _inside(numbers, len(self)):
            raise SpaceError(f"upsets run from 0 to {len(self) - 1}, got {numbers.min()} to {numbers.max()}")
        return numbers

    def locate(self, index: ArrayLike) -> Upsets:
        """Return which upset each number is.

        Raises :class:`torchfault.errors.SpaceError` for numbers outside the space.
        """
        cell, place = self.cell_of(index), self.place_of(index)
        places = np.full((5, len(cell)), -1, dtype=np.int64)
        for at, which, here in self.by_pair(cell):
            for row, part in zip(places, self._use(at, which, place[here]), strict=True):
                row[here] = part
        return Upsets(self.layer[cell], self.type[cell], self.cells.bit[cell], *places)

    def _use(self, at: int, which: int, place: Ints) -> tuple[Ints | int, ...]:
        """Return element, group, row, step and column of places in the cells of a layer and type."""
        work, one = self.works[at], self.accelerator.types[which]
        shape, product = use_shape(work, one), work.product
        if one.holds == "control":
            return (-1,) * 5
        if product is None or len(shape) == 1:
            return place, 0, 0, 0, 0
        if one.holds == "input":
            element, offset, column = np.unravel_index(place, shape)
            return element, *use_of_input(product, element, offset), column
        element, use = np.unravel_index(place, shape)
        if one.holds == "weight":
            group, step, column = use_of_weight(product, element)
            return element, group, use, step, column
        group, row, column = use_of_output(product, element)
        return element, group, row, use, column

    def by_pair(self, cell: Ints) -> Iterator[tuple[int, int, Ints]]:
        """Yield the layer and type of *cell*, shape (n,), pair by pair, with the positions that have it."""
        pair = self.layer[cell] * len(self.accelerator.types) + self.type[cell]
        for one in np.unique(pair).tolist():
            yield *divmod(one, len(self.accelerator.types)), np.flatnonzero(pair == one)

    @property
    def groupings(self) -> tuple[str, ...]:
        """The names that :meth:`axis` takes."""
        return ("model", "layer", "type", "bit", "kind")

    def axis(self, by: str) -> Axis:
        """Return the groups of a table *by* model, layer, type, bit (-1 for none), or kind: what flip-flops hold.

        Raises :class:`torchfault.errors.SpaceError`, with a suggestion, for another *by*.
        """
        types = self.accelerator.types
        keys: list[str] | list[int]
        if by == "model":
            keys, of_cell = ["model"], np.zeros(len(self.cells), dtype=np.int64)
        elif by == "layer":
            keys, of_cell = self._layers, self.cells.group
        elif by == "type":
            keys, of_cell = [one.name for one in types], self.type
        elif by == "bit":
            bits, of_cell = np.unique(self.cells.bit, return_inverse=True)
            keys = bits.tolist()
        elif by == "kind":
            kinds = [holds for holds in get_args(Holds) if any(one.holds == holds for one in types)]
            keys, of_cell = list(kinds), np.array([kinds.index(one.holds) for one in types], dtype=np.int64)[self.type]
        else:
            near = did_you_mean(by, self.groupings)
            raise SpaceError(f"upsets are grouped by {', '.join(self.groupings)}, got '{by}'{near}")
        faults = np.zeros(len(keys), dtype=np.int64)
        np.add.at(faults, of_cell, self.cells.sizes)
        return Axis(keys, faults, lambda index: of_cell[self.cell_of(index)], of_cell)

    def columns(self, index: ArrayLike) -> dict[str, NDArray[Any]]:
        """Return what an export shows of each upset: names, and numbers that are -1 where they have no meaning."""
        found, types = self.locate(index), self.accelerator.types
        names = np.array([work.layer for work in self.works], dtype=object)
        named = np.array([(one.name, one.holds) for one in types], dtype=object)
        served = np.zeros(len(found.layer), dtype=bool)
        for at, which, here in self.by_pair(self.cell_of(index)):
            served[here] = len(use_shape(self.works[at], types[which])) > 1
        shown = {name: np.where(served, getattr(found, name), -1) for name in ("group", "row", "step", "column")}
        told = {"layer": names[found.layer], "type": named[found.type, 0], "holds": named[found.type, 1]}
        return {**told, "bit": found.bit, "element": found.element, **shown}

    def plain(self) -> dict[str, Any]:
        """Return the space as JSON can hold it; :func:`read_upset_space` is the way back."""
        works = [plain_work(work) for work in self.works]
        held: dict[str, Any] = {"kind": "upsets", "accelerator": plain_accelerator(self.accelerator), "works": works}
        held["widths"] = self.widths
        if any(scale != NO_SCALES for scale in itertools.chain(*self.scales)):
            held["scales"] = self.scales
        plain: dict[str, Any] = json.loads(json.dumps(held))  # as it comes back from a store
        return plain

    def digest(self) -> str:
        """Return a SHA-256 over everything that decides which upset a number means, and how likely it is."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()


def as_upsets(space: Space) -> UpsetSpace:
    """Return *space*, or raise :class:`HardwareError` where it is not one of upsets."""
    if not isinstance(space, UpsetSpace):
        raise HardwareError(f"upsets are of the space of an accelerator, got a {type(space).__name__}; see upset_space")
    return space


def upset_space(accelerator: Accelerator, works: Sequence[Work], space: FaultSpace) -> UpsetSpace:
    """Return the upsets of *accelerator* while it computes *works*, whose variables are sites of *space*.

    Raises :class:`HardwareError` where variables are no sites, or have words of different widths.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> from torchfault.space import Site
    >>> sites = (Site("fc:input", (3,)), Site("fc.weight", (2, 3)), Site("fc:output", (2,)))
    >>> work = Work("fc", "linear", 6, ("fc:input",), ("fc.weight",), ("fc:output",), (3, 6, 2), Product(1, 1, 3, 2))
    >>> upset_space(FLAT, [work], FaultSpace(sites))
    <UpsetSpace: 449 upsets of 'flat' in 1 layers>
    """
    holds = {one.holds for one in accelerator.types}
    widths, scales = [], []
    for work in works:
        one, two, three = (word_width(work, kind, space) if kind in holds else 0 for kind in _KINDS)
        widths.append((one, two, three))
        scales.append(tuple(scales_of(work, kind, space) if kind in holds else NO_SCALES for kind in _KINDS))
    return UpsetSpace(accelerator, tuple(works), tuple(widths), tuple(scales))


_KINDS = ("input", "weight", "output")


def read_upset_space(plain: Mapping[str, Any]) -> UpsetSpace:
    """Return the space that :meth:`UpsetSpace.plain` wrote.

    A pattern that was a function can be shown, and refuses to run. Raises :class:`HardwareError` for anything else.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> space = UpsetSpace(FLAT, (Work("rnn", "gru", 40, (), (), (), (4, 8, 5)),), ((32, 32, 32),))
    >>> read_upset_space(json.loads(json.dumps(space.plain()))) == space
    True
    """
    try:
        works = tuple(read_work(one) for one in plain["works"])
        widths = tuple((int(one), int(two), int(three)) for one, two, three in plain["widths"])
        scales = tuple(tuple((int(bits), int(count)) for bits, count in one) for one in plain.get("scales", ()))
        return UpsetSpace(accelerator_of(plain["accelerator"], "a stored space"), works, widths, scales)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise HardwareError(f"a stored space of upsets has an accelerator, works and widths, got {error}") from error


def has_bits(one: FlipFlops) -> bool:
    """Return whether upsets of the type *one* have a bit: control has none, and a random word replaces all of them."""
    return one.holds != "control" and find_pattern(one.pattern).effect != "random"


def use_shape(work: Work, one: FlipFlops) -> tuple[int, ...]:
    """Return the rectangle of places in a cell of the type *one* in the layer *work*; the variable is the first axis.

    The further axes are its uses: kernel offset and column of an input, row of a weight, step of a sum; none where the
    variable is wrong for all, or the layer is no single product.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> work = Work("fc", "linear", 6, (), (), (), (3, 6, 2), Product(1, 1, 3, 2))
    >>> [use_shape(work, one) for one in FLAT.types]
    [(3, 1, 2), (6, 1), (2,), (1,)]
    """
    effect, product, count = find_pattern(one.pattern).effect, work.product, work.count(one.holds)
    if product is None or effect in ("everywhere", "word", "random", "crash"):
        return (count,)
    if one.holds == "input":
        return count, input_offsets(product), product.columns
    return count, product.rows if one.holds == "weight" else product.depth


def sum_slots(accelerator: Accelerator, product: Product, one: FlipFlops) -> Ints:
    """Return the steps after which a sum of *product* may be struck in a register of the type *one*, equally likely.

    Sums of a weight-stationary array also pass the idle rows of its last tile, complete.
    """
    tiles = -(-product.depth // accelerator.height) if find_pattern(one.pattern).effect == "tile-partial" else 0
    return np.minimum(np.arange(tiles * accelerator.height or product.depth), product.depth - 1)


def _whole(values: ArrayLike) -> Ints:
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise SpaceError(f"upsets, cells and places are whole numbers below 2^63, got {array.dtype}; convert them")
    return array.astype(np.int64).reshape(-1)


def _inside(values: Ints, end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())
