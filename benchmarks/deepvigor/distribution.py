"""How large the errors of single bit flips are: exact deltas, their map over candidate values, shares beyond a value.

An *error* is what a flip adds to a sum of products: the change of one operand (its *delta*) times the other operand,
or the delta alone. Source: DeepVigor+, arXiv 2410.15742, error distribution map (EDM) and candidate vulnerability
values (CVV); here from exact bit patterns, with tails and what is not finite counted apart.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from torchfault.errors import VulnerabilityError
from torchfault.words import encode, flip_changes
from torchfault.words import word as format_of

__all__ = [
    "BINS",
    "MIDDLE",
    "NOT_FINITE",
    "candidates",
    "error_histogram",
    "flipped_deltas",
    "histogram_share",
    "share_beyond",
]

LOWEST, HIGHEST = -10, 10
MIDDLE = HIGHEST - LOWEST + 1
NOT_FINITE = 2 * MIDDLE + 1
BINS = NOT_FINITE + 1
_AT_ONCE = 1 << 22  # errors held at a time: 32 MiB of float64


def candidates(*, device: torch.device | str = "cpu") -> Tensor:
    """Return the candidate vulnerability values 2^-10, 2^-9, ..., 2^10, shape (21,), float64; each also stands negated.

    >>> candidates()[[0, 10, 20]].tolist()
    [0.0009765625, 1.0, 1024.0]
    """
    return torch.exp2(torch.arange(LOWEST, HIGHEST + 1, device=device, dtype=torch.float64))


def flipped_deltas(tensor: Tensor, word: str, *, scale: Tensor | float = 1.0) -> Tensor:
    """Return by how much every single bit flip changes each value, shape (elements, bits), float64, lowest bit first.

    The changes are exact but for the rounding of float64, from the words themselves; they are infinite or NaN where
    either value is. *scale* is what one step of an integer is worth, a number or a tensor that broadcasts to *tensor*.
    Raises :class:`torchfault.errors.WordError` where *tensor* does not hold such words.

    >>> flipped_deltas(torch.tensor([1.0]), "float32")[0, [0, 22, 23, 30, 31]].tolist()
    [1.1920928955078125e-07, 0.5, -0.5, inf, -2.0]
    >>> flipped_deltas(torch.tensor([3], dtype=torch.int8), "int8", scale=0.5).tolist()
    [[-0.5, -1.0, 2.0, 4.0, 8.0, 16.0, 32.0, -64.0]]
    """
    fmt = format_of(word)
    held = tensor.detach().reshape(-1)
    deltas = flip_changes(encode(held, fmt), fmt)
    if isinstance(scale, Tensor):
        return deltas * scale.to(deltas).expand(tensor.shape).reshape(-1, 1)
    return deltas if scale == 1.0 else deltas * scale


def error_histogram(
    deltas: Tensor, operand: Tensor | None = None, *, dtype: torch.dtype = torch.float32, at_once: int = _AT_ONCE
) -> Tensor:
    """Return the error distribution map of each image: how many errors lie in each bin, shape (images, 44), int64.

    *deltas*, shape (elements, bits), are those of :func:`flipped_deltas`. *operand* is what each element is multiplied
    by, shape (images, elements) or (images, elements, places) where an element meets several values in one image;
    without it deltas are the errors, and there is one row. Pooled, the map is the sum over images.

    Bins, by the candidates c: 0 holds errors at or below -1024, 1 to 20 those in (-2c, -c], 21 (``MIDDLE``) those
    nearer to 0 than 2^-10, 22 to 41 those in [c, 2c), 42 those of 1024 or more, and 43 (``NOT_FINITE``) those that are
    infinite or NaN as *dtype*, in which the operation sums. No more than *at_once* errors are held at a time.

    Raises :class:`VulnerabilityError` where the shapes do not fit.

    >>> one = error_histogram(torch.tensor([[0.3, -2000.0, 0.0, torch.inf]]))
    >>> one.nonzero()[:, 1].tolist(), error_histogram(torch.tensor([[1.0]]), torch.tensor([[2.0], [-2.0]])).argmax(1)
    ([0, 21, 30, 43], tensor([33,  9]))
    """
    images = 1 if operand is None else len(operand)
    found = torch.zeros(images * BINS, dtype=torch.int64, device=deltas.device)
    for image, errors in _errors(deltas, operand, at_once):
        row = torch.arange(image, image + len(errors), device=deltas.device).view(-1, *[1] * (errors.ndim - 1))
        found += torch.bincount((_bin(errors, dtype) + row * BINS).reshape(-1), minlength=len(found))
    return found.view(images, BINS)


def _bin(errors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bin of each error."""
    mantissa, exponent = torch.frexp(errors)  # |error| in [2^(exponent - 1), 2^exponent), without rounding
    steps = (exponent.long() - LOWEST).clamp(0, MIDDLE)
    signed = torch.where(mantissa == 0, 0, torch.where(mantissa < 0, -steps, steps))
    return torch.where(_finite(errors, dtype), MIDDLE + signed, NOT_FINITE)


