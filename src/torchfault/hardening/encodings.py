"""Weight encodings: check bits in the low bits of the mantissa, where they cost no memory and next to no accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.profile import Profile
from torchfault.hardening.stored import chosen, watch_parameter, words_of

__all__ = ["Parity", "Secded", "Triplicate"]

_FLOAT32 = (torch.float32,)


@dataclass(frozen=True)
class Parity:
    """Keep the parity of the upper 16 bits of each float32 weight in its lowest bit; a weight that breaks it becomes 0.

    The upper 16 bits are the sign, the exponent and 7 bits of the mantissa. The bit moves a weight by at most
    2**-23 of itself. *sites* are globs of parameters.

    Source: parity in mantissa bits that do not matter, as in Burel et al., Zero-Overhead Protection for CNN Weights,
    DFT 2021.

    >>> from torchfault.hardening import harden
    >>> model = nn.Linear(2, 1, bias=False)
    >>> safe = harden(model, Parity())
    >>> with torch.no_grad():
    ...     safe.weight.view(torch.int32)[0, 0] ^= 1 << 27
    ...     safe(torch.tensor([[1.0, 0.0]]))
    tensor([[0.]])
    """

    sites: str | tuple[str, ...] = "*"

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with encoded parameters."""
        return _encode(model, self.sites, profile, _Parity())


@dataclass(frozen=True)
class Triplicate:
    """Keep two more copies of the top *bits* of each float32 weight's exponent in its low bits; the majority counts.

    The copies of *bits*, 1 to 5, take twice as many bits of the mantissa: 4 of them leave 15, which moves a weight by
    at most 2**-15 of itself. *sites* are globs of parameters.

    >>> from torchfault.hardening import harden
    >>> safe = harden(nn.Linear(2, 1), Triplicate(bits=3))
    >>> before = safe(torch.ones(1, 2))
    >>> with torch.no_grad():
    ...     safe.weight.view(torch.int32)[0, 0] ^= (1 << 30) | (1 << 28)
    >>> torch.equal(safe(torch.ones(1, 2)), before)
    True
    """

    sites: str | tuple[str, ...] = "*"
    bits: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 5:
            raise ModelError(f"from 1 to 5 bits of the exponent can be kept thrice, got {self.bits}")

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with encoded parameters."""
        return _encode(model, self.sites, profile, _Majority(self.bits))


@dataclass(frozen=True)
class Secded:
    """Correct any flip in the upper 16 bits of each float32 weight, by 9 check bits in its mantissa.

    The sign, the exponent and 7 bits of the mantissa make a square of 4 by 4 bits; 4 row parities and 4 column
    parities locate a flip, and their own parity tells one flip from two. Words with two flips that show become 0.
    The 14 bits left of the mantissa are as near as may be: a weight moves by at most 2**-14 of itself. *sites* are
    globs of parameters.

    Source: Elias, Error-Free Coding, IRE Transactions 1954 (product codes).

    >>> from torchfault.hardening import harden
    >>> safe = harden(nn.Linear(2, 1), Secded())
    >>> before = safe(torch.ones(1, 2))
    >>> with torch.no_grad():
    ...     safe.weight.view(torch.int32)[0, 0] ^= 1 << 30
    >>> torch.equal(safe(torch.ones(1, 2)), before)
    True
    """

    sites: str | tuple[str, ...] = "*"

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with encoded parameters."""
        return _encode(model, self.sites, profile, _Square())


def _encode(
    model: nn.Module, sites: str | tuple[str, ...], profile: Profile | None, code: "_Parity | _Majority | _Square"
) -> nn.Module:
    for name, tensor in chosen(model, sites, profile, types=_FLOAT32).items():
        words = _encoded(words_of(tensor.contiguous()), code)
        watch_parameter(model, name, code, profile, encoded=words.view(tensor.dtype))
    return model


