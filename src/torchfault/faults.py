"""Fault models, and trials: which words of which sites change how, together, on which input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.errors import FaultError
from torchfault.space import Fault, FaultSpace, Locations, Site
from torchfault.words import WordFormat, decode, encode, word

__all__ = [
    "DEAD",
    "SATURATED",
    "BitFlip",
    "Burst",
    "FaultModel",
    "Lasting",
    "RandomWord",
    "StuckAt",
    "Trials",
    "Value",
    "pack",
    "rank_in_run",
    "strike",
]

Masks = NDArray[np.uint64]
_ONE = np.uint64(1)


class FaultModel(Protocol):
    """How a word changes: for words of one format and the struck *bit* of each, the masks of ``(w & keep) ^ toggle``.

    Models are frozen values, hashable and comparable, so that a trial can hold several.
    """

    def masks(self, word: WordFormat, bit: NDArray[Any], *, rng: np.random.Generator) -> tuple[Masks, Masks]:
        """Return the masks *keep* and *toggle* of *bit*, shape (n,) each; randomness comes from *rng* alone."""
        ...


def _full(fmt: WordFormat) -> np.uint64:
    return np.uint64((1 << fmt.width) - 1)


def _one_hot(bit: NDArray[Any]) -> Masks:
    return np.asarray(_ONE << np.asarray(bit).astype(np.uint64))


@dataclass(frozen=True)
class BitFlip:
    """A transient upset: the struck bit is inverted.

    >>> keep, toggle = BitFlip().masks(word("int8"), np.array([7]), rng=np.random.default_rng(0))
    >>> int(keep[0]), int(toggle[0])
    (255, 128)
    """

    def masks(self, word: WordFormat, bit: NDArray[Any], *, rng: np.random.Generator) -> tuple[Masks, Masks]:
        """Return masks that invert *bit*."""
        del rng
        toggle = _one_hot(bit)
        return np.full_like(toggle, _full(word)), toggle


@dataclass(frozen=True)
class StuckAt:
    """A permanent fault: the struck bit reads *level*, 0 or 1, whatever was stored.

    >>> keep, toggle = StuckAt(1).masks(word("int8"), np.array([0]), rng=np.random.default_rng(0))
    >>> int(keep[0]), int(toggle[0])
    (254, 1)
    """

    level: int

    def __post_init__(self) -> None:
        if self.level not in (0, 1):
            raise FaultError(f"a bit is stuck at 0 or 1, got {self.level}; use StuckAt(0) or StuckAt(1)")

    def masks(self, word: WordFormat, bit: NDArray[Any], *, rng: np.random.Generator) -> tuple[Masks, Masks]:
        """Return masks that force *bit*."""
        del rng
        hot = _one_hot(bit)
        return hot ^ _full(word), hot * np.uint64(self.level)


@dataclass(frozen=True)
class Burst:
    """A multiple-bit upset: *length* adjacent bits, from the struck one upwards, are inverted; the word's end cuts it.

    >>> keep, toggle = Burst(3).masks(word("int8"), np.array([1, 6]), rng=np.random.default_rng(0))
    >>> [bin(int(t)) for t in toggle]
    ['0b1110', '0b11000000']
    """

    length: int

    def __post_init__(self) -> None:
        if not 1 <= self.length <= 64:
            raise FaultError(f"a burst is 1 to 64 bits long, got {self.length}")

    def masks(self, word: WordFormat, bit: NDArray[Any], *, rng: np.random.Generator) -> tuple[Masks, Masks]:
        """Return masks that invert the burst beginning at *bit*."""
        del rng
        run = np.uint64((1 << self.length) - 1)
        toggle = (run << np.asarray(bit).astype(np.uint64)) & _full(word)
        return np.full_like(toggle, _full(word)), toggle


@dataclass(frozen=True)
class RandomWord:
    """The whole word is replaced by uniformly random bits; the struck bit does not matter.

    >>> keep, toggle = RandomWord().masks(word("int8"), np.array([0, 0]), rng=np.random.default_rng(1))
    >>> keep.tolist(), bool((toggle < 256).all())
    ([0, 0], True)
    """

    def masks(self, word: WordFormat, bit: NDArray[Any], *, rng: np.random.Generator) -> tuple[Masks, Masks]:
        """Return masks that overwrite the word."""
        toggle = rng.integers(0, int(_full(word)), size=len(bit), dtype=np.uint64, endpoint=True)
        return np.zeros_like(toggle), toggle


@dataclass(frozen=True)
class Value:
    """The whole word is replaced by *value*, rounded to the word's format; the struck bit does not matter.

    :meth:`masks` raises :class:`FaultError` where the format cannot hold the value: 300 in int8, infinity in
    float8_e4m3fn, 1e300 in float32, 0.5 in any integer.

    >>> keep, toggle = Value(1.0).masks(word("float32"), np.array([0]), rng=np.random.default_rng(0))
    >>> hex(int(toggle[0]))
    '0x3f800000'
    """

    value: float

    def masks(self, word: WordFormat, bit: NDArray[Any], *, rng: np.random.Generator) -> tuple[Masks, Masks]:
        """Return masks that write the value."""
        del rng
        stored = _rounded(self.value, word) if word.dtype.is_floating_point else _whole(self.value, word)
        if stored is None:
            raise FaultError(f"{word.name} words cannot hold {self.value}; choose a value that fits, or other sites")
        toggle = np.full(len(bit), int(encode(stored, word).item()) & int(_full(word)), dtype=np.uint64)
        return np.zeros_like(toggle), toggle


@dataclass(frozen=True)
class Lasting:
    """A fault that stays: *model* strikes at the time step of the fault and at all later ones, or at *steps* in all.

    Sites without time steps (weights, or activations computed once) are struck as by *model* alone.

    >>> space = FaultSpace((Site("lif:state.v", (5, 2), kind="state", steps=(0, 5)),))
    >>> where = space.locate([space.index(Fault("lif:state.v", 1, bit=30, step=2))])
    >>> stuck, brief = Lasting(StuckAt(1)), Lasting(BitFlip(), steps=2)
    >>> strike(space, where, model=stuck, rng=np.random.default_rng(0)).element.tolist()
    [5, 7, 9]
    >>> strike(space, where, model=brief, rng=np.random.default_rng(0)).element.tolist()
    [5, 7]
    """

    model: FaultModel
    steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, Lasting) or (self.steps is not None and self.steps < 1):
            raise FaultError(f"a lasting fault has a model that is none itself, and 1 step or more; got {self}")

    def masks(self, word: WordFormat, bit: NDArray[Any], *, rng: np.random.Generator) -> tuple[Masks, Masks]:
        """Return the masks of the model, the same for all steps."""
        return self.model.masks(word, bit, rng=rng)

    def spread(self, sites: Sequence[Site], where: Locations) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row of *where* and the flat element for every step at which its faults strike, shape (m,) each."""
        each = np.array([max(site.per_step, 1) for site in sites])[where.site]
        length = np.array([site.duration - site.steps[0] if site.steps else 0 for site in sites])[where.site]
        left = length - where.element // each
        times = np.where(length == 0, 1, left if self.steps is None else np.minimum(left, self.steps))
        row = np.repeat(np.arange(len(times)), times)
        passed = np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)
        return row, where.element[row] + passed * each[row]


