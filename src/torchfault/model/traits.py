"""What tensors and modules are: their words, their channels, whether they compute at all or by chance."""

from collections.abc import Sequence
from numbers import Integral
from types import EllipsisType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.model.foreign import coded_word, foreign, of_tensor
from torchfault.model.lane_axis import LaneAxis
from torchfault.names.word_names import width_of

__all__ = [
    "channel_axis",
    "codes",
    "computes_nothing",
    "is_leaf",
    "leaf_paths",
    "sampled",
    "slices",
    "varies",
    "word_name",
]

_SAMPLE = 64
_SLICES = (Integral, slice, NoneType, EllipsisType)
_CHANNEL_FIRST = ("conv", "batchnorm", "instancenorm", "groupnorm", "pool", "pixel", "upsample", "interpolate")
_CHANNEL_LAST = ("linear", "layernorm", "rmsnorm", "embedding", "lstm", "gru", "rnn", "matmul", "attention")
_NOTHING = ("Dropout", "AlphaDropout", "FeatureAlphaDropout", "Identity", "Flatten", "Unflatten")


def word_name(tensor: Tensor) -> str:
    """Return the name of the tensor's word format, empty where it has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    return coded_word(tensor) or (name if width_of(name) and tensor.layout == torch.strided else "")


def codes(tensor: Tensor) -> Tensor:
    """Return the integer codes that a tensor holds in the same memory, and a plain one as it is."""
    room = of_tensor(tensor)
    return tensor if room is None else room.codes(tensor)


def sampled(tensor: Tensor) -> Tensor:
    """Return a few of the values of *tensor*, of a sparse one of those it holds, by which to tell it from its like."""
    held = codes(tensor.detach())
    if held.layout is not torch.strided:
        held = held.coalesce().values() if held.layout is torch.sparse_coo else held.values()
    flat = held.reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLE)].clone()


def is_leaf(module: nn.Module) -> bool:
    """Whether *module* has no children, but for those in which layers of other libraries hold their parts.

    >>> is_leaf(nn.Linear(2, 1)), is_leaf(nn.Sequential(nn.Linear(2, 1)))
    (True, False)
    """
    if any(room.is_whole(module) for room in foreign()):
        return True
    return all(any(room.is_part(child) for room in foreign()) for child in module.children())


def leaf_paths(model: nn.Module) -> list[str]:
    """Return the paths of the modules without children, whose inputs and outputs are sites."""
    return [path for path, module in model.named_modules() if path and is_leaf(module)]


def channel_axis(operation: str, shape: Sequence[int], layout: LaneAxis) -> int | None:
    """Return the axis of channels: by the operation where it decides, else the first of images, the last of tokens."""
    if not shape:
        return None
    plain = operation.lower().replace("_", "")
    ahead = int(layout.axis == 0 and not layout.plain)  # the axis merged with the batch stands before the channels
    if any(part in plain for part in _CHANNEL_FIRST):
        return min(ahead, len(shape) - 1)
    if any(part in plain for part in _CHANNEL_LAST) or len(shape) - ahead == 2:
        return len(shape) - 1
    return min(ahead, len(shape) - 1)


def computes_nothing(module: nn.Module) -> bool:
    """Whether *module* gives what it reads, in another shape at most."""
    return type(module).__name__.rstrip("123d") in _NOTHING


def varies(module: nn.Module) -> bool:
    """Whether chance, or the rest of the batch, has a part in what one of torch's own layers computes, as it stands."""
    if not module.training:
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return float(module.dropout) > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RReLU)


def slices(function: Any, args: Sequence[Any]) -> bool:
    """Whether a call of *function* looks at a part of a tensor by numbers and slices: a view, nothing is computed.

    >>> x = torch.zeros(3, 4)
    >>> [slices(Tensor.__getitem__, (x, index)) for index in (1, (slice(2), None), ([0, 2],), (..., torch.tensor(1)))]
    [True, True, False, False]
    """
    if function is not Tensor.__getitem__:
        return False
    parts = args[1] if isinstance(args[1], tuple) else (args[1],)
    return all(isinstance(part, _SLICES) and not isinstance(part, bool) for part in parts)
