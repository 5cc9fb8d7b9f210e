"""The fault space: sites, and every (site, element, bit) numbered from 0 to N - 1 in closed form; NumPy only."""

import fnmatch
import hashlib
import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import SpaceError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ACTIVATION_KINDS", "Fault", "FaultSpace", "Locations", "Site"]

ACTIVATION_KINDS = frozenset({"input", "output", "state"})
_LARGEST = np.iinfo(np.int64).max


class _Model(Protocol):
    """What a fault carries besides its place; the fault models themselves live in :mod:`torchfault.faults`."""

    def masks(self, word: Any, bit: Any, *, rng: np.random.Generator) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Site:
    """One tensor in which faults can land, such as ``conv1.weight`` or ``conv1:input``.

    *shape* leaves out the batch axis for activations. *word* names the format of one element and *width* counts its
    bits; *bits* are those that belong to the fault space (all of them unless told). *channel* is the axis of
    *shape* along which results are grouped by channel.

    Raises :class:`SpaceError` for a negative size, a bit outside the word or a channel axis outside the shape.

    >>> site = Site("fc.weight", (10, 64), word="int8", width=8, module="fc", module_type="Linear")
    >>> site.elements, site.size
    (640, 5120)
    """

    name: str
    shape: tuple[int, ...]
    word: str = "float32"
    width: int = 32
    kind: str = "weight"
    module: str = ""
    module_type: str = ""
    bits: tuple[int, ...] = ()
    channel: int | None = None

    def __post_init__(self) -> None:
        bits = tuple(sorted(set(self.bits))) or tuple(range(self.width))
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.width < 1 or any(n < 0 for n in self.shape):
            raise SpaceError(f"site '{self.name}' needs a positive width and sizes, got {self.width} and {self.shape}")
        for bit in (bits[0], bits[-1]):
            if not 0 <= bit < self.width:
                raise SpaceError(f"bit {bit} is outside '{self.name}' ({self.word} words); use 0 to {self.width - 1}")
        if self.channel is not None and not 0 <= self.channel < len(self.shape):
            raise SpaceError(f"the channel axis of '{self.name}' is one of its {len(self.shape)}, got {self.channel}")

    @cached_property
    def elements(self) -> int:
        """The number of words in the tensor."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """The number of faults: elements times bits."""
        return self.elements * len(self.bits)

    @property
    def is_activation(self) -> bool:
        """Whether the tensor is computed anew for every input."""
        return self.kind in ACTIVATION_KINDS

    def flat(self, element: int | Sequence[int]) -> int:
        """Return the flat position of *element*, given flat or as one index per axis; negative ones are refused.

        >>> Site("conv.weight", (8, 1, 3, 3)).flat((2, 0, 1, 1))
        22
        """
        if isinstance(element, int | np.integer):
            flat = int(element)
            inside = 0 <= flat < self.elements
        else:
            inside = len(element) == len(self.shape) and all(
                0 <= i < n for i, n in zip(element, self.shape, strict=False)
            )
            flat = int(np.ravel_multi_index(tuple(element), self.shape)) if inside and self.shape else 0
        if not inside:
            raise SpaceError(
                f"element {element} is outside '{self.name}' of shape {self.shape}; "
                f"use 0 to {self.elements - 1} or one index per axis"
            )
        return flat


@dataclass(frozen=True)
class Fault:
    """One fault: a site, an element (flat, or one index per axis), a bit and how the word is changed.

    *model* is a fault model of :mod:`torchfault.faults`; ``None`` means a bit flip. *sample* restricts an activation
    fault to one element of the batch; ``None`` strikes every one.

    >>> Fault("conv1.weight", (3, 0, 1, 1), bit=30)
    Fault(site='conv1.weight', element=(3, 0, 1, 1), bit=30, model=None, sample=None)
    """

    site: str
    element: int | tuple[int, ...]
    bit: int
    model: _Model | None = None
    sample: int | None = None


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
    (11520, Fault(site='conv.weight', element=1, bit=9, model=None, sample=None))
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
        site, element, bit = self.locate([operator.index(index)])
        return Fault(self.sites[int(site[0])].name, int(element[0]), int(bit[0]))

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
        element = site.flat(fault.element)
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
        outer = np.array([s.shape[s.channel] if s.channel is not None else 0 for s in self.sites], dtype=np.int64)
        width = np.maximum(outer[locations.site], 1)
        channel = (locations.element // np.maximum(inner[locations.site], 1)) % width
        return np.where(outer[locations.site] > 0, channel, -1)

    def select(
        self,
        names: str | Iterable[str] = "*",
        *,
        exclude: str | Iterable[str] = (),
        kinds: str | Iterable[str] = (),
        types: str | Iterable[str] = (),
        bits: Iterable[int] = (),
    ) -> "FaultSpace":
        """Return the part of the space that every filter admits.

        *names*, *exclude* and *types* (of the module) are globs, or regular expressions behind ``re:``; *kinds* are
        exact (``weight``, ``bias``, ``norm``, ``buffer``, ``input``, ``output``, ...); *bits* are bit positions.
        A site with none of the *bits* is left out. Raises :class:`SpaceError`, with a suggestion, for a pattern or
        a bit that matches nothing.

        >>> space = FaultSpace((Site("conv1.weight", (4,)), Site("fc.bias", (2,), kind="bias")))
        >>> space.select("re:fc|head", kinds="bias", bits=[30, 31]).names
        ('fc.bias',)
        >>> space.select("convl*")
        Traceback (most recent call last):
        torchfault.errors.SpaceError: no site matches 'convl*'; did you mean 'conv1*'?
        """
        kept = _matching(self.sites, names, "name")
        dropped = _matching(self.sites, exclude, "name")
        by_kind = _matching(self.sites, kinds, "kind") if _listed(kinds) else set(range(len(self.sites)))
        by_type = _matching(self.sites, types, "module_type") if _listed(types) else set(range(len(self.sites)))
        chosen = sorted((kept & by_kind & by_type) - dropped)
        if not chosen:
            raise SpaceError("no site passes all the filters together; loosen one of names, exclude, kinds or types")
        wanted = set(bits)
        sites = [self.sites[i] for i in chosen]
        if wanted:
            held = {bit for site in sites for bit in site.bits}
            if not wanted <= held:
                lacking, widest = sorted(wanted - held), max(held)
                raise SpaceError(f"no chosen site has the bits {lacking}; the highest is {widest}, see space.table()")
            sites = [replace(s, bits=tuple(wanted & set(s.bits))) for s in sites if wanted & set(s.bits)]
        return FaultSpace(tuple(sites))

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
        rows = [(s.name, s.shape, s.word, s.width, s.kind, s.bits) for s in self.sites]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def _whole(values: ArrayLike, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    # A mask of booleans or a float index would otherwise turn into the numbers of other faults without a word.
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise SpaceError(f"{what} are whole numbers below 2^63, got {array.dtype}; convert them")
    return array.astype(np.int64).reshape(-1)


def _listed(patterns: str | Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _matching(sites: Sequence[Site], patterns: str | Iterable[str], attribute: str) -> set[int]:
    """Return the positions of the sites whose *attribute* fits any pattern; each pattern must fit at least one."""
    known = [str(getattr(site, attribute)) for site in sites]
    found: set[int] = set()
    for pattern in _listed(patterns):
        try:
            glob = re.compile(fnmatch.translate(pattern)).match
            fits = re.compile(pattern[3:]).search if pattern.startswith("re:") else glob
            hits = {i for i, name in enumerate(known) if fits(name)}
        except re.error as error:
            raise SpaceError(f"'{pattern}' is not a regular expression ({error}); use re:<expression>") from None
        if not hits:
            what = "site" if attribute == "name" else f"site of {attribute.replace('_', ' ')}"
            raise SpaceError(f"no {what} matches '{pattern}'{_suggest(pattern, known)}")
        found |= hits
    return found


def _suggest(pattern: str, known: Sequence[str]) -> str:
    """Suggest names near *pattern*; for a glob with a star at its end, near beginnings."""
    if pattern.endswith("*") and len(pattern) > 1:
        stem = pattern.rstrip("*")
        return did_you_mean(pattern, dict.fromkeys(name[: len(stem)] + "*" for name in known))
    return did_you_mean(pattern, dict.fromkeys(known))