def _encoded(words: Tensor, code: "_Parity | _Majority | _Square") -> Tensor:
    """Return the nearest words with the check bits that *words* ask for, or those below where these would not fit.

    Check bits stay in the numbers to compute with, so that clean words need no decoding.
    """
    check, rest = code.check(words), -(1 << code.low)
    near = ((words - check + (1 << (code.low - 1))) & rest) | check
    return torch.where(code.check(near) == check, near, (words & rest) | check)


def _parity(words: Tensor) -> Tensor:
    """Return the parity of each 32-bit word, 0 or 1."""
    for shift in (16, 8, 4, 2, 1):
        words = words ^ (words >> shift)
    return words & 1


@dataclass(frozen=True)
class _Parity:
    low: int = 1

    def check(self, words: Tensor) -> Tensor:
        return _parity(words & -(1 << 16))

    def decode(self, value: Tensor, _held: Mapping[str, Tensor]) -> Tensor:
        words = words_of(value)
        return (words & (self._broken(words) - 1)).view(value.dtype)

    def wrong(self, value: Tensor, _held: Mapping[str, Tensor]) -> Tensor:
        return self._broken(words_of(value)).any()

    def _broken(self, words: Tensor) -> Tensor:
        return _parity(words & (-(1 << 16) | 1))


@dataclass(frozen=True)
class _Majority:
    bits: int

    @property
    def low(self) -> int:
        return 2 * self.bits

    def check(self, words: Tensor) -> Tensor:
        top = self._top(words)
        return top | top << self.bits

    def decode(self, value: Tensor, _held: Mapping[str, Tensor]) -> Tensor:
        return self._right(words_of(value)).view(value.dtype)

    def wrong(self, value: Tensor, _held: Mapping[str, Tensor]) -> Tensor:
        words = words_of(value)
        return ((words & ((1 << self.low) - 1)) != self.check(words)).any()

    def _top(self, words: Tensor) -> Tensor:
        return words >> (31 - self.bits) & ((1 << self.bits) - 1)

    def _right(self, words: Tensor) -> Tensor:
        one, two, three = self._top(words), words, words >> self.bits
        vote = ((one & two) | (one & three) | (two & three)) & ((1 << self.bits) - 1)
        copies = ((1 << self.bits) - 1) << (31 - self.bits) | ((1 << self.low) - 1)
        return (words & ~copies) | vote << (31 - self.bits) | vote << self.bits | vote


@dataclass(frozen=True)
class _Square:
    low: int = 9

    def decode(self, value: Tensor, _held: Mapping[str, Tensor]) -> Tensor:
        words = words_of(value)
        syndrome = self._syndrome(words)
        flip = self._located(syndrome)
        single = (flip != 0) & (flip & (flip - 1) == 0) & (syndrome > 0xFF)
        beside = syndrome & (syndrome - 1) == 0  # nothing, or one of the check bits
        right = words ^ torch.where(beside, syndrome, flip << 16)
        return torch.where(single | beside, right, 0).view(value.dtype)

    def wrong(self, value: Tensor, _held: Mapping[str, Tensor]) -> Tensor:
        return (self._syndrome(words_of(value)) != 0).any()

    def _syndrome(self, words: Tensor) -> Tensor:
        """Return which of the check bits are not what they should be."""
        return (self.check(words) ^ words) & 0x1FF

    def check(self, words: Tensor) -> Tensor:
        """Return the parities of columns in bits 0 to 3, of rows in bits 4 to 7, and of all in bit 8."""
        upper = words >> 16 & 0xFFFF
        columns = upper ^ upper >> 8
        columns = (columns ^ columns >> 4) & 15
        rows = upper ^ upper >> 2
        rows = (rows ^ rows >> 1) & 0x1111
        rows = rows | rows >> 3
        rows = (rows | rows >> 6) & 15
        both = columns ^ columns >> 2
        return columns | rows << 4 | ((both ^ both >> 1) & 1) << 8

    def _located(self, syndrome: Tensor) -> Tensor:
        """Return the 16-bit mask of where wrong rows meet wrong columns: a single bit for a single flip."""
        rows = ((syndrome >> 4 & 15) * 0x249) & 0x1111
        return (rows * 15) & ((syndrome & 15) * 0x1111)
