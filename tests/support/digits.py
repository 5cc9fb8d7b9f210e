"""A small data set for the command line: images of the shape of digits, with labels."""

from pathlib import Path

import numpy as np

__all__ = ["save_digits"]


def save_digits(folder: Path, inputs: int) -> None:
    """Write ``digits.npz`` with so many random *inputs* into *folder*: always the same."""
    rng = np.random.default_rng(3)
    images, labels = rng.random((inputs, 1, 8, 8), dtype=np.float32), rng.integers(0, 10, inputs)
    np.savez(folder / "digits.npz", images=images, labels=labels)
