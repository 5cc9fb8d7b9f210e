"""One site of a fault space, and one fault in it; NumPy only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import SpaceError
from torchfault.names.word_names import width_of
from torchfault.text import visible

__all__ = ["ACTIVATION_KINDS", "Fault", "Site"]

ACTIVATION_KINDS = frozenset({"data", "input", "output", "state"})


class _Model(Protocol):
    """What a fault carries besides its place; the fault models themselves live in :mod:`torchfault.faults`."""

    def masks(self, word: Any, bit: Any, *, rng: np.random.Generator) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Site:
    """One tensor in which faults can land, such as ``conv1.weight`` or ``conv1:input``.

    *shape* leaves out the batch axis for activations. *word* names the format of one element, which says its *width*
    in bits; *bits* are those that belong to the fault space (all of them unless told). *channel* is the axis of
    *shape* along which results are grouped by channel. With *steps* ``(first, end)`` the first axis of *shape* counts
    the time steps from ``first`` to ``end - 1``, at each of which the tensor is computed anew; *duration* is the number
    of steps that the model runs in all (``end`` unless told).

    Raises :class:`SpaceError` for a name that no file could hold (a lone surrogate), an unknown format of words (unless
    *width* is given), a negative size, a bit outside the word, a channel axis outside the shape, or steps that are not
    as many as the first axis is long.

    >>> site = Site("fc.weight", (10, 64), word="int8", module="fc", module_type="Linear")
    >>> site.elements, site.size
    (640, 5120)
    """

    name: str
    shape: tuple[int, ...]
    word: str = "float32"
    width: int = 0
    kind: str = "weight"
    module: str = ""
    module_type: str = ""
    bits: tuple[int, ...] = ()
    channel: int | None = None
    steps: tuple[int, int] | None = None
    duration: int = 0

    def __post_init__(self) -> None:
        if any("\ud800" <= letter <= "\udfff" for letter in self.name + self.module):
            raise SpaceError(f"a site has a name that can be written, got '{visible(self.name)}'; rename the module")
        width = width_of(self.word)
        if self.width == 0 and width is None:
            raise SpaceError(f"site '{self.name}' has words of an unknown format, '{self.word}'; give their width")
        if width is not None and self.width > 0 and self.width != width:
            raise SpaceError(f"{self.word} words have {width} bits, got {self.width} for '{self.name}'; leave it out")
        object.__setattr__(self, "width", self.width or width)
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
        if self.steps is not None:
            first, end = (int(step) for step in self.steps)
            object.__setattr__(self, "steps", (first, end))
            object.__setattr__(self, "duration", int(self.duration) or end)
            if not 0 <= first <= end <= self.duration or self.shape[:1] != (end - first,):
                raise SpaceError(f"the first axis of '{self.name}' {self.shape} counts its steps, got {self.steps}")

    @cached_property
    def elements(self) -> int:
        """The number of words in the tensor."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """The number of faults: elements times bits."""
        return self.elements * len(self.bits)

    @property
    def channels(self) -> int:
        """The number of channels, 1 where there is no such axis."""
        return 1 if self.channel is None else self.shape[self.channel]

    def channel_of(self, element: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the channel of flat elements, (n,); 0 where there is no such axis."""
        if self.channel is None:
            return np.zeros_like(element)
        return np.asarray(element // math.prod(self.shape[self.channel + 1 :]) % self.channels)

    def in_channel(self, channel: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the flat elements of the words numbered *place* in each *channel*, (n,) or of shapes that broadcast.

        >>> Site("conv.weight", (8, 2, 3, 3), channel=1).in_channel(np.array([1]), np.array([10]))
        array([28])
        """
        if self.channel is None:
            return place
        inner = math.prod(self.shape[self.channel + 1 :])
        return np.asarray((place // inner * self.channels + channel) * inner + place % inner)

    @property
    def per_step(self) -> int:
        """The number of words in the tensor at one time step; all of them where there are no steps."""
        return self.elements if self.steps is None else math.prod(self.shape[1:])

    @property
    def is_activation(self) -> bool:
        """Whether the tensor is computed anew for every input."""
        return self.kind in ACTIVATION_KINDS

    def plain(self) -> dict[str, Any]:
        """Return the site in JSON values, which :meth:`from_plain` reads."""
        row: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "word": self.word, "width": self.width}
        row |= {"kind": self.kind, "module": self.module, "module_type": self.module_type, "channel": self.channel}
        row |= {} if self.bits == tuple(range(self.width)) else {"bits": list(self.bits)}
        return row if self.steps is None else row | {"steps": list(self.steps), "duration": self.duration}

    @classmethod
    def from_plain(cls, row: Mapping[str, Any]) -> "Site":
        """Return the site that :meth:`plain` wrote.

        >>> site = Site("lif:state.v", (4, 10), kind="state", steps=(3, 7), bits=(31,))
        >>> Site.from_plain(site.plain()) == site
        True
        """
        steps = tuple(row["steps"]) if "steps" in row else None
        held: dict[str, Any] = {**row, "shape": tuple(row["shape"]), "bits": tuple(row.get("bits", ())), "steps": steps}
        return cls(**held)

    def part_of(self, whole: "Site") -> bool:
        """Whether this is *whole*, or some of its bits and time steps.

        >>> whole = Site("lif:state.v", (25, 10), kind="state", steps=(0, 25))
        >>> Site("lif:state.v", (4, 10), kind="state", steps=(3, 7), duration=25, bits=(31,)).part_of(whole)
        True
        """
        if self.steps is None or whole.steps is None:
            return replace(self, bits=()) == replace(whole, bits=())
        inside = whole.steps[0] <= self.steps[0] <= self.steps[1] <= whole.steps[1]
        shape = (*whole.shape[:1], *self.shape[1:])
        longer = replace(self, bits=(), steps=whole.steps, duration=whole.duration, shape=shape)
        return inside and self.duration == whole.duration and longer == replace(whole, bits=())

    def flat(self, element: int | Sequence[int], *, step: int | None = None) -> int:
        """Return the flat position of *element*, given flat or as one index per axis; negative ones are refused.

        With *step*, the element is one of the tensor at that time step.

        >>> Site("conv.weight", (8, 1, 3, 3)).flat((2, 0, 1, 1))
        22
        >>> Site("lif:state.v", (4, 10), kind="state", steps=(3, 7)).flat(2, step=5)
        22
        """
        if step is not None:
            return self._begin(step) + replace(self, shape=self.shape[1:], steps=None, channel=None).flat(element)
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

    def _begin(self, step: int) -> int:
        """Return the flat position of the first element at time step *step*."""
        if self.steps is None:
            raise SpaceError(f"'{self.name}' has no time steps, got step {step}; leave it out")
        if not self.steps[0] <= step < self.steps[1]:
            raise SpaceError(f"step {step} is outside '{self.name}'; use {self.steps[0]} to {self.steps[1] - 1}")
        return (step - self.steps[0]) * self.per_step


@dataclass(frozen=True)
class Fault:
    """One fault: a site, an element (flat, or one index per axis), a bit and how the word is changed.

    *model* is a fault model of :mod:`torchfault.faults`; ``None`` means a bit flip. *sample* restricts an activation
    fault to one element of the batch; ``None`` strikes every one. *step* is the time step of a site that has steps;
    *element* is then one of the tensor at that step.

    >>> Fault("conv1.weight", (3, 0, 1, 1), bit=30)
    Fault(site='conv1.weight', element=(3, 0, 1, 1), bit=30, model=None, sample=None, step=None)
    >>> Fault("lif1:state.mem", 12, bit=30, step=3).step
    3
    """

    site: str
    element: int | tuple[int, ...]
    bit: int
    model: _Model | None = None
    sample: int | None = None
    step: int | None = None
