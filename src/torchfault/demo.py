"""The embedded example: scikit-learn's handwritten digits, and a small CNN trained on them on the spot, once."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torchfault.config import Override, Settings, read_settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchfault.data import Data

__all__ = ["data", "demo_settings", "is_trained", "model", "train"]

_TEST = 297  # of 1,797 images; the others are learnt
_SEED = 20261121
_EPOCHS, _BATCH, _RATE = 20, 100, 4e-3
_RECIPE = f"digits_cnn 1: {_EPOCHS} epochs, Adam {_RATE}, batch {_BATCH}, {_TEST} test images, seed {_SEED}"


def demo_settings(*, trials: int, seed: int) -> Settings:
    """Return the settings of the demo: one bit flip in any weight or activation, the model and data of this module.

    >>> demo_settings(trials=500, seed=0).model.factory
    'torchfault.demo:model'
    """
    return read_settings(
        None,
        [
            Override(("name",), "demo", "--name"),
            Override(("model",), "torchfault.demo:model", "--model"),
            Override(("data",), "torchfault.demo:data", "--data"),
            Override(("sites",), [{"kinds": ["weight", "output"], "types": ["Conv2d", "Linear"]}], "--kinds"),
            Override(("stop",), trials, "--trials"),
            Override(("seed",), seed, "--seed"),
        ],
    )


def data() -> "Data":
    """Return the 297 test images, float32 (297, 1, 8, 8) from 0 to 1, and their labels."""
    from torchfault.data import Data

    images, labels = _digits()
    return Data(images[-_TEST:].clone(), labels[-_TEST:].clone())


def model() -> "nn.Module":
    """Return the trained CNN: from the user's cache, or else trained, which takes a few seconds."""
    import torch

    from torchfault.adapters.checkpoint import load_checkpoint
    from torchfault.errors import ModelError
    from torchfault.zoo import digits_cnn

    file = _cache_file()
    if file.is_file():
        with torch.random.fork_rng(devices=()):
            kept = digits_cnn()
        try:
            load_checkpoint(kept, file)
            return kept
        except ModelError:  # cut short, or of another version: train anew
            file.unlink(missing_ok=True)
    network = train()
    _keep(network, file)
    return network


def is_trained() -> bool:
    """Return whether the trained CNN is in the user's cache."""
    return _cache_file().is_file()


def train() -> "nn.Module":
    """Return the CNN, trained on 1,500 images from fixed seeds; the caller's random state is left alone.

    One thread does it: at this size several cost more than they give, and how sums are split would change the weights.
    """
    import torch
    from torch.nn import functional as F

    from torchfault.zoo import digits_cnn

    images, labels = (part[:-_TEST] for part in _digits())
    with _one_thread(), torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        network = digits_cnn().train()
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(images)).reshape(-1, _BATCH):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(network(images[batch]), labels[batch]))
                optimizer.step()
    return network.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _digits() -> "tuple[Tensor, Tensor]":
    import torch
    from sklearn.datasets import load_digits

    held = load_digits()
    order = torch.randperm(len(held.target), generator=torch.Generator().manual_seed(_SEED))
    images = torch.from_numpy(held.images).float().div(16).unsqueeze(1)
    return images[order], torch.from_numpy(held.target).long()[order]


def _cache_file() -> Path:
    """Return where the trained weights are kept: by recipe, so that another recipe is another file."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "torchfault" / f"demo-{hashlib.sha256(_RECIPE.encode()).hexdigest()[:12]}.pt"


def _keep(network: "nn.Module", file: Path) -> None:
    """Save the weights, whole or not at all; a cache that cannot be written to is no reason to stop."""
    import torch

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            torch.save(network.state_dict(), part)
        os.replace(part.name, file)
    except OSError:
        return