DEAD = Lasting(Value(0.0))
"""A dead neuron: from the step of the fault on its output is 0, whatever it computes."""

SATURATED = Lasting(Value(1.0))
"""A saturated neuron: from the step of the fault on it spikes at every step."""


def _rounded(value: float, fmt: WordFormat) -> Tensor | None:
    """Return *value* in a floating-point format, ``None`` where it is out of range."""
    if math.isfinite(value) and abs(value) > torch.finfo(fmt.dtype).max:
        return None
    stored = torch.tensor(value, dtype=torch.float64).to(fmt.dtype)
    # Some formats have no infinity, and turn it into their largest value.
    end = decode(encode(torch.tensor(math.copysign(math.inf, value), dtype=torch.float64).to(fmt.dtype), fmt), fmt)
    held = decode(encode(stored, fmt), fmt)
    beyond = held == end and held != stored  # what is too large comes out as the end of the format
    return None if beyond or bool(held.double().isinf()) != math.isinf(value) else stored


def _whole(value: float, fmt: WordFormat) -> Tensor | None:
    """Return *value* in an integer format, ``None`` where it is no whole number or outside the format's range."""
    low, high = (0, 1) if fmt.dtype == torch.bool else (torch.iinfo(fmt.dtype).min, torch.iinfo(fmt.dtype).max)
    if not math.isfinite(value) or value != int(value) or not low <= value <= high:
        return None
    stored = torch.tensor(int(value), dtype=fmt.dtype)
    return stored if bool(decode(encode(stored, fmt), fmt) == stored) else None


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials in columns: trial i strikes rows ``offsets[i]:offsets[i + 1]`` and runs on input ``inputs[i]``.

    A row edits one word: ``(w & keep) ^ toggle`` at flat *element* of ``sites[site]``; no trial edits a word twice,
    since :func:`strike` merges such faults. In a site with some of the time steps alone, an element past its end lies
    in a later step, which a :class:`Lasting` fault has reached. *offsets* has shape (n + 1,), *inputs* (n,), the other
    columns (m,).

    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> trials = strike(space, space.locate([3, 65]), model=BitFlip(), rng=np.random.default_rng(0))
    >>> len(trials), trials.element.tolist(), trials.toggle.tolist()
    (2, [0, 2], [8, 2])
    """

    sites: tuple[Site, ...]
    offsets: NDArray[np.int64]
    inputs: NDArray[np.int64]
    site: NDArray[np.int32]
    element: NDArray[np.int64]
    keep: Masks
    toggle: Masks

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The trial of each row, shape (m,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def take(self, order: NDArray[np.int64]) -> "Trials":
        """Return the trials at positions *order*, in that order."""
        counts = np.diff(self.offsets)[order]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        rows = np.repeat(self.offsets[:-1][order] - offsets[:-1], counts) + np.arange(offsets[-1])
        columns = (self.site[rows], self.element[rows], self.keep[rows], self.toggle[rows])
        return Trials(self.sites, offsets, self.inputs[order], *columns)

    def on(self, inputs: NDArray[np.int64]) -> "Trials":
        """Return every trial once on each of *inputs*, trial by trial."""
        repeated = self.take(np.repeat(np.arange(len(self)), len(inputs)))
        everywhere = np.tile(np.asarray(inputs, dtype=np.int64), len(self))
        return Trials(
            self.sites, repeated.offsets, everywhere, repeated.site, repeated.element, repeated.keep, repeated.toggle
        )


def strike(
    space: FaultSpace,
    locations: Locations,
    *,
    model: FaultModel,
    rng: np.random.Generator,
    counts: NDArray[np.int64] | None = None,
    inputs: NDArray[np.int64] | None = None,
) -> Trials:
    """Return the trials that strike *locations*, each changed by *model*.

    *counts* gives the faults of each trial (one each unless told) and *inputs* the input of each trial (0 unless
    told), both of shape (trials,). Raises :class:`FaultError` where the counts do not add up or the inputs do not
    match them.

    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> both = strike(space, space.locate([3, 3]), model=BitFlip(), rng=np.random.default_rng(0), counts=np.array([2]))
    >>> both.toggle.tolist()  # the same bit flipped twice is as it was
    [0]
    """
    keep, toggle = _masks(space.sites, locations, model, rng)
    counts = np.ones(len(keep), dtype=np.int64) if counts is None else np.asarray(counts, dtype=np.int64)
    if counts.sum() != len(keep) or (counts < 1).any():
        raise FaultError(
            f"every trial needs at least one fault and all together {len(keep)}, the number of locations; "
            f"got {len(counts)} counts with a sum of {counts.sum()}"
        )
    inputs = np.zeros(len(counts), dtype=np.int64) if inputs is None else np.asarray(inputs, dtype=np.int64)
    if inputs.shape != counts.shape:
        raise FaultError(f"every trial runs on one input, got {len(inputs)} inputs for {len(counts)} trials")
    if isinstance(model, Lasting):
        row, element = model.spread(space.sites, locations)
        counts = np.bincount(np.repeat(np.arange(len(counts)), counts)[row], minlength=len(counts))
        return _merge(space.sites, counts, inputs, (locations.site[row], element, keep[row], toggle[row]))
    return _merge(space.sites, counts, inputs, (locations.site, locations.element, keep, toggle))


def pack(space: FaultSpace, faults: Sequence[Fault], *, rng: np.random.Generator | None = None) -> Trials:
    """Return one trial that strikes all *faults* together, each by its own model, on input 0.

    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> pack(space, [Fault("fc.weight", 1, 0), Fault("fc.weight", 1, 2, StuckAt(0))]).keep.tolist()
    [4294967291]
    """
    if not faults:
        raise FaultError("a trial needs at least one fault, got none")
    where = space.locate([space.index(fault) for fault in faults])
    generator = rng or np.random.default_rng()
    groups: dict[FaultModel, list[int]] = {}
    for row, fault in enumerate(faults):
        groups.setdefault(fault.model or BitFlip(), []).append(row)
    order, columns = [], []
    for model, rows in groups.items():
        part = Locations(where.site[rows], where.element[rows], where.bit[rows])
        keep, toggle = _masks(space.sites, part, model, generator)
        which, element = np.arange(len(rows)), part.element
        if isinstance(model, Lasting):
            which, element = model.spread(space.sites, part)
        order.append(np.array(rows)[which])
        columns.append((part.site[which], element, keep[which], toggle[which]))
    # Back into the order of the faults: two in one word are composed in it.
    sort = np.argsort(np.concatenate(order), kind="stable")
    site, element, keep, toggle = (np.concatenate(parts)[sort] for parts in zip(*columns, strict=True))
    return _merge(space.sites, np.array([len(sort)]), np.zeros(1, dtype=np.int64), (site, element, keep, toggle))


def _masks(
    sites: tuple[Site, ...], where: Locations, model: FaultModel, rng: np.random.Generator
) -> tuple[Masks, Masks]:
    """Ask *model* for its masks, word format by word format, in the fixed order of the sites."""
    keep, toggle = np.empty(len(where.site), dtype=np.uint64), np.empty(len(where.site), dtype=np.uint64)
    formats = np.array([site.word for site in sites])[where.site]
    for name in dict.fromkeys(site.word for site in sites):
        rows = np.flatnonzero(formats == name)
        if rows.size:
            keep[rows], toggle[rows] = model.masks(word(name), where.bit[rows], rng=rng)
    return keep, toggle


def rank_in_run(fresh: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return 0, 1, ... within each run, where *fresh* marks the first of every run, shape (n,).

    >>> rank_in_run(np.array([True, True, False, False])).tolist()
    [0, 0, 1, 2]
    """
    start = np.flatnonzero(fresh)
    return np.arange(len(fresh)) - np.repeat(start, np.diff(np.append(start, len(fresh))))


