"""Elements of a campaign in a fault space: each site with its bits, what faults in it do, and totals by rate."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from torchfault.cells import Axis
from torchfault.errors import ConfigError, did_you_mean
from torchfault.report.evidence import bounds
from torchfault.report.evidence.outcomes import DETECTED, DUE, FAILED, SDC, UNDETECTED, marked
from torchfault.results import Results
from torchfault.results.intervals import estimates
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate

__all__ = ["BITS_PER_MBIT", "Faults", "check_rates", "rate_of"]

BITS_PER_MBIT = 2**20
_LEAST, _MOST = 1e-9, 1e15  # FIT per Mbit: far beyond any cell in any beam, and no product of it overflows


def rate_of(rates: Mapping[str, float], name: str, kind: str) -> float | None:
    """Return the raw rate of a site in FIT per Mbit: by the first key that is its kind or matches its name.

    >>> rate_of({"weight": 700.0, "conv*": 50.0}, "conv1:input", "input"), rate_of({}, "a", "weight")
    (50.0, None)
    """
    return next((rate for key, rate in rates.items() if key in ("*", kind) or fnmatchcase(name, key)), None)


def check_rates(rates: Mapping[str, float], sites: Collection[tuple[str, str]]) -> None:
    """Raise :class:`ConfigError` for a rate that cannot be, or is of none of the *sites*, each a name and a kind.

    >>> check_rates({"wieght": 700.0}, [("fc.weight", "weight")])
    Traceback (most recent call last):
    torchfault.errors.ConfigError: --fit-per-mbit: 'wieght' is no kind or glob of the sites; did you mean 'weight'?
    """
    for key, rate in rates.items():
        if not _LEAST <= rate <= _MOST:
            raise ConfigError(f"--fit-per-mbit: expected {_LEAST:g} to {_MOST:g} FIT per Mbit, got {rate:g}")
        if all(rate_of({key: rate}, *site) is None for site in sites):
            near = did_you_mean(key, {part for name, kind in sites for part in (kind, name)})
            raise ConfigError(f"--fit-per-mbit: '{key}' is no kind or glob of the sites{near or '; leave it out'}")


@dataclass(frozen=True, eq=False)
class Faults:
    """What trials in a fault space tell of its sites: with *confidence*, of what *detector* sees, at raw *rates*."""

    results: Results
    confidence: float
    detector: str | None
    rates: Mapping[str, float]

    def elements(self) -> list[dict[str, Any]]:
        """Return one element for each site."""
        axis, space = self.results.space.axis("site"), self._space
        found = {flag: self.estimates(flag, axis, self.confidence) for flag in self._flags}
        coverage = self._coverage(axis)
        elements = []
        for at, site in enumerate(space.sites):
            rate = rate_of(self.rates, site.name, site.kind)
            elements.append(
                {
                    "element": site.name,
                    "kind": site.kind,
                    "module": site.module,
                    "module_type": site.module_type,
                    "word": site.word,
                    "bits": site.size,
                    "raw_fit": None if rate is None else rate * site.size / BITS_PER_MBIT,
                    "fractions": {flag: bounds.told(one[at]) for flag, one in found.items()},
                    "coverage": None if coverage is None else coverage[at],
                }
            )
        return elements

    def total(self, flag: str) -> dict[str, float] | None:
        """Return the rate of faults with an outcome over all elements that have a raw rate, ``None`` where none has.

        Bits of one rate are as likely as each other, so that they make one group where the campaign draws bits alike;
        else each site is a group. That all groups hold together costs each its part of the error (Bonferroni).
        """
        space = self._space
        rates = [rate_of(self.rates, site.name, site.kind) for site in space.sites]
        known = sorted({rate for rate in rates if rate is not None})
        if not known:
            return None
        if self._uniform:
            group = [len(known) if rate is None else known.index(rate) for rate in rates]
        else:
            group = list(range(len(rates)))
        axis = _grouped(space, np.array(group), max(group) + 1)
        fits = np.zeros(len(axis))
        for at, rate, site in zip(group, rates, space.sites, strict=True):
            fits[at] += 0.0 if rate is None else rate * site.size / BITS_PER_MBIT
        counts = fits > 0
        found = self.estimates(flag, axis, 1 - (1 - self.confidence) / max(int(counts.sum()), 1))
        ends = np.array([(one.value, one.low, one.high) for one in found])
        value, lower, upper = (fits[counts] @ ends[counts]).tolist()
        return {"value": value, "lower": lower, "upper": upper}

    def estimates(self, flag: str, axis: Axis, confidence: float) -> list[Estimate]:
        """Return the estimate of an outcome in each group of *axis*; either bound holds with *confidence*."""
        by, level = "model" if len(axis) == 1 else "site", bounds.level_of(confidence)
        return estimates(self._marked.question(by, flag, level=level, method=bounds.METHOD), axis)

    @cached_property
    def _marked(self) -> Results:
        return self.results.with_flags(marked(self.results.columns, self.detector))

    @property
    def _space(self) -> FaultSpace:
        assert isinstance(self.results.space, FaultSpace)
        return self.results.space

    @property
    def _flags(self) -> tuple[str, ...]:
        detected = () if self.detector is None else (DETECTED, UNDETECTED)
        return (FAILED, SDC, DUE, *detected)

    @property
    def _uniform(self) -> bool:
        measure = self.results.record.configuration.get("measure", {})
        fields = measure.get("fields", {}) if isinstance(measure, dict) else {}
        return measure.get("class") == "ProductMeasure" and not any(fields.values())

    def _coverage(self, axis: Axis) -> list[bounds.Fraction] | None:
        if self.detector is None:
            return None
        half = 1 - (1 - self.confidence) / 2
        pairs = zip(*(self.estimates(flag, axis, half) for flag in (DETECTED, UNDETECTED)), strict=True)
        columns = self._marked.sampled
        group = axis.code(columns.faults)
        counts = [
            np.bincount(group[columns.flag(name).astype(bool)], minlength=len(axis)) for name in (DETECTED, FAILED)
        ]
        return [
            bounds.coverage(
                one,
                other,
                counts=(int(counts[0][at]), int(counts[1][at])) if one.method == bounds.METHOD else None,
                confidence=self.confidence,
            )
            for at, (one, other) in enumerate(pairs)
        ]


def _grouped(space: FaultSpace, group: "np.ndarray[Any, np.dtype[np.int64]]", groups: int) -> Axis:
    """Return the axis whose groups are those of sites."""
    of_cell = group[space.cells.group]
    faults = np.bincount(group, [site.size for site in space.sites], groups).astype(np.int64)
    return Axis([str(one) for one in range(groups)], faults, lambda index: of_cell[space.cell_of(index)], of_cell)
