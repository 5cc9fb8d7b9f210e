"""The test images of CIFAR-10, from the files of its authors: found, never downloaded."""

import os
import tarfile
from pathlib import Path

import numpy as np
import torch

from torchfault.adapters.arrays import read_arrays
from torchfault.data import Data
from torchfault.errors import DataError, brief

__all__ = ["images"]

_ARCHIVE = "cifar-10-binary.tar.gz"
_BATCH = "cifar-10-batches-bin/test_batch.bin"
_SAVED = "cifar10_test_1000.npz"  # a random part of the test images, for our own tests
_SHAPE = (3, 32, 32)
_ROW = 1 + 3 * 32 * 32  # bytes of a label and an image, channel by channel


def images() -> Data:
    """Return the test images of CIFAR-10, float32 (N, 3, 32, 32) from 0 to 1, and their labels, int64 (N,).

    It looks into the folder that the environment variable ``TORCHFAULT_DATA`` names, ``data`` in the working directory
    and ``~/.cache/torchfault`` for the archive ``cifar-10-binary.tar.gz`` of Krizhevsky (2009), for what is in it, or
    for an ``.npz`` file of a part. Raises :class:`DataError` where there is none, or a damaged one.
    """
    for folder in _folders():
        if (file := folder / _BATCH).is_file():
            return _decoded(file.read_bytes(), file)
        if (file := folder / _ARCHIVE).is_file():
            return _decoded(_unpacked(file), file)
        if (file := folder / _SAVED).is_file():
            return read_arrays(file)
    looked = ", ".join(str(folder) for folder in _folders())
    raise DataError(
        f"the images of CIFAR-10 are not on this machine (looked into {looked}): put {_ARCHIVE} of "
        "https://www.cs.toronto.edu/~kriz/cifar.html there (162 MB), or try examples/digits.yaml, which needs nothing"
    )


def _folders() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchfault"
    named = os.environ.get("TORCHFAULT_DATA")
    return [*([Path(named)] if named else []), Path("data"), cache]


def _unpacked(file: Path) -> bytes:
    try:
        with tarfile.open(file) as held, held.extractfile(_BATCH) as opened:  # type: ignore[union-attr]
            return opened.read()
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise DataError(f"'{file}' is damaged ({brief(error)}); download it anew") from None


def _decoded(held: bytes, file: Path) -> Data:
    """Return the images and labels of rows of bytes."""
    if not held or len(held) % _ROW:
        raise DataError(f"'{file}' holds {len(held):,} bytes, expected rows of {_ROW:,}; download it anew")
    table = np.frombuffer(held, np.uint8).reshape(-1, _ROW)
    scaled = torch.from_numpy(table[:, 1:].reshape(-1, *_SHAPE).copy()).float().div(255)
    return Data(scaled, torch.from_numpy(table[:, 0].astype(np.int64)))
