"""Data by name: an ``.npz`` file, a folder of images, a factory of the user's own, or random inputs of a shape."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Data
from torchfault.errors import DataError, TorchfaultError, did_you_mean

__all__ = ["load_data", "random_data"]

_INPUTS = ("inputs", "images", "x", "data")
_LABELS = ("labels", "targets", "y")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_CHANNELS = (1, 3, 4)


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

    Images, uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W), become float32 (N, C, H, W) scaled to 0..1, less
    *mean* and over *std* per channel; other arrays stay as they are. *inputs* and *labels* name arrays of an ``.npz``
    file, *size* (height, width) and *grey* belong to a folder with one sub-folder per class, and *limit* keeps the
    first so many inputs. Raises :class:`DataError`.

    >>> images, classes = torch.zeros(3, 1, 4, 4), torch.tensor([0, 1, 1])
    >>> data = load_data(lambda: (images, classes), mean=[0.5], std=[0.5], limit=2)
    >>> len(data), float(data.inputs.min())
    (2, -1.0)
    """
    if callable(source):
        data = _made(source, dict(kwargs or {}), limit)
    elif Path(source).is_dir():
        data = _folder(Path(source), size=size, grey=grey, limit=limit)
    else:
        data = _arrays(Path(source), inputs, labels)
    if limit is not None and limit > len(data):
        raise DataError(f"a limit of {limit} inputs is more than the {len(data)} there are; lower or remove it")
    data = data.take(slice(0, limit)) if limit is not None else data
    return Data(_normalised(data.inputs, mean, std), data.labels) if mean else data


def random_data(shape: Sequence[int], *, inputs: int, seed: int) -> Data:
    """Return *inputs* inputs of *shape*, drawn from the standard normal distribution; no labels.

    >>> random_data((3, 8, 8), inputs=2, seed=0).inputs.shape
    torch.Size([2, 3, 8, 8])
    """
    return Data(torch.randn((inputs, *shape), generator=torch.Generator().manual_seed(seed)))


def _arrays(file: Path, inputs: str | None, labels: str | None) -> Data:
    """Read an ``.npz`` file."""
    if not file.exists():
        raise DataError(f"there are no data at '{file}'; give an .npz file, a folder of images or a factory")
    if file.suffix != ".npz":
        raise DataError(f"data are an .npz file or a folder of images, got '{file.name}'; save them with numpy.savez")
    if not zipfile.is_zipfile(file):
        raise DataError(f"'{file.name}' is not an .npz file, or it is cut short; save the arrays with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as held:
            names = list(held.files)
            values = _array(held, _find(names, inputs, _INPUTS, file), file)
            wanted = labels or next((name for name in _LABELS if name in names), None)
            classes = _array(held, _find(names, wanted, (), file), file) if wanted else None
    except TorchfaultError:
        raise
    except Exception as error:
        raise DataError(f"'{file.name}' is not a readable .npz file: {str(error).splitlines()[0] or 'empty'}") from None
    if classes is not None and len(classes) != len(values):
        raise DataError(f"'{file.name}' holds {len(values)} inputs but {len(classes)} labels; every input needs one")
    return Data(_as_images(values), None if classes is None else _labels(classes, file))


def _find(names: list[str], wanted: str | None, usual: Sequence[str], file: Path) -> str:
    if wanted is None:
        found = next((name for name in usual if name in names), None)
        if found is None:
            raise DataError(f"'{file.name}' holds {', '.join(names) or 'nothing'}; say which array are the inputs")
        return found
    if wanted not in names:
        hint = did_you_mean(wanted, names) or f"; it holds {', '.join(names) or 'nothing'}"
        raise DataError(f"'{file.name}' has no array '{wanted}'{hint}")
    return wanted


def _array(held: Mapping[str, NDArray[Any]], name: str, file: Path) -> NDArray[Any]:
    try:
        array = np.asarray(held[name])
    except ValueError:
        raise DataError(f"array '{name}' in '{file.name}' holds Python objects; save plain numbers instead") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"array '{name}' in '{file.name}' holds {array.dtype}; numbers are needed")
    if array.ndim == 0 or not array.size:
        raise DataError(f"array '{name}' in '{file.name}' has shape {array.shape}; it needs a row for every input")
    return array


def _labels(classes: NDArray[Any], file: Path) -> Tensor:
    flat = classes.reshape(len(classes)) if classes.ndim == 2 and classes.shape[1] == 1 else classes
    if flat.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(flat))
    if flat.dtype.kind == "u" and flat.dtype.itemsize == 8 and flat.max() > np.iinfo(np.int64).max:
        raise DataError(f"labels in '{file.name}' go beyond 64-bit integers; number the classes from 0")
    return torch.from_numpy(np.ascontiguousarray(flat.astype(np.int64)))


