"""The suite for storages."""

import copy

import numpy as np
import torch
from torch import Tensor

from torchfault.errors import StorageError
from torchfault.storages.base import Storage, Stored, keep
from torchfault.testing.rules import hold, rule
from torchfault.words import bits_of, decode, edit, encode, masks_to_words, picked

__all__ = ["check_storage"]

_SHAPES = ((6, 3, 3, 3), (5, 7), (9,), (8, 16))
_TRIES = 40


def check_storage(storage: Storage) -> None:
    """Raise AssertionError, naming the rule, where *storage* is none.

    The rules: a hashable value, equal to its copy; parts of the types that their formats ask for, with all indices in
    their range; a value of the tensor's shape and type, which keeps zeros; ``spread`` tells the values that decoding
    the changed words changes; any words decode, an index astray raises StorageError; and nothing alters its arguments.

    >>> from torchfault.storages import Affine
    >>> check_storage(Affine(width=4, group=32))
    """
    with rule(storage, "it is a hashable value, equal to its copy"):
        hold(hash(storage) == hash(copy.copy(storage)) and storage == copy.copy(storage), "got a copy that differs")
    rng = np.random.default_rng(20261121)
    for shape in _SHAPES:
        drawn = rng.standard_normal(shape) * (rng.random(shape) < 0.5)
        tensor = torch.from_numpy(drawn.astype(np.float32))
        with rule(storage, "it keeps any finite tensor, and leaves it as it is"):
            before = tensor.clone()
            stored = keep(tensor, storage)
            hold(torch.equal(before, tensor), "the tensor was altered")
        _check_parts(storage, stored)
        with rule(storage, "its words stand for a tensor of the same shape and type, with zeros where zeros were"):
            value = stored.value()
            hold(value.shape == tensor.shape and value.dtype == tensor.dtype, f"got {value.shape}, {value.dtype}")
            hold(not value[tensor == 0].any(), "a zero became something else")
        for name in stored.parts:
            _check_single(storage, stored, name, rng)
            _check_any(storage, stored, name, rng)


def _check_parts(storage: Storage, stored: Stored) -> None:
    with rule(storage, "every part has words, of the type that its format asks for"):
        hold(stored.parts.keys() == stored.words.keys(), f"got {list(stored.parts)} for {list(stored.words)}")
        for name, part in stored.parts.items():
            held = stored.words[name]
            hold(held.dtype == part.fmt.dtype, f"'{name}' has {held.dtype} words, its format {part.fmt.dtype}")
            hold(bool((decode(encode(held, part.fmt), part.fmt) == held).all()), f"'{name}' holds what is no word")
    with rule(storage, "indices are in their range"):
        stored.value(stored.words)


def _changed(stored: Stored, name: str, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Return flat elements of a part, and the values of random words for them."""
    fmt, words = stored.parts[name].fmt, stored.words[name]
    element = torch.from_numpy(rng.permutation(words.numel())[:count])
    drawn = rng.integers(0, (1 << fmt.width) - 1, len(element), dtype=np.uint64, endpoint=True)
    drawn &= rng.integers(0, (1 << fmt.width) - 1, len(element), dtype=np.uint64, endpoint=True)
    old = picked(words, element)
    return element, edit(old, None, masks_to_words(drawn, fmt), fmt)


def _with(stored: Stored, name: str, element: Tensor, new: Tensor) -> dict[str, Tensor]:
    words = stored.words[name].clone()
    bits_of(words).view(-1)[element] = bits_of(new)
    return {name: words}


def _check_single(storage: Storage, stored: Stored, name: str, rng: np.random.Generator) -> None:
    element, new = _changed(stored, name, rng, _TRIES)
    sound = ~stored.parts[name].astray(element, new, stored.words[name].shape)
    element, new = element[sound], picked(new, sound)
    with rule(storage, "spread tells the values that change, as decoding tells it"):
        found = storage.spread(stored.words, stored.shape, name, element, new)
        if found is None:
            return
        golden = stored.value().reshape(-1)
        for i, (place, value) in enumerate(zip(*found, strict=True)):
            whole = stored.value(_with(stored, name, element[i], new[i])).reshape(-1)
            expected = golden.clone()
            expected[place] = value
            hold(_same(whole, expected), f"word {int(element[i])} of '{name}' as {new[i]} gives another tensor")


def _check_any(storage: Storage, stored: Stored, name: str, rng: np.random.Generator) -> None:
    part = stored.parts[name]
    for _ in range(_TRIES):
        element, new = _changed(stored, name, rng, int(rng.integers(1, 4)))
        words = _with(stored, name, element, new)
        lost = bool(part.astray(element, new, words[name].shape).any())
        with rule(storage, "any words decode, and an index astray raises StorageError"):
            try:
                value = stored.value(words)
            except StorageError:
                hold(lost, f"'{name}' with {new.tolist()} is refused, though no index is astray")
                continue
            hold(not lost, f"'{name}' with {new.tolist()} decodes, though an index is astray")
            hold(value.shape == stored.shape, f"got shape {tuple(value.shape)}")


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
