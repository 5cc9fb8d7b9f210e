"""The fault space: every bit of every element of every site, numbered from 0 to N - 1 in closed form; NumPy only."""

import hashlib
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.axes import GROUPINGS, axis_of
from torchfault.cells import Axis, Cells
from torchfault.errors import SpaceError, did_you_mean
from torchfault.selection import select_sites
from torchfault.site import ACTIVATION_KINDS, Fault, Site
from torchfault.text import visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ACTIVATION_KINDS", "Fault", "FaultSpace", "Locations", "Site", "as_space"]

_LARGEST = np.iinfo(np.int64).max
_SHOWN = 40  # sites in a notebook
Ints = NDArray[np.int64]


class Locations(NamedTuple):
    """Where faults land: the position of the site in the space, the flat element and the bit, one array each."""

    site: NDArray[np.int32]
    element: NDArray[np.int64]
    bit: NDArray[np.int16]


@dataclass(frozen=True)
class FaultSpace:
    """A finite, numbered set of faults: every bit of every element of every site.

    Fault ``i`` is an integer below ``len(space)``; ``space[i]`` and ``space.index(fault)`` convert, and
    :meth:`locate` and :meth:`number` do the same for whole arrays, without ever listing the space.

    Raises :class:`SpaceError` for an empty space, repeated names, or more than 2^63 - 1 faults.

    >>> space = FaultSpace((Site("conv.weight", (8, 1, 3, 3)), Site("conv:output", (8, 6, 6), kind="output")))
    >>> len(space), space[41]
    (11520, Fault(site='conv.weight', element=1, bit=9, model=None, sample=None, step=None))
    >>> space.index(space[11_077])
    11077
    """

    sites: tuple[Site, ...]
    _offsets: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sites = tuple(self.sites)
        object.__setattr__(self, "sites", sites)
        names = [site.name for site in sites]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise SpaceError(f"a fault space holds every site once, got {twice} repeatedly; use a | b for unions")
        if not any(site.size for site in sites):
            raise SpaceError("a fault space needs at least one fault, got none; widen the filter")
        total = sum(site.size for site in sites)
        if total > _LARGEST:
            raise SpaceError(f"a fault space holds at most 2^63 - 1 faults, got {total}; filter sites or bits")
        offsets = np.concatenate(([0], np.cumsum([site.size for site in sites], dtype=np.int64)))
        object.__setattr__(self, "_offsets", offsets)

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(site.kind for site in self.sites))
        return f"<FaultSpace: {len(self):,} faults in {len(self.sites):,} sites ({kinds})>"

    def _repr_html_(self) -> str:
        """Return the sites as a table, for notebooks; of many the first ones."""
        frame = self.table().head(_SHOWN).map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
        more = f"<p>and {len(self.sites) - _SHOWN:,} sites more</p>" if len(self.sites) > _SHOWN else ""
        return f"<p>{escape(repr(self))}</p>{frame.to_html(index=False)}{more}"

    def __iter__(self) -> Iterator[Fault]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, fault: object) -> bool:
        # Without this, `in` would walk through the whole space.
        try:
            return isinstance(fault, Fault) and self.index(fault) >= 0
        except SpaceError:
            return False

    def __getitem__(self, index: int) -> Fault:
        # No counting from the end and no slices: a number must name one fault, the same one wherever it is written.
        if not hasattr(index, "__index__") or not 0 <= operator.index(index) < len(self):
            last = len(self) - 1
            raise SpaceError(f"a fault is a whole number from 0 to {last}, got {index}; for arrays use space.locate")
        position, element, bit = (int(column[0]) for column in self.locate([operator.index(index)]))
        site = self.sites[position]
        if site.steps is None:
            return Fault(site.name, element, bit)
        step, inside = divmod(element, site.per_step)
        return Fault(site.name, inside, bit, step=site.steps[0] + step)

    def __or__(self, other: "FaultSpace") -> "FaultSpace":
        merged = {site.name: site for site in self.sites}
        for site in other.sites:
            mine = merged.setdefault(site.name, site)
            for part in fields(Site):
                one, two = getattr(mine, part.name), getattr(site, part.name)
                if part.name != "bits" and one != two:
                    raise SpaceError(f"a union needs '{site.name}' alike in both, got {part.name} {one} and {two}")
            merged[site.name] = replace(mine, bits=(*mine.bits, *site.bits))
        return FaultSpace(tuple(merged.values()))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the sites, in the order of their numbers."""
        return tuple(site.name for site in self.sites)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of faults in each site."""
        return np.diff(self._offsets)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def _bits(self) -> tuple[NDArray[np.int64], NDArray[np.int16], NDArray[np.int64]]:
        """The bits per site: their count, ordinal to bit, and bit to ordinal (-1 where a bit is left out)."""
        count = np.array([len(site.bits) for site in self.sites], dtype=np.int64)
        widest = max(site.width for site in self.sites)
        forward = np.full((len(self.sites), widest), -1, dtype=np.int16)
        backward = np.full((len(self.sites), widest), -1, dtype=np.int64)
        for row, site in enumerate(self.sites):
            forward[row, : len(site.bits)] = site.bits
            backward[row, list(site.bits)] = np.arange(len(site.bits))
        return count, forward, backward

    def position(self, name: str) -> int:
        """Return the position of the site called *name*, or raise :class:`SpaceError` with a suggestion."""
        if name not in self._positions:
            raise SpaceError(f"no site is called '{name}'{did_you_mean(name, self.names)}")
        return self._positions[name]

    def site(self, name: str) -> Site:
        """Return the site called *name*, or raise :class:`SpaceError` with a suggestion."""
        return self.sites[self.position(name)]

    def index(self, fault: Fault) -> int:
        """Return the number of *fault*; its fault model and sample do not matter.

        >>> space = FaultSpace((Site("conv.weight", (8, 1, 3, 3)),))
        >>> space.index(Fault("conv.weight", (0, 0, 1, 2), bit=31))
        191
        """
        position = self.position(fault.site)
        site = self.sites[position]
        element = site.flat(fault.element, step=fault.step)
        return int(self.number([position], [element], [fault.bit])[0])

    def locate(self, index: ArrayLike) -> Locations:
        """Return the sites, elements and bits of an array of fault numbers, all of shape (n,).

        Raises :class:`SpaceError` for numbers outside the space and for anything but whole numbers.

        >>> where = FaultSpace((Site("a", (2,)), Site("b", (3,)))).locate([5, 64, 97])
        >>> where.site.tolist(), where.element.tolist(), where.bit.tolist()
        ([0, 1, 1], [0, 0, 1], [5, 0, 1])
        """
        number = _whole(index, "fault numbers")
        if number.size and (number.min() < 0 or number.max() >= len(self)):
            raise SpaceError(f"fault numbers run from 0 to {len(self) - 1}, got {number.min()} to {number.max()}")
        site = (np.searchsorted(self._offsets, number, side="right") - 1).astype(np.int32)
        count, forward, _ = self._bits
        element, ordinal = np.divmod(number - self._offsets[site], count[site])
        return Locations(site, element, forward[site, ordinal])

    def number(self, site: ArrayLike, element: ArrayLike, bit: ArrayLike) -> NDArray[np.int64]:
        """Return the fault numbers of arrays of site positions, flat elements and bits, all of shape (n,).

        Raises :class:`SpaceError` for a site, element or bit that the space does not hold.

        >>> FaultSpace((Site("a", (2,)), Site("b", (3,)))).number([0, 1], [0, 1], [5, 1])
        array([ 5, 97])
        """
        wholes = _whole(site, "site positions"), _whole(element, "elements"), _whole(bit, "bits")
        where, what, which = np.broadcast_arrays(*wholes)
        if where.size and (where.min() < 0 or where.max() >= len(self.sites)):
            raise SpaceError(f"site positions run from 0 to {len(self.sites) - 1}, got {where.min()} to {where.max()}")
        count, _, backward = self._bits
        elements = np.array([s.elements for s in self.sites], dtype=np.int64)
        ordinal = backward[where, np.clip(which, 0, backward.shape[1] - 1)]
        wrong = (which < 0) | (which >= backward.shape[1]) | (ordinal < 0)
        self._refuse(wrong, where, which, "bit")
        self._refuse((what < 0) | (what >= elements[where]), where, what, "element")
        return np.asarray(self._offsets[where] + what * count[where] + ordinal)

    def _refuse(self, wrong: NDArray[np.bool_], where: NDArray[Any], value: NDArray[Any], what: str) -> None:
        if not wrong.any():
            return
        first = int(np.argmax(wrong))
        site = self.sites[int(where[first])]
        allowed = f"one of {list(site.bits)}" if what == "bit" else f"0 to {site.elements - 1}"
        if what == "bit" and len(site.bits) == site.width:
            allowed = f"0 to {site.width - 1}"
        raise SpaceError(f"{what} {value[first]} is outside '{site.name}' ({site.word} words); use {allowed}")

    def channels(self, locations: Locations) -> NDArray[np.int64]:
        """Return the channel of each location, -1 in sites that have none, shape (n,)."""
        inner = np.array([math.prod(s.shape[(s.channel or 0) + 1 :]) for s in self.sites], dtype=np.int64)
        outer = np.array([s.channels if s.channel is not None else 0 for s in self.sites], dtype=np.int64)
        width = np.maximum(outer[locations.site], 1)
        channel = (locations.element // np.maximum(inner[locations.site], 1)) % width
        return np.where(outer[locations.site] > 0, channel, -1)

    def steps(self, locations: Locations) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the time step of each location, -1 in sites that have none, and the element within it, (n,) each.

        >>> space = FaultSpace((Site("lif:state.v", (4, 10), kind="state", steps=(3, 7)),))
        >>> space.steps(space.locate([22 * 32]))
        (array([5]), array([2]))
        """
        first = np.array([-1 if site.steps is None else site.steps[0] for site in self.sites], dtype=np.int64)
        each = np.array([max(site.per_step, 1) for site in self.sites], dtype=np.int64)
        passed, inside = np.divmod(locations.element, each[locations.site])
        return first[locations.site] + passed, inside

    @cached_property
    def cells(self) -> Cells:
        """A cell for each site and bit, sites in order and bits from the lowest up; places are elements."""
        bits = [np.array(site.bits, dtype=np.int64) for site in self.sites]
        group = np.repeat(np.arange(len(bits)), [len(part) for part in bits])
        sizes = np.array([site.elements for site in self.sites], dtype=np.int64)[group]
        return Cells(sizes, group, np.concatenate(bits))

    @cached_property
    def _first_cells(self) -> Ints:
        """The number of the first cell of each site."""
        count = self._bits[0]
        return np.cumsum(count) - count

    def cell_of(self, index: ArrayLike) -> Ints:
        """Return the cell of each fault number, shape (n,).

        >>> FaultSpace((Site("a", (2,), bits=(3, 5)), Site("b", (1,), bits=(7,)))).cell_of([0, 1, 2, 4])
        array([0, 1, 0, 2])
        """
        where = self.locate(index)
        return np.asarray(self._first_cells[where.site] + self._bits[2][where.site, where.bit])

    def place_of(self, index: ArrayLike) -> Ints:
        """Return the element that each fault number strikes, shape (n,)."""
        return self.locate(index).element

    def number_of(self, cell: ArrayLike, place: ArrayLike) -> Ints:
        """Return the fault number at each element of a cell, shape (n,).

        >>> FaultSpace((Site("a", (2,), bits=(3, 5)), Site("b", (1,), bits=(7,)))).number_of([1, 2], [1, 0])
        array([3, 4])
        """
        which, where = np.asarray(cell, dtype=np.int64), np.asarray(place, dtype=np.int64)
        site = self.cells.group[which]
        return np.asarray(self._offsets[site] + where * self._bits[0][site] + which - self._first_cells[site])

    def flips(self, index: ArrayLike) -> tuple[Ints, Ints, Ints]:
        """Return every fault of the words that *index* is in: the row of *index*, its number and its bit, (n,) each.

        >>> FaultSpace((Site("a", (2,), bits=(3, 5)),)).flips([2])
        (array([0, 0]), array([2, 3]), array([3, 5]))
        """
        where = self.locate(index)
        count, forward, backward = self._bits
        row = np.repeat(np.arange(len(where.site)), count[where.site])
        ordinal = np.arange(len(row)) - np.repeat(np.cumsum(count[where.site]) - count[where.site], count[where.site])
        first = _whole(index, "fault numbers") - backward[where.site, where.bit]
        return row, first[row] + ordinal, forward[where.site[row], ordinal].astype(np.int64)

    @property
    def groupings(self) -> tuple[str, ...]:
        """The names that :meth:`axis` takes."""
        return GROUPINGS

    def axis(self, by: str) -> Axis:
        """Return the groups of a table by ``model``, ``site``, ``layer``, ``channel``, ``bit``, ``kind`` or ``step``.

        Layers are modules, channels keys such as ``conv1.weight[3]`` (or the site alone where it has none), and the
        step is -1 in sites without time steps. Raises :class:`SpaceError` for another name.

        >>> FaultSpace((Site("a", (2,), bits=(3, 5)), Site("b", (1,), bits=(5,)))).axis("bit").faults
        array([2, 3])
        """
        if by not in self.groupings:
            near = did_you_mean(by, self.groupings)
            raise SpaceError(f"faults are grouped by {', '.join(self.groupings)}, got '{by}'{near}")
        return axis_of(self, by)

    def columns(self, index: ArrayLike) -> dict[str, NDArray[Any]]:
        """Return site, kind, layer, element, bit and channel of each fault, and its step where sites have steps."""
        where, sites = self.locate(index), self.sites
        table: dict[str, NDArray[Any]] = {
            name: np.array([getattr(site, held) for site in sites])[where.site]
            for name, held in (("site", "name"), ("kind", "kind"), ("layer", "module"))
        }
        table |= {"element": where.element, "bit": where.bit, "channel": self.channels(where)}
        if any(site.steps for site in sites):
            table |= dict(zip(("step", "element"), self.steps(where), strict=True))
        return table

    def plain(self) -> dict[str, Any]:
        """Return the sites in JSON values; :func:`as_space` reads them.

        >>> space = FaultSpace((Site("a", (2,), bits=(3, 5)),))
        >>> as_space(space.plain()) == space
        True
        """
        return {"kind": "faults", "sites": [site.plain() for site in self.sites]}

    def select(
        self,
        names: str | Iterable[str] = "*",
        *,
        exclude: str | Iterable[str] = (),
        kinds: str | Iterable[str] = (),
        types: str | Iterable[str] = (),
        bits: Iterable[int] = (),
        steps: tuple[int, int] | None = None,
    ) -> "FaultSpace":
        """Return the part of the space that every filter admits.

        *names*, *exclude* and *types* (of the module) are globs, or regular expressions behind ``re:``; *kinds* are
        exact (``weight``, ``bias``, ``norm``, ``buffer``, ``input``, ``output``, ...); *bits* are bit positions.
        *steps* ``(3, 7)`` keeps the time steps 3 to 6 of the sites that have steps; the others stay as they are.
        A site with none of the *bits* or *steps* is left out. Raises :class:`SpaceError`, with a suggestion, for a
        pattern, a bit or a step that matches nothing.

        >>> space = FaultSpace((Site("conv1.weight", (4,)), Site("fc.bias", (2,), kind="bias")))
        >>> space.select("re:fc|head", kinds="bias", bits=[30, 31]).names
        ('fc.bias',)
        >>> space.select("convl*")
        Traceback (most recent call last):
        torchfault.errors.SpaceError: no site matches 'convl*'; did you mean 'conv1*'?
        """
        wanted = {"exclude": exclude, "kinds": kinds, "types": types}
        return FaultSpace(tuple(select_sites(self.sites, names, **wanted, bits=bits, steps=steps)))

    def table(self) -> "pd.DataFrame":
        """Return a data frame with one row per site: name, kind, module type, shape, word, bits, elements, faults.

        >>> FaultSpace((Site("fc.weight", (10, 64)),)).table()["faults"].tolist()
        [20480]
        """
        import pandas as pd

        shapes = ["x".join(map(str, s.shape)) or "scalar" for s in self.sites]
        rows = [
            (s.name, s.kind, s.module_type, shape, s.word, len(s.bits), s.elements, s.size)
            for s, shape in zip(self.sites, shapes, strict=True)
        ]
        return pd.DataFrame(rows, columns=["site", "kind", "type", "shape", "word", "bits", "elements", "faults"])

    def digest(self) -> str:
        """Return a SHA-256 over everything that decides which fault a number means."""
        # Only sites with steps have them in their row: the digests of all others are as they always were.
        rows = [(s.name, s.shape, s.word, s.width, s.kind, s.bits, *(s.steps or ())) for s in self.sites]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def _whole(values: ArrayLike, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    # A mask of booleans or a float index would otherwise turn into the numbers of other faults without a word.
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise SpaceError(f"{what} are whole numbers below 2^63, got {array.dtype}; convert them")
    return array.astype(np.int64).reshape(-1)


def as_space(plain: Mapping[str, Any]) -> FaultSpace:
    """Return the fault space that :meth:`FaultSpace.plain` wrote; raises :class:`SpaceError` for anything else."""
    try:
        return FaultSpace(tuple(Site.from_plain(row) for row in plain["sites"]))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise SpaceError(f"a fault space is written as a list of sites, got {error!r}; restore the file") from None
