"""Data by name or as they are: a file, a folder, a factory, arrays, a data set, a loader, random inputs of a shape."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from torchfault.adapters.arrays import class_numbers, inputs_of, read_arrays
from torchfault.adapters.images import read_folder
from torchfault.data import Data, Tree, concatenate, leaves
from torchfault.errors import DataError, TorchfaultError, brief
from torchfault.files import unreadable

__all__ = ["as_data", "load_data", "random_data"]

_WANTED = "give Data, a tensor, an (inputs, labels) pair, a data set or a DataLoader"


def load_data(
    source: str | Path | Callable[..., Any],
    *,
    kwargs: Mapping[str, Any] | None = None,
    inputs: str | None = None,
    labels: str | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    size: Sequence[int] | None = None,
    grey: bool = False,
    limit: int | None = None,
) -> Data:
    """Return inputs and labels from *source*: an ``.npz`` file, a folder of images, or a factory to call with *kwargs*.

    uint8 arrays of shape (N, H, W), (N, H, W, C) or (N, C, H, W) are images, and become float32 (N, C, H, W) scaled to
    0..1, as do those of a folder; other arrays stay as they are. Images are then reduced by *mean* and divided by *std*
    per channel. *inputs* and *labels* name arrays of an ``.npz`` file, *size* (height, width) and *grey* belong to a
    folder with one sub-folder per class, and *limit* keeps the first so many inputs. A factory returns whatever
    :func:`as_data` takes. Raises :class:`DataError`.

    >>> images, classes = torch.zeros(3, 1, 4, 4), torch.tensor([0, 1, 1])
    >>> data = load_data(lambda: (images, classes), mean=[0.5], std=[0.5], limit=2)
    >>> len(data), float(data.inputs.min())
    (2, -1.0)
    """
    if callable(source):
        data = _made(source, dict(kwargs or {}), limit)
    elif unreadable(source) == "is a folder":
        data = read_folder(Path(source), size=size, grey=grey, limit=limit)
    else:
        data = read_arrays(Path(source), inputs, labels)
    if limit is not None and limit > len(data):
        raise DataError(f"a limit of {limit} inputs is more than the {len(data)} there are; lower or remove it")
    data = data.take(slice(0, limit)) if limit is not None else data
    return Data(_normalised(data.inputs, mean, std), data.labels) if mean else data


def random_data(shape: Sequence[int], *, inputs: int, seed: int) -> Data:
    """Return *inputs* inputs of *shape*, drawn from the standard normal distribution; no labels.

    >>> random_data((3, 8, 8), inputs=2, seed=0).inputs.shape
    torch.Size([2, 3, 8, 8])
    """
    generator = torch.Generator().manual_seed(seed)
    try:
        return Data(torch.randn((inputs, *shape), generator=generator))
    except (RuntimeError, MemoryError) as error:  # too many for the memory, or for torch to count
        raise DataError(
            f"{inputs} random inputs of shape {tuple(shape)} do not fit in memory ({brief(error)})"
        ) from None


def as_data(given: Any, *, limit: int | None = None) -> Data:
    """Return *given* as :class:`Data`, with no more than the first *limit* inputs read where they come one by one.

    A tensor or an array is inputs alone, and so is a mapping of keyword arguments, as tokenizers give them. A *tuple*
    of two is inputs and labels, where the inputs may be a tuple of positional arguments themselves. A data set, a list
    of its items, or a ``DataLoader`` gives inputs, or (input, label) pairs; a loader that shuffles does so from a fixed
    seed. Arrays are read as :func:`load_data` reads them. Raises :class:`DataError` for anything else.

    >>> len(as_data(np.zeros((4, 2)))), as_data((torch.zeros(3, 2), [0, 2, 1])).labels
    (4, tensor([0, 2, 1]))
    >>> as_data([(torch.zeros(2), 1), (torch.ones(2), 0)]).inputs
    tensor([[0., 0.],
            [1., 1.]])
    """
    if isinstance(given, Data):
        return given
    try:
        if isinstance(given, tuple):
            return _pair(given)
        if isinstance(given, Tensor | Mapping) or _is_array(given):
            return Data(_inputs(given))
        if isinstance(given, list) and _is_listed_pair(given):
            return _pair(tuple(given))
        if isinstance(given, DataLoader):
            return _loaded(given, limit)
        if not isinstance(given, str | bytes | IterableDataset) and hasattr(given, "__getitem__"):
            count = len(given) if limit is None else min(limit, len(given))
            return _collected([given[i] for i in range(count)])
        if not isinstance(given, str | bytes) and hasattr(given, "__iter__"):
            return _collected(_first(given, limit))
    except TorchfaultError:
        raise
    except Exception as error:
        kind = type(given).__name__
        raise DataError(f"no data can be made of an object of type {kind} ({brief(error)}); {_WANTED}") from error
    read = "; read a file with torchfault.adapters.load.load_data" if isinstance(given, str | Path) else f"; {_WANTED}"
    raise DataError(f"expected data, got an object of type {type(given).__name__}{read}")


def _is_listed_pair(given: list[Any]) -> bool:
    """Return whether a list is inputs and labels of as many rows, which differ in shape as no two items would."""
    if len(given) != 2 or not all(isinstance(part, Tensor) or _is_array(part) for part in given):
        return False
    one, two = (tuple(part.shape) if isinstance(part, Tensor) else _array(part).shape for part in given)
    return one != two and one[:1] == two[:1] != ()


def _pair(given: tuple[Any, ...]) -> Data:
    """Return what a tuple holds: inputs and labels, or inputs alone."""
    if len(given) == 1:
        return Data(_inputs(given[0]))
    if len(given) != 2:
        raise DataError(
            f"a tuple holds inputs and labels, got {len(given)} parts; "
            "give ((first, second), labels) for a model of several inputs"
        )
    inputs, labels = given
    return Data(_inputs(inputs), None if labels is None else _labels(labels))


def _inputs(tree: Any) -> Tree:
    if isinstance(tree, Mapping):
        return {key: _inputs(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_inputs(part) for part in tree)
    return inputs_of(_array(tree)) if _is_array(tree) else tree


def _labels(tree: Any) -> Tree:
    if isinstance(tree, Mapping):
        return {key: _labels(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_labels(part) for part in tree)
    if _is_array(tree):
        return class_numbers(_array(tree))
    if not isinstance(tree, Tensor):
        raise DataError(f"labels are numbers, got an object of type {type(tree).__name__}; number the classes from 0")
    return tree


def _is_array(value: Any) -> bool:
    """Return whether *value* is an array of another library, or nested lists of numbers."""
    if isinstance(value, list):
        while isinstance(value, list) and value:
            value = value[0]
        return isinstance(value, bool | int | float | np.generic)
    return hasattr(value, "__array__") and not isinstance(value, Tensor)


def _array(value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    return np.asarray(value)


def _loaded(loader: "DataLoader[Any]", limit: int | None) -> Data:
    """Return the inputs of a loader, batch by batch until there are enough."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # a loader that shuffles gives the same inputs each time, or no campaign could be resumed
        if loader.batch_sampler is None:  # it gives single items
            return _collected(list(islice(loader, limit)))
        batches: list[Data] = []
        for batch in loader:
            batches.append(_batch(batch))
            if limit is not None and sum(map(len, batches)) >= limit:
                break
    if not batches:
        raise DataError("the DataLoader gives no batch; check its data set and drop_last")
    labels = None if batches[0].labels is None else concatenate([data.labels for data in batches])
    return Data(concatenate([data.inputs for data in batches]), labels)