def _finite(errors: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.isfinite(errors if dtype == errors.dtype else errors.to(dtype))


def _errors(deltas: Tensor, operand: Tensor | None, at_once: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the errors in parts: the first image, and a tensor (images, elements, bits[, places])."""
    _check(deltas, operand)
    if operand is None:
        step = max(1, at_once // max(deltas.shape[1], 1))
        for part in deltas.split(step):
            yield 0, part[None]
        return
    wide = operand.to(torch.float64).reshape(*operand.shape[:2], -1)
    each = deltas.numel() * wide.shape[2]
    images = max(1, at_once // max(each, 1))
    elements = max(1, at_once * len(deltas) // max(each * images, 1))
    for image in range(0, len(wide), images):
        for first in range(0, len(deltas), elements):
            part = wide[image : image + images, first : first + elements, None, :]
            yield image, part * deltas[None, first : first + elements, :, None]


def _check(deltas: Tensor, operand: Tensor | None) -> None:
    if deltas.ndim != 2 or (
        operand is not None and (operand.ndim not in (2, 3) or operand.shape[1] != len(deltas) or not len(operand))
    ):
        raise VulnerabilityError(
            f"deltas are (elements, bits) and an operand is (images, elements) or (images, elements, places), "
            f"got {tuple(deltas.shape)} and {None if operand is None else tuple(operand.shape)}"
        )


def histogram_share(histogram: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return the share of each row's errors that are finite and at or beyond candidates, shape (rows,), float64.

    *histogram* is that of :func:`error_histogram`; *positive* and *negative*, shape (rows,), number the candidate from
    which on errors of each sign count (0 for 2^-10, 20 for 2^10, 21 for none), so that the share is exact, whole bins
    being summed. Shares are of all errors, finite or not.

    >>> found = error_histogram(torch.tensor([[0.3, 5.0, -5.0, torch.inf]]))
    >>> histogram_share(found, torch.tensor([10]), torch.tensor([21]))  # at or above 1, and nothing negative
    tensor([0.2500], dtype=torch.float64)
    """
    steps = torch.arange(BINS, device=histogram.device) - MIDDLE
    beyond = (steps > positive[:, None]) & (steps < MIDDLE + 1) | (-steps > negative[:, None])
    return (histogram * beyond).sum(1).double() / histogram.sum(1)


def share_beyond(
    deltas: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    operand: Tensor | None = None,
    not_finite: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    at_once: int = _AT_ONCE,
) -> Tensor:
    """Return the share of the errors of each bit at or beyond values, shape (images, bits), float64.

    An error counts where it is at least *positive* or at most *negative*, shape (images,), any values; +inf and -inf
    admit none. Errors that are infinite or NaN as *dtype* count where *not_finite*, shape (images,), says so, and
    everywhere without it. *deltas* and *operand* are those of :func:`error_histogram`; without *operand* all images
    share the deltas. The mean over bits is the share of all errors.

    >>> deltas = flipped_deltas(torch.tensor([1.0]), "float32")
    >>> one = share_beyond(deltas, torch.tensor([0.5]), torch.tensor([-2.0]))
    >>> one[0].nonzero()[:, 0].tolist()  # the upper half of the mantissa, infinity, and the sign
    [22, 30, 31]
    """
    counted = torch.ones(len(positive), dtype=torch.bool) if not_finite is None else not_finite
    above, below = positive.to(deltas), negative.to(deltas)
    counted = counted.to(deltas.device)
    if operand is None:
        _check(deltas, None)
        return _sorted_share(deltas, above, below, counted, dtype)
    found = torch.zeros(len(operand), deltas.shape[1], dtype=torch.float64, device=deltas.device)
    for image, errors in _errors(deltas, operand, at_once):
        rows = slice(image, image + len(errors))
        high, low, bad = (values[rows, None, None, None] for values in (above, below, counted))
        finite = _finite(errors, dtype)
        hit = (finite & ((errors >= high) | (errors <= low))) | (~finite & bad)
        found[rows] += hit.sum((1, 3))
    return found / (found.new_tensor(operand[0].numel()))


def _sorted_share(deltas: Tensor, above: Tensor, below: Tensor, counted: Tensor, dtype: torch.dtype) -> Tensor:
    """Count in sorted columns: every image asks the same deltas."""
    finite = _finite(deltas, dtype)
    ordered = torch.where(finite, deltas, torch.inf).T.contiguous().sort(1).values
    kept = finite.sum(0)[:, None]
    bits = deltas.shape[1]
    high = torch.searchsorted(ordered, above.expand(bits, -1).contiguous())  # the first at or above
    low = torch.searchsorted(ordered, below.expand(bits, -1).contiguous(), right=True)
    # Where the two values cross, all finite errors count once.
    hits = torch.minimum((kept - high).clamp(min=0) + low.clamp(max=kept), kept)
    return (hits + (len(deltas) - kept) * counted).T.double() / len(deltas)