def _merge(
    sites: tuple[Site, ...],
    counts: NDArray[np.int64],
    inputs: NDArray[np.int64],
    columns: tuple[NDArray[np.int32], NDArray[np.int64], Masks, Masks],
) -> Trials:
    """Compose edits of the same word in the same trial, in their order, so that every word is edited once."""
    owner = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((columns[1], columns[0], owner))
    owner, site, element = owner[order], columns[0][order], columns[1][order]
    keep, toggle = columns[2][order], columns[3][order]
    fresh = np.ones(len(owner), dtype=bool)
    fresh[1:] = (owner[1:] != owner[:-1]) | (site[1:] != site[:-1]) | (element[1:] != element[:-1])
    if not fresh.all():
        start = np.flatnonzero(fresh)
        rank = rank_in_run(fresh)
        home = np.cumsum(fresh) - 1
        merged_keep, merged_toggle = keep[start].copy(), toggle[start].copy()
        for level in range(1, int(rank.max()) + 1):
            rows = np.flatnonzero(rank == level)
            merged_toggle[home[rows]] = (merged_toggle[home[rows]] & keep[rows]) ^ toggle[rows]
            merged_keep[home[rows]] &= keep[rows]
        owner, site, element, keep, toggle = owner[start], site[start], element[start], merged_keep, merged_toggle
    offsets = np.searchsorted(owner, np.arange(len(counts) + 1)).astype(np.int64)
    return Trials(sites, offsets, inputs, site.astype(np.int32), element.astype(np.int64), keep, toggle)
