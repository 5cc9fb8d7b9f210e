"""How a report writes numbers: as many digits as their intervals bear, alike within a column, and ticks of axes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torchfault.statistics import Estimate

__all__ = ["PERCENT", "POINTS", "Scale", "Unit", "scale_of"]

_TICKS, _MINUS = 5, "\N{MINUS SIGN}"
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Unit:
    """What numbers are shown in: multiplied by *factor*, with *sign* behind them where they stand alone.

    >>> PERCENT.text(0.0152, 2), PERCENT.full(Estimate(0.0152, 0.0137, 0.0171, 9, "wilson"))
    ('1.52', '1.52 % [1.37, 1.71]')
    """

    factor: float
    sign: str

    def digits(self, cells: Iterable[tuple[float, float, float]]) -> int:
        """Return how many decimals (value, low, high) need: two figures of the narrowest interval, 2 to 5 of them."""
        seen = [cell for cell in cells if math.isfinite(cell[2] - cell[1]) and cell[2] > cell[1]]
        firm = [cell for cell in seen if cell[0] != 0] or seen
        widths = [self.factor * (high - low) / 2 for _, low, high in firm]
        if not widths:
            return 2
        return max(0 if min(widths) > 100 else 2, min(5, 1 - math.floor(math.log10(min(widths)))))

    def text(self, value: float, digits: int) -> str:
        """Return a number without its sign; a dash for NaN."""
        if math.isnan(value):
            return "\N{EN DASH}"
        if math.isinf(value):
            return "∞" if value > 0 else f"{_MINUS}∞"
        shown = f"{self.factor * value:,.{digits}f}".replace("-", _MINUS)
        return shown if shown.strip(f"{_MINUS}0.,") else shown.removeprefix(_MINUS)

    def interval(self, low: float, high: float, digits: int) -> str:
        """Return bounds in brackets."""
        return f"[{self.text(low, digits)}, {self.text(high, digits)}]"

    def full(self, one: Estimate) -> str:
        """Return an estimate for a sentence, with its sign and interval."""
        digits = self.digits([(one.value, one.low, one.high)])
        value = self.text(one.value, digits) + (f" {self.sign}" if self.sign else "")
        return value if one.low == one.high else f"{value} {self.interval(one.low, one.high, digits)}"


PERCENT = Unit(100.0, "%")
POINTS = Unit(100.0, "points")


@dataclass(frozen=True)
class Scale:
    """An axis from *low* to *high* with *ticks*: pairs of a place in per cent of its length, and a label.

    >>> scale_of([0.0, 0.063], PERCENT).ticks
    (('0', 1.5), ('2', 32.294), ('4', 63.087), ('6', 93.881))
    """

    low: float
    high: float
    ticks: tuple[tuple[str, float], ...] = ()

    @property
    def zero(self) -> float | None:
        """The place of 0 where it is amid the axis, ``None`` where the axis begins there."""
        return self.at(0.0) if self.low < 0 < self.high else None

    def at(self, value: float) -> float:
        """Return the place of a value in per cent of the length, within a margin on both sides; the ends for more."""
        part = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return round(1.5 + 97 * min(max(part, 0.0), 1.0), 3)


def scale_of(values: Iterable[float], unit: Unit, *, ticks: int = _TICKS) -> Scale:
    """Return an axis that holds *values* and 0, with ticks at round numbers of *unit*."""
    held = [value for value in values if math.isfinite(value)]
    low, high = min(0.0, *held, 0.0), max(0.0, *held, 0.0)
    if low == high:
        high = 1.0 / unit.factor
    plain, span = Scale(low, high), (high - low) * unit.factor
    raw = span / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * one for one in _STEPS if power * one >= raw * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if round(step / power, 3) == 2.5 else 0))
    first = math.ceil(low * unit.factor / step - 1e-9)
    last = math.floor(high * unit.factor / step + 1e-9)
    marks = [
        (unit.text(n * step / unit.factor, digits), plain.at(n * step / unit.factor)) for n in range(first, last + 1)
    ]
    return Scale(low, high, tuple(marks))
