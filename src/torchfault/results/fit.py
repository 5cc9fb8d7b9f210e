"""Failures in time: from raw upsets per flip-flop to what the chip's user sees, with the arithmetic shown."""

from dataclasses import dataclass

from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import Accelerator
from torchfault.results.resiliency import resiliency
from torchfault.results.results import Results
from torchfault.results.upset_sample import scaled
from torchfault.statistics import Estimate

__all__ = ["FLIP_FLOPS_PER_MB", "Fit", "TypeFit", "chip_fit", "fit"]

FLIP_FLOPS_PER_MB = 2**23
"""One megabyte, 2^20 bytes of 8 bits: the unit in which raw FIT are given."""


@dataclass(frozen=True)
class TypeFit:
    """One type's part: its number of *flip_flops*, raw *fit_per_mb*, and *fit* = flip_flops / 2^23 x fit_per_mb."""

    name: str
    flip_flops: float
    fit_per_mb: float

    @property
    def fit(self) -> float:
        """Upsets of this type in 10^9 hours."""
        return self.flip_flops / FLIP_FLOPS_PER_MB * self.fit_per_mb


@dataclass(frozen=True)
class Fit:
    """Failures in 10^9 hours of running: upsets of the whole *chip*, those that end in wrong answers or in none.

    *chip* = sum of the *types*; *sdc* = chip x P(silent corruption | upset), and *due* = chip x P(crash, NaN or
    infinity | upset), with the intervals of these probabilities; *chance* holds the two.
    """

    types: tuple[TypeFit, ...]
    chip: float
    sdc: Estimate
    due: Estimate
    chance: tuple[Estimate, Estimate]

    def __str__(self) -> str:
        lines = [
            f"{one.name}: {one.flip_flops:,.0f} flip-flops / 2^23 x {one.fit_per_mb:g} FIT/MB = {one.fit:.4g} FIT"
            for one in self.types
        ]
        lines.append(f"chip: {' + '.join(f'{one.fit:.4g}' for one in self.types)} = {self.chip:.4g} FIT")
        for name, chance, found in zip(("SDC", "DUE"), self.chance, (self.sdc, self.due), strict=True):
            lines.append(
                f"{name}: {self.chip:.4g} x {chance.value:.4g} = {found.value:.3g} FIT "
                f"[{found.low:.3g}, {found.high:.3g}]"
            )
        return "\n".join(lines)


def fit(results: Results, *, flip_flops: int | None = None, level: float | None = None) -> Fit:
    """Return the failures in time of the accelerator that a campaign by :func:`torchfault.recipes.upsets` struck.

    *flip_flops* is the number of all flip-flops, where the accelerator does not say. FIT count upsets while the chip
    runs the network without pause. Intervals are of the *level* of the campaign unless told. Raises
    :class:`HardwareError` where the number is not known, and for other campaigns.

    >>> import torch
    >>> from torchfault import Data, Engine, MaxTrials
    >>> from torchfault.campaign import run
    >>> from torchfault.hardware.accelerator import FLAT
    >>> from torchfault.recipes import upsets
    >>> from torchfault.zoo import digits_cnn
    >>> engine = Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8), torch.arange(4)))
    >>> print(str(fit(run(upsets(engine, FLAT, stop=MaxTrials(1100))))).splitlines()[0])
    input: 512 flip-flops / 2^23 x 600 FIT/MB = 0.03662 FIT
    """
    found = resiliency(results, level=level)
    accelerator = found.sample.space.accelerator
    total = flip_flops if flip_flops is not None else accelerator.flip_flops
    if total is None or total < 1:
        raise HardwareError(
            f"FIT need the number of flip-flops of '{accelerator.name}', got {total}; pass flip_flops=, or counts"
        )
    types = _type_fits(accelerator, total)
    chip = sum(one.fit for one in types)
    return Fit(types, chip, scaled(found.sdc, chip), scaled(found.due, chip), (found.sdc, found.due))


def chip_fit(accelerator: Accelerator, *, flip_flops: int | None = None) -> float:
    """Return the upsets of all flip-flops in 10^9 hours, 1 where they are not counted.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> round(chip_fit(FLAT), 4)
    0.1324
    """
    total = flip_flops if flip_flops is not None else accelerator.flip_flops
    return sum(one.fit for one in _type_fits(accelerator, total)) if total else 1.0


def _type_fits(accelerator: Accelerator, total: int) -> tuple[TypeFit, ...]:
    shares = sum(one.share for one in accelerator.types)
    return tuple(TypeFit(one.name, total * one.share / shares, one.fit) for one in accelerator.types)
