"""What a flip of each bit does to a value, in closed form: how far it moves it, and the derivative by the bit."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchfault.errors import SamplingError, did_you_mean
from torchfault.names.word_names import FIELDS, parameters

__all__ = ["BIT_RULES", "bit_changes", "bit_derivatives", "bit_scores"]

Floats = NDArray[np.float64]


def bit_changes(values: ArrayLike, word: str, width: int) -> Floats:
    """Return |v' - v| for each of *values*, shape (n,), and each bit flipped, lowest first: shape (n, width).

    *values* are rounded to words first. The change is infinite where the flip gives an infinity or a NaN, and where the
    value is one.

    >>> bit_changes([1.5], "float32", 32)[0, [0, 22, 23, 30, 31]]
    array([1.1920929e-07, 5.0000000e-01, 7.5000000e-01,           inf, 3.0000000e+00])
    """
    from torchfault.words.deltas import flip_deltas, words_of

    del width
    return np.nan_to_num(np.abs(flip_deltas(words_of(values, word), word)), nan=np.inf, posinf=np.inf)


def bit_derivatives(values: ArrayLike, word: str, width: int) -> Floats:
    """Return |dv / db| of each of *values*, shape (n,), by each of its bits, lowest first: shape (n, width).

    A value is taken as (1 - 2 s) 2^(sum 2^i e_i - bias) (1 + sum 2^(i - m) f_i), its bits as real numbers: the
    derivatives are 2 |v| for the sign, ln 2 2^i |v| for bit i of the exponent and 2^(exponent + i - m) for bit i of the
    mantissa; bit i of an integer or a fixed-point word is worth 2^i steps. Where the derivatives say nothing, for zero
    and what is not finite, the powers 2^i stand in. Source: ISimDL (Colucci, Steininger & Shafique, arXiv 2303.08035),
    "gradient" bits, and the code of its authors.

    >>> bit_derivatives([1.5], "float32", 32)[0, [22, 30, 31]].round(2)
    array([  0.5 , 133.08,   3.  ])
    """
    size = np.abs(np.asarray(values, dtype=np.float64).reshape(-1))
    kind, given = parameters(word) or ("", {})
    exponents = int(given["exponent"]) if "exponent" in given else FIELDS.get(word, (0, 0))[1]
    if not exponents:
        step = 2.0 ** -int(given["fraction"]) if kind == "fixed point" else float(given.get("scale", 1))
        return _powers(len(size), width) * step
    mantissa, bias = max(width - 1 - exponents, 0), (1 << exponents - 1) - (not word.endswith("fnuz"))
    says = np.isfinite(size) & (size > 0)
    held = np.where(says, size, 1.0)
    biased = _parts(held, bias)[0]
    by = np.empty((len(size), width))
    by[:, :mantissa] = np.exp2(np.maximum(biased, 1)[:, None] - bias - mantissa + np.arange(mantissa))
    by[:, -1] = 2 * held  # the sign, unless there is none
    by[:, mantissa : mantissa + exponents] = np.log(2) * held[:, None] * np.exp2(np.arange(exponents))
    return np.where(says[:, None], by, _powers(len(size), width))


def bit_scores(rule: str, values: ArrayLike, word: str, width: int) -> Floats:
    """Return what *rule*, one of :data:`BIT_RULES`, gives each bit, lowest first: shape (n, width) for n *values*.

    ``random`` gives all bits the same, ``linear`` i + 1, ``exponential`` 2^i, ``derivative`` :func:`bit_derivatives`
    and ``change`` :func:`bit_changes`. Raises :class:`SamplingError` for another name.

    >>> bit_scores("linear", [0.0], "int8", 8)
    array([[1., 2., 3., 4., 5., 6., 7., 8.]])
    """
    if rule not in BIT_RULES:
        raise SamplingError(
            f"a rule for bits is {', '.join(BIT_RULES)}, got '{rule}'{did_you_mean(rule, BIT_RULES)}; name one of them"
        )
    return BIT_RULES[rule](values, word, width)


def _parts(size: Floats, bias: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the stored exponent, 0 for subnormal numbers and zero, and the fraction behind the hidden bit."""
    finite = np.where(np.isfinite(size), size, 0.0)
    biased = np.maximum(np.frexp(finite)[1].astype(np.int64) - 1 + bias, 0)
    biased[finite == 0] = 0
    return biased, np.ldexp(finite, bias - np.maximum(biased, 1)) - (biased > 0)


def _powers(rows: int, width: int) -> Floats:
    return np.broadcast_to(np.exp2(np.arange(width)), (rows, width))


def _alike(values: ArrayLike, word: str, width: int) -> Floats:
    del word
    return np.ones((np.size(values), width))


def _linear(values: ArrayLike, word: str, width: int) -> Floats:
    del word
    return np.broadcast_to(np.arange(1.0, width + 1), (np.size(values), width))


def _exponential(values: ArrayLike, word: str, width: int) -> Floats:
    del word
    return _powers(np.size(values), width)


BIT_RULES: Mapping[str, Callable[[ArrayLike, str, int], Floats]] = MappingProxyType(
    {
        "random": _alike,
        "linear": _linear,
        "exponential": _exponential,
        "derivative": bit_derivatives,
        "change": bit_changes,
    }
)
"""How bits are scored, by name."""
