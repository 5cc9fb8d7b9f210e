"""NumPy arrays, alone or in an ``.npz`` file, as tensors: nothing is guessed but what is documented."""

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from torchfault.data import Data
from torchfault.errors import DataError, TorchfaultError, brief, did_you_mean
from torchfault.files import unreadable

__all__ = ["class_numbers", "inputs_of", "read_arrays"]

_INPUTS = ("inputs", "images", "x", "data")
_LABELS = ("labels", "targets", "y")
_CHANNELS = (1, 3, 4)
_WIDEST = 8  # bytes of a number that torch has a type for


def read_arrays(file: Path, inputs: str | None = None, labels: str | None = None) -> Data:
    """Return what the ``.npz`` *file* holds, from the arrays called *inputs* and *labels* or by the usual names.

    Raises :class:`DataError` for a file that is none, for arrays that are no numbers, and for ones that do not fit.
    """
    if (why := unreadable(file)) is not None:
        if why == "does not exist":
            raise DataError(f"there are no data at '{file}'; give an .npz file, a folder of images or a factory")
        raise DataError(f"the data '{file}' {why}; give an .npz file, a folder of images or a factory")
    if file.suffix != ".npz":
        raise DataError(f"data are an .npz file or a folder of images, got '{file.name}'; save them with numpy.savez")
    if not zipfile.is_zipfile(file):
        raise DataError(f"'{file.name}' is not an .npz file, or it is cut short; save the arrays with numpy.savez")
    try:
        with zipfile.ZipFile(file) as held:
            names = [name.removesuffix(".npy") for name in held.namelist()]
            values = _array(held, _find(names, inputs, _INPUTS, file), file)
            wanted = labels or next((name for name in _LABELS if name in names), None)
            classes = _array(held, _find(names, wanted, (), file), file) if wanted else None
    except TorchfaultError:
        raise
    except Exception as error:
        raise DataError(f"'{file.name}' is damaged ({brief(error)}); save the arrays anew with numpy.savez") from None
    if classes is not None and len(classes) != len(values):
        raise DataError(f"'{file.name}' holds {len(values)} inputs but {len(classes)} labels; every input needs one")
    return Data(inputs_of(values), None if classes is None else class_numbers(classes))


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


def _array(held: zipfile.ZipFile, name: str, file: Path) -> NDArray[Any]:
    """Read one array, once its header says that it is one of numbers, and no larger than what the file holds of it."""
    what = f"array '{name}' in '{file.name}'"
    member = next(one for one in held.infolist() if one.filename.removesuffix(".npy") == name)
    with held.open(member) as opened:
        shape, dtype = _header(opened)
        _check_type(dtype, what)
        if not shape or not math.prod(shape):
            raise DataError(f"{what} has shape {shape}; it needs a row for every input")
        size = math.prod(shape) * dtype.itemsize
        if size > member.file_size:
            raise ValueError(f"{name} says that it has {size} bytes, and {member.file_size} are there")
        if size > _memory():
            raise DataError(f"{what} has {size / 2**30:.1f} GiB, more than this machine has memory; save a part of it")
    with held.open(member) as opened:
        return np.asarray(npy.read_array(opened, allow_pickle=False))


def _memory() -> float:
    """Return the bytes of memory that this machine has, infinity where it does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _header(opened: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(opened)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(opened)
    return shape, dtype


def _check_type(dtype: np.dtype[Any], what: str) -> None:
    """Raise :class:`DataError` for an array of anything but numbers that torch has."""
    if dtype.hasobject:
        raise DataError(f"{what} holds Python objects; save plain numbers instead")
    if dtype.kind == "c":
        raise DataError(f"{what} holds complex numbers ({dtype}); save their parts along an axis of their own")
    if dtype.kind not in "biuf":
        raise DataError(f"{what} holds {dtype}; numbers are needed")
    if dtype.itemsize > _WIDEST:
        raise DataError(f"{what} holds {dtype}, which torch has no type for; save it as float64 or float32")


def inputs_of(values: NDArray[Any], what: str = "the array of inputs") -> Tensor:
    """Return inputs as a tensor.

    Only uint8 arrays are taken for images: (N, H, W) or (N, H, W, C) of 1, 3 or 4 channels become (N, C, H, W), as do
    ones that are so already, and 0 to 255 becomes 0 to 1. float64 becomes float32; everything else stays as it is.
    Raises :class:`DataError` for numbers that torch does not have, and for images of unknown scale or layout.

    >>> inputs_of(np.full((2, 8, 8, 3), 255, np.uint8)).shape, inputs_of(np.zeros((2, 8, 8, 3), np.float32)).shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 8, 8, 3]))
    """
    _check_type(values.dtype, what)
    kind, shape = values.dtype.newbyteorder("="), values.shape
    if kind == np.uint8 and values.ndim in (3, 4):
        values = values[:, None] if values.ndim == 3 else _channels_first(values)
        return _tensor(values.astype(np.float32)) / 255
    if kind.kind == "u" and kind.itemsize > 1:
        if values.ndim > 2:
            raise DataError(
                f"{what} holds {kind} {shape} up to {values.max()}, of unknown scale; for images save "
                f"x / {np.iinfo(kind).max} as float32 (N, C, H, W), for class numbers int64"
            )
        return _whole(values, what)
    return _tensor(values.astype(np.float32) if kind == np.float64 else values)


def _channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images (N, C, H, W), from those or from (N, H, W, C); where both could be, from the square ones."""
    last, first = images.shape[3] in _CHANNELS, images.shape[1] in _CHANNELS
    if last and first:
        if (images.shape[1] == images.shape[2]) == (images.shape[2] == images.shape[3]):
            raise DataError(
                f"images of shape {images.shape} may have their channels first or last; save x / 255 as float32 "
                "(N, C, H, W), which stays as it is"
            )
        last = images.shape[1] == images.shape[2]
    return images.transpose(0, 3, 1, 2) if last else images


def class_numbers(labels: NDArray[Any], what: str = "the array of labels") -> Tensor:
    """Return labels as a tensor: whole numbers as int64, an axis of length one behind the first left out.

    >>> class_numbers(np.array([[3], [1]], np.uint8))
    tensor([3, 1])
    """
    _check_type(labels.dtype, what)
    flat = labels.reshape(len(labels)) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    return _tensor(flat) if flat.dtype.kind == "f" else _whole(flat, what)


def _whole(values: NDArray[Any], what: str) -> Tensor:
    if values.dtype.kind == "u" and values.dtype.itemsize == _WIDEST and values.max() > np.iinfo(np.int64).max:
        raise DataError(f"{what} goes beyond 64-bit integers; number classes and tokens from 0")
    return _tensor(values.astype(np.int64))


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), order="C"))  # a copy: theirs may be read-only
