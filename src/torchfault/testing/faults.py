"""The suite for fault models."""

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import FaultError
from torchfault.faults import FaultModel
from torchfault.testing.rules import hold, rule
from torchfault.words import WORDS, WordFormat

__all__ = ["check_fault_model"]


def check_fault_model(model: FaultModel) -> None:
    """Raise AssertionError, naming the rule, where *model* is no fault model.

    The rules: a hashable value, equal to its copy; for one word format at least (others may raise FaultError), two
    uint64 masks per struck bit, inside the word, that can change a word; randomness from ``rng`` alone; without
    randomness, each row depends on its own bit alone; the given bits stay as they are.

    >>> from torchfault.faults import Burst
    >>> check_fault_model(Burst(3))
    """
    with rule(model, "it is a hashable value, equal to its copy"):
        hold(hash(model) == hash(copy.copy(model)) and model == copy.copy(model), "got a copy that differs")
    fitting = 0
    for fmt in WORDS.values():
        bits = np.random.default_rng(20261121).permutation(np.tile(np.arange(fmt.width), 3))
        try:
            model.masks(fmt, bits.copy(), rng=np.random.default_rng(0))
        except FaultError:
            continue
        except Exception as error:
            raise AssertionError(f"{model} breaks the rule that a misfit raises FaultError: {error!r}") from error
        fitting += 1
        _check_masks(model, fmt, bits)
    with rule(model, "it fits one word format at least"):
        hold(fitting, "got FaultError from all")


def _check_masks(model: FaultModel, fmt: WordFormat, bits: NDArray[Any]) -> None:
    def ask(which: NDArray[Any]) -> tuple[Any, Any, bool]:
        rng, still = np.random.default_rng(7), np.random.default_rng(7)
        keep, toggle = model.masks(fmt, which, rng=rng)
        return keep, toggle, bool(rng.random() != still.random())

    who, given, full = f"{model} on {fmt.name}", bits.copy(), np.uint64((1 << fmt.width) - 1)
    with rule(who, "masks returns two uint64 arrays, one row per struck bit"):
        keep, toggle, random = ask(bits)
        for mask, rows_ in ((keep, len(bits)), (toggle, len(bits)), *((mask, 0) for mask in ask(bits[:0])[:2])):
            hold(isinstance(mask, np.ndarray) and mask.dtype == np.uint64, f"got {getattr(mask, 'dtype', type(mask))}")
            hold(mask.shape == (rows_,), f"got shape {mask.shape} for {rows_} bits")
    with rule(who, "masks stay inside the word"):
        hold(not ((keep | toggle) & ~full).any(), f"got more than {fmt.width} bits")
    with rule(who, "every row can change a word"):
        idle = (keep == full) & (toggle == 0)
        hold(not idle.any(), f"nothing changes for bit {bits[idle][:1]}")
    with rule(who, "randomness comes from rng alone, and bits are read, not written"):
        hold(np.array_equal(bits, given), "the given bits were altered")
        second = ask(bits.astype(np.int16))
        hold(np.array_equal(keep, second[0]) and np.array_equal(toggle, second[1]), "asked twice, the masks differ")
    if not random:
        with rule(who, "without randomness, a row depends on its own bit alone"):
            turned = ask(bits[::-1].copy())
            hold(np.array_equal(keep[::-1], turned[0]) and np.array_equal(toggle[::-1], turned[1]), "order matters")
