"""What the suites share: rules that name themselves when broken."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["MOST", "equal", "hold", "rule"]

MOST = 40_000  # draws of a sampler, words of a format


class Seen(Exception):
    """What was seen instead of what the rule says."""


@contextmanager
def rule(who: object, text: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into an AssertionError that names the rule."""
    try:
        yield
    except Exception as error:
        seen = str(error) if isinstance(error, Seen) else f"{type(error).__name__}: {error}"
        raise AssertionError(f"{who} breaks the rule that {text}: {seen}") from error


def hold(holds: object, seen: str) -> None:
    """Break the rule, saying what was *seen*, unless it *holds*."""
    if not holds:
        raise Seen(seen)


def equal(one: Tensor, two: Tensor) -> bool:
    """Compare byte by byte, so that NaN equals itself and -0 differs from 0."""
    return torch.equal(one.reshape(-1).contiguous().view(torch.uint8), two.reshape(-1).contiguous().view(torch.uint8))
