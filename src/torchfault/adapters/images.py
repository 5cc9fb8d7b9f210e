"""A folder of images, one sub-folder for each class, in the precision that the files have."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchfault.data import Data
from torchfault.errors import DataError, TorchfaultError, brief
from torchfault.files import unreadable

__all__ = ["read_folder"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_TWELVE, _SIXTEEN = 4095, 65535  # the white of so many bits
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose whole numbers beyond 8 bits Pillow gives in 16, whatever type holds them


def read_folder(folder: Path, *, size: Sequence[int] | None, grey: bool, limit: int | None) -> Data:
    """Return the images in *folder*, float32 (N, C, H, W), and the place of their sub-folder among all, by name.

    Images of 8 and of 16 bits become 0 to 1; those of floating-point numbers stay as they are. *grey* gives one channel
    instead of three, *size* is (height, width), and *limit* keeps the first so many. Raises :class:`DataError`.
    """
    chosen = _chosen(folder, limit)
    images = [_image(path, size, grey=grey) for path, _ in chosen]
    odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None:
        raise DataError(
            f"images differ in size: '{chosen[0][0].name}' {images[0].shape[1:]}, '{chosen[odd][0].name}' "
            f"{images[odd].shape[1:]}; give size: [height, width]"
        )
    return Data(torch.from_numpy(np.stack(images)), torch.tensor([label for _, label in chosen]))


def _chosen(folder: Path, limit: int | None) -> list[tuple[Path, int]]:
    """Return the images and their classes, which take turns, so that a limit does not keep the first class alone."""
    try:
        classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        lists = [sorted(path for path in one.rglob("*") if path.suffix.lower() in _SUFFIXES) for one in classes]
    except OSError as error:
        raise DataError(f"the folder '{folder}' cannot be read ({error.strerror or error})") from None
    if not classes or not any(lists):
        what = "no sub-folders" if not classes else f"no images ({', '.join(_SUFFIXES[:3])}, ...) in its sub-folders"
        raise DataError(f"'{folder}' has {what}; it needs one sub-folder of images per class")
    turns = chain.from_iterable(zip_longest(*([(path, label) for path in one] for label, one in enumerate(lists))))
    chosen = [pair for pair in turns if pair is not None]
    if limit is not None and limit > len(chosen):
        raise DataError(f"a limit of {limit} inputs is more than the {len(chosen)} there are; lower or remove it")
    return chosen[:limit]


def _image(path: Path, size: Sequence[int] | None, *, grey: bool) -> NDArray[np.float32]:
    """Return one image, (C, H, W)."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DataError("a folder of images needs the package pillow; install it: pip install pillow") from None
    if (why := unreadable(path)) is not None:
        raise DataError(f"'{path}' {why}; mend or remove it")
    try:
        with Image.open(path) as opened:
            deep = _deep(opened)
            image = opened.convert("L" if grey else "RGB") if deep is None else Image.fromarray(deep)
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except TorchfaultError:
        raise
    except Exception as error:
        raise DataError(f"'{path}' is not a readable image ({brief(error)}); mend or remove it") from None
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    values = planes.astype(np.float32) / (np.float32(255) if deep is None else np.float32(1))
    return np.ascontiguousarray(values if grey or len(values) == 3 else values.repeat(3, axis=0))


def _deep(image: Any) -> NDArray[np.float32] | None:
    """Return the values of an image of one channel with more than 8 bits, ``None`` for one of 8; refuse the others."""
    layout = [part for tile in image.tile for part in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        white = _TWELVE if "I;12" in layout else _SIXTEEN
        return np.asarray(image).astype(np.float32) / np.float32(white)
    if image.mode == "F":
        return np.asarray(image).astype(np.float32)
    if image.mode == "I":
        raise DataError(f"'{image.filename}' holds whole numbers of unknown scale; save the images as float32")
    whites = [part for part in layout if isinstance(part, int)] if image.format == "PPM" else []
    if any(";16" in str(part) for part in layout) or max(whites, default=0) > 255:
        raise DataError(
            f"'{image.filename}' has more than 8 bits per colour, of which Pillow reads 8; save the images as float32 "
            "in an .npz file"
        )
    return None
