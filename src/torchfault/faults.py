"""Fault models: how a struck word changes, as masks of its bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.errors import FaultError
from torchfault.space import Locations, Site
from torchfault.words import WordFormat, decode, encode

__all__ = [
    "DEAD",
    "SATURATED",
    "BitFlip",
    "Burst",
    "FaultModel",
    "Lasting",
    "RandomWord",
    "StuckAt",
    "Value",
]

Masks = NDArray[np.uint64]
_ONE = np.uint64(1)
_MOVED = ("Trials", "pack", "strike")


def __getattr__(name: str) -> Any:
    """Return what scripts import from here and what has a module of its own by now."""
    if name in _MOVED:
        return getattr(import_module("torchfault.trials"), name)
    raise AttributeError(f"module 'torchfault.faults' has no attribute '{name}'")


@runtime_checkable
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

    >>> from torchfault.words import word
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

    >>> from torchfault.words import word
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

    >>> from torchfault.words import word
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

    >>> from torchfault.words import word
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

    >>> from torchfault.words import word
    >>> keep, toggle = Value(1.0).masks(word("float32"), np.array([0]), rng=np.random.default_rng(0))
    >>> hex(int(toggle[0]))
    '0x3f800000'
    """

    value: float

    def masks(self, word: WordFormat, bit: NDArray[Any], *, rng: np.random.Generator) -> tuple[Masks, Masks]:
        """Return masks that write the value."""
        del rng
        kept_by = _rounded if word.dtype.is_floating_point else _whole
        stored = None if word.halves else kept_by(self.value, word)
        if stored is None:
            raise FaultError(f"{word.name} words cannot hold {self.value}; choose a value that fits, or other sites")
        toggle = np.full(len(bit), int(encode(stored, word).item()) & int(_full(word)), dtype=np.uint64)
        return np.zeros_like(toggle), toggle


@dataclass(frozen=True)
class Lasting:
    """A fault that stays: *model* strikes at the time step of the fault and at all later ones, or at *steps* in all.

    Sites without time steps (weights, or activations computed once) are struck as by *model* alone.

    >>> from torchfault.space import Fault, FaultSpace
    >>> from torchfault.trials import strike
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
    beyond |= held.double() * value < 0 or (
        value == 0 and held.double() != 0
    )  # there are no signs, and there is no zero
    return None if beyond or bool(held.double().isinf()) != math.isinf(value) else stored


def _whole(value: float, fmt: WordFormat) -> Tensor | None:
    """Return *value* in an integer format, ``None`` where it is no whole number or outside the format's range."""
    low, high = (0, 1) if fmt.dtype == torch.bool else (torch.iinfo(fmt.dtype).min, torch.iinfo(fmt.dtype).max)
    if not math.isfinite(value) or value != int(value) or not low <= value <= high:
        return None
    stored = torch.tensor(int(value), dtype=fmt.dtype)
    return stored if bool(decode(encode(stored, fmt), fmt) == stored) else None