def _as_images(values: NDArray[Any]) -> Tensor:
    """Return *values* as a tensor; images become float32 with channels first."""
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    square = values.ndim == 4 and values.shape[1] == values.shape[2]
    if values.ndim == 4 and values.shape[3] in _CHANNELS and (square or values.shape[1] not in _CHANNELS):
        values = values.transpose(0, 3, 1, 2)
    elif values.ndim == 3 and values.dtype == np.uint8:
        values = values[:, None]
    if values.dtype == np.uint8 and values.ndim == 4:
        return torch.from_numpy(np.ascontiguousarray(values)).float() / 255
    if values.dtype in (np.uint16, np.uint32, np.uint64):
        values = values.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="))))


def _normalised(inputs: Any, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.ndim < 3 or not inputs.is_floating_point():
        raise DataError("mean and std are for images of shape (N, C, H, W); remove them for other inputs")
    if inputs.shape[1] != len(mean):
        raise DataError(f"mean and std need one number per channel, got {len(mean)} for {inputs.shape[1]} channels")
    shape = (1, -1, *[1] * (inputs.ndim - 2))
    centre, spread = (torch.tensor(values, dtype=inputs.dtype).reshape(shape) for values in (mean, std))
    return ((inputs - centre) / spread).contiguous()


def _folder(folder: Path, *, size: Sequence[int] | None, grey: bool, limit: int | None) -> Data:
    """Read a folder of images: the sub-folders, in the order of their names, are the classes."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    lists = [sorted(path for path in one.rglob("*") if path.suffix.lower() in _SUFFIXES) for one in classes]
    if not classes or not any(lists):
        what = "no sub-folders" if not classes else f"no images ({', '.join(_SUFFIXES[:3])}, ...) in its sub-folders"
        raise DataError(f"'{folder}' has {what}; it needs one sub-folder of images per class")
    # Classes take turns, so that a limit does not keep the first class alone.
    turns = chain.from_iterable(zip_longest(*([(path, label) for path in one] for label, one in enumerate(lists))))
    chosen = [pair for pair in turns if pair is not None]
    if limit is not None and limit > len(chosen):
        raise DataError(f"a limit of {limit} inputs is more than the {len(chosen)} there are; lower or remove it")
    chosen = chosen[:limit]
    images = [_image(path, size, grey) for path, _ in chosen]
    odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None:
        raise DataError(
            f"images differ in size: '{chosen[0][0].name}' {images[0].shape[:2]}, '{chosen[odd][0].name}' "
            f"{images[odd].shape[:2]}; give size: [height, width]"
        )
    stacked = np.stack(images)
    labels = torch.tensor([label for _, label in chosen])
    return Data(torch.from_numpy(stacked.transpose(0, 3, 1, 2).copy()).float() / 255, labels)


def _image(path: Path, size: Sequence[int] | None, grey: bool) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DataError("a folder of images needs the package pillow; install it: pip install pillow") from None
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if grey else "RGB")
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, dtype=np.uint8)
    except Exception as error:
        raise DataError(f"'{path}' is not a readable image ({type(error).__name__}); mend or remove it") from None
    return pixels[:, :, None] if grey else pixels


def _made(factory: Callable[..., Any], options: dict[str, Any], limit: int | None) -> Data:
    """Call the user's factory and take what it returns."""
    name = getattr(factory, "__qualname__", str(factory))
    try:
        made = factory(**options)
        if isinstance(made, Data):
            return made
        if isinstance(made, Tensor):
            return Data(made)
        if isinstance(made, dict):
            return Data(made)
        pair = isinstance(made, tuple | list) and len(made) == 2
        if pair and all(isinstance(part, Tensor | dict | tuple) for part in made):
            return Data(made[0], made[1])
        if (
            not isinstance(made, str | bytes)
            and hasattr(made, "__len__")
            and hasattr(made, "__getitem__")
            and len(made)
        ):
            return _collected(made, len(made) if limit is None else min(limit, len(made)))
    except TorchfaultError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise DataError(f"the data factory '{name}' failed: {type(error).__name__}: {first}") from error
    raise DataError(
        f"the data factory '{name}' returned an object of type {type(made).__name__}; "
        f"return Data, (inputs, labels), inputs or a data set"
    )


def _collected(dataset: Any, count: int) -> Data:
    """Collate the first *count* items of a data set of (input, label) pairs or of inputs alone."""
    from torch.utils.data import default_collate

    batch = default_collate([dataset[i] for i in range(count)])
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    return Data(batch[0], batch[1]) if pair else Data(batch)
