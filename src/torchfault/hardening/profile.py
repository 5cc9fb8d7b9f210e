"""What the activations of a model are like without faults: ranges by channel of what every module reads and gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.data import Data, Tree, call, rows
from torchfault.errors import DataError, did_you_mean
from torchfault.hardening.reads import Reads
from torchfault.model.discover import check_inference
from torchfault.model.disturb import undisturbed
from torchfault.model.states import find_cells

__all__ = ["LEVELS", "Profile", "Range", "channel_axis", "profile"]

LEVELS = (0.0, 1e-4, 1e-3, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1 - 1e-4, 1.0)
"""The shares of values below the quantiles that a range keeps."""

_SAMPLE = 2**16  # values of a tensor kept for quantiles, of each batch


@dataclass(frozen=True, eq=False)
class Range:
    """The golden values of one tensor in *channels* along *axis*: *low*, *high* and *mean* of each, shape (channels,).

    *quantiles*, shape (levels, channels), are those at :data:`LEVELS`, of a sample of the values. *whole* and *steady*,
    booleans of shape (), tell whether all are whole numbers, as spikes and their counts are, and whether a module that
    runs several times in a pass reads or gives the same each time.
    """

    axis: int
    low: Tensor
    high: Tensor
    mean: Tensor
    quantiles: Tensor
    whole: Tensor
    steady: Tensor

    def bounds(self, *, share: float = 1.0, per: str = "layer") -> tuple[Tensor, Tensor]:
        """Return the bounds between which a *share* of the golden values lies, by ``channel`` or for the ``layer``.

        >>> found = profile(nn.Sequential(nn.ReLU()), torch.tensor([[1.0, -2.0], [3.0, 0.0]])).ranges["0:input"]
        >>> found.bounds(per="channel")
        (tensor([ 1., -2.]), tensor([3., 0.]))
        >>> found.bounds()
        (tensor(-2.), tensor(3.))
        """
        low, high = self.low, self.high
        if share < 1:
            tail = (1 - share) / 2
            low, high = (_between(self.quantiles, at) for at in (tail, 1 - tail))
        return (low, high) if per == "channel" else (low.min(), high.max())


@dataclass(frozen=True, eq=False)
class Profile:
    """The golden :class:`Range` of what modules read and give, by names such as ``conv1:input`` and ``conv1:output``.

    What the model itself gives is ``:output``, which is left out where it is not finite on some input; what a module
    holds of its time steps when a pass has ended is called as ``lif1:state.mem``.

    *outer* tells, for a module that reads the very tensor that a module around it reads, the outermost such module: a
    bound there holds for all who read the tensor. *inputs* is how many inputs it was taken from, and *reads* tells in
    the calls of which modules parameters and buffers were read.
    """

    ranges: Mapping[str, Range]
    outer: Mapping[str, str] = field(default_factory=dict)
    inputs: int = 0
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Range:
        if name not in self.ranges:
            raise DataError(f"the profile knows no '{name}'{did_you_mean(name, self.ranges)}")
        return self.ranges[name]


def channel_axis(tensor: Tensor) -> int:
    """Return the axis of the channels, from the end: the second for images and volumes (N, C, ...), else the last.

    >>> channel_axis(torch.zeros(2, 3, 8, 8)), channel_axis(torch.zeros(2, 7, 16))
    (-3, -1)
    """
    return 1 - tensor.ndim if tensor.ndim >= 4 else -1


def profile(model: nn.Module, data: Data | Tree, *, batch: int = 64) -> Profile:
    """Return the golden ranges of everything that the modules of *model* read first and give, over *data*.

    Tensors of floating point that hang on the inputs count, on all calls of a module together. The model runs in
    batches of *batch* inputs and is left as it was. Raises :class:`ModelError` in training mode, and
    :class:`DataError` where a golden value is no finite number.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    >>> sorted(profile(model, torch.ones(3, 2)).ranges)
    ['0:input', '0:output', '1:input', '1:output', ':output']
    """
    check_inference(model)
    if batch < 1:
        raise DataError(f"a batch has 1 input or more, got {batch}")
    data = data if isinstance(data, Data) else Data(data)
    watch, reads = _Watch(-(-len(data) // batch)), Reads(model)
    hooks: list[Any] = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: reads.begin(name), prepend=True))
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: watch.read(name, args)))
        hooks.append(module.register_forward_hook(lambda _, __, out, name=name: watch.gave(name, out)))
        hooks.append(module.register_forward_hook(lambda *_: reads.end(), always_call=True))
    try:
        with undisturbed(model), reads:
            for start in range(0, len(data), batch):
                watch.begin()
                call(model, rows(data.inputs, slice(start, start + batch)))
    finally:
        for hook in hooks:
            hook.remove()
    for name, value in _states(model, data, batch) if watch.again else ():
        watch.note(name, value)
    # an answer without finite numbers is told, with how many inputs have one, by what strikes the model
    ranges = {name: sums.range(name) for name, sums in watch.sums.items() if name != ":output" or sums.finite}
    return Profile(ranges, watch.outer, len(data), reads.found)


def _states(model: nn.Module, data: Data, batch: int) -> Iterator[tuple[str, Any]]:
    """Yield what modules still hold of their time steps, batch by batch, when *model* has run."""
    cells = find_cells(model, rows(data.inputs, slice(0, 2)))
    held = [(cell.path, slot) for cell in cells for slot in cell.held]
    with undisturbed(model):
        for start in range(0, len(data) if held else 0, batch):
            call(model, rows(data.inputs, slice(start, start + batch)))
            for path, slot in held:
                yield f"{path}:state.{slot.name}", slot.read(model.get_submodule(path))


class _Watch:
    """Gathers while the model runs; holds the tensors of one batch, so that no other takes their place in memory."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.sums: dict[str, _Sums] = {}
        self.outer: dict[str, str] = {}
        self.again = False  # whether a module was called more than once in a pass
        self._called: set[str] = set()
        self._readers: dict[int, list[str]] = {}
        self._held: list[Tensor] = []

    def begin(self) -> None:
        self._readers, self._held, self._called = {}, [], set()
        for sums in self.sums.values():
            sums.last = None

    def read(self, name: str, args: tuple[Any, ...]) -> None:
        if args and self.note(f"{name}:input", args[0]):
            readers = self._readers.setdefault(id(args[0]), [])
            around = next((one for one in readers if name.startswith(f"{one}.")), name)
            readers.append(name)
            self._held.append(args[0])
            self.outer[name] = around if self.outer.get(name, around) == around else name

    def gave(self, name: str, output: Any) -> None:
        self.again |= name in self._called
        self._called.add(name)
        self.note(f"{name}:output", output)

    def note(self, name: str, value: Any) -> bool:
        """Take a tensor of floating point with an axis of inputs and one of channels into account, or nothing."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            return False
        axis = channel_axis(value)
        known = self.sums.get(name)
        if known is not None and known.channels != value.shape[axis]:
            return False  # called with tensors of other shapes: the first one counts
        self.sums.setdefault(name, _Sums(axis, value, self.batches)).add(value)
        return True


class _Sums:
    """The running statistics of one tensor, of which a pass gives *like*, in so many *batches* at least.

    All memory is had at once: pieces that came later would lie between activations, which then find no room there.
    """

    def __init__(self, axis: int, like: Tensor, batches: int) -> None:
        self.axis, self.channels = axis, like.shape[axis]
        self.low, self.high = (like.new_full((self.channels,), end) for end in (torch.inf, -torch.inf))
        self.total = like.new_zeros(self.channels, dtype=torch.float64)
        self.count, self.sampled = 0, 0
        self.sample = like.new_empty((self.channels, 0), dtype=torch.float32)
        self.batches, self.whole, self.steady = batches, True, True
        self.last: Tensor | None = None  # what the module gave before, in this pass

    def add(self, value: Tensor) -> None:
        self.whole = self.whole and torch.equal(value.round(), value)
        self.steady = self.steady and (self.last is None or torch.equal(value, self.last))
        self.last = value.clone()
        flat = value.movedim(self.axis, 0).reshape(self.channels, -1)
        torch.minimum(self.low, flat.amin(1), out=self.low)
        torch.maximum(self.high, flat.amax(1), out=self.high)
        self.total += flat.double().sum(1)
        self.count += flat.shape[1]
        self._draw(flat[:, :: max(flat.numel() // _SAMPLE, 1)])

    def _draw(self, drawn: Tensor) -> None:
        first, self.sampled = self.sampled, self.sampled + drawn.shape[1]
        if self.sampled > self.sample.shape[1]:
            more = self.sample.new_empty((self.channels, first + drawn.shape[1] * self.batches))
            more[:, :first] = self.sample[:, :first]
            self.sample = more
        self.sample[:, first : self.sampled] = drawn

    @property
    def finite(self) -> bool:
        """Whether all values are finite numbers: NaN goes through minima and maxima."""
        return all(bool(bound.isfinite().all()) for bound in (self.low, self.high))

    def range(self, name: str) -> Range:
        if not self.finite:
            raise DataError(f"'{name}' is no finite number without faults; mend the model or its data")
        levels = torch.tensor(LEVELS, dtype=torch.float64)
        drawn = self.sample[:, : self.sampled].sort(dim=1).values
        quantiles = drawn[:, (levels * (drawn.shape[1] - 1)).round().long()].t().to(self.low.dtype)
        mean = (self.total / self.count).to(self.low.dtype)
        return Range(
            self.axis, self.low, self.high, mean, quantiles, torch.tensor(self.whole), torch.tensor(self.steady)
        )


def _between(quantiles: Tensor, at: float) -> Tensor:
    """Return the quantile at a share between those of :data:`LEVELS`, by interpolation."""
    above = next(i for i, level in enumerate(LEVELS) if level >= at)
    if above == 0:
        return quantiles[0]
    part = (at - LEVELS[above - 1]) / (LEVELS[above] - LEVELS[above - 1])
    return torch.lerp(quantiles[above - 1], quantiles[above], part)