def _first(items: Iterable[Any], limit: int | None) -> list[Any]:
    if limit is None and not hasattr(items, "__len__"):
        raise DataError(f"an object of type {type(items).__name__} does not say how many inputs it has; give a limit")
    return list(islice(items, limit))


def _collected(items: Sequence[Any]) -> Data:
    """Return the items of a data set, (input, label) pairs or inputs alone, as one batch."""
    if not items:
        raise DataError("the data set is empty; give one with inputs")
    return _batch(default_collate(list(items)))


def _batch(batch: Any) -> Data:
    """Return a batch as collated: of pairs it is a list of two."""
    if not leaves(batch):
        raise DataError(f"the items of a data set need tensors or numbers, got {type(batch).__name__}")
    return _pair(tuple(batch)) if isinstance(batch, list | tuple) else Data(_inputs(batch))


def _normalised(inputs: Any, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.ndim < 3 or not inputs.is_floating_point():
        raise DataError("mean and std are for images of shape (N, C, H, W); remove them for other inputs")
    if inputs.shape[1] != len(mean):
        raise DataError(f"mean and std need one number per channel, got {len(mean)} for {inputs.shape[1]} channels")
    shape = (1, -1, *[1] * (inputs.ndim - 2))
    centre, spread = (torch.tensor(values, dtype=inputs.dtype).reshape(shape) for values in (mean, std))
    return ((inputs - centre) / spread).contiguous()


def _made(factory: Callable[..., Any], options: dict[str, Any], limit: int | None) -> Data:
    """Call the user's factory and take what it returns."""
    name = getattr(factory, "__qualname__", str(factory))
    try:
        made = factory(**options)
    except TorchfaultError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"the data factory '{name}' failed: {brief(error)}") from error
    try:
        return as_data(made, limit=limit)
    except DataError as error:
        kind = type(made).__name__
        raise DataError(f"the data factory '{name}' returned an object of type {kind}: {error}") from error.__cause__
