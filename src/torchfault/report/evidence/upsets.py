"""Elements of a campaign on an accelerator: each type of flip-flop with its rate, and what upsets of it do."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchfault.hardware.measure import UpsetMeasure
from torchfault.report.evidence import bounds
from torchfault.report.evidence.outcomes import DETECTED, DUE, FAILED, SDC, UNDETECTED, marked
from torchfault.results import Results, fit
from torchfault.results.upset_sample import UpsetSample, sample_of, shifted
from torchfault.statistics import Estimate

__all__ = ["Upsets"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Upsets:
    """What upsets of an accelerator tell of its types of flip-flops; *flip_flops* where its description has no number.

    Control is known without injection: its upsets are crashes, which have no answer (DUE).
    """

    results: Results
    confidence: float
    detector: str | None
    flip_flops: int | None

    def elements(self) -> list[dict[str, Any]]:
        """Return one element for each type."""
        axis = self._space.axis("type")
        assert axis.of_cell is not None
        raw, elements = self._raw(), []
        accelerator = self._space.accelerator
        for code, key in enumerate(axis.keys):
            here = axis.of_cell == code
            one = next(part for part in accelerator.types if part.name == key)
            fractions = {flag: bounds.told(self._of_type(flag, here, self.confidence)) for flag in self._flags}
            elements.append(
                {
                    "element": f"{accelerator.name}/{key}",
                    "kind": one.holds,
                    "module": "",
                    "module_type": "flip-flops",
                    "word": "",
                    "bits": round(raw[str(key)][0]) if raw else None,
                    "raw_fit": raw[str(key)][1] if raw else None,
                    "fractions": fractions,
                    "coverage": self._coverage(here),
                }
            )
        return elements

    def total(self, flag: str) -> dict[str, float] | None:
        """Return the rate of upsets with an outcome over all types, ``None`` where flip-flops are not counted."""
        raw = self._raw()
        if not raw:
            return None
        chip = sum(rate for _, rate in raw.values())
        found = self._of(flag, np.ones(len(self._mass), dtype=np.bool_), self.confidence)
        return {"value": chip * found.value, "lower": chip * found.low, "upper": chip * min(found.high, 1.0)}

    def _raw(self) -> dict[str, tuple[float, float]]:
        """Return the flip-flops and the raw rate of each type, nothing where they are not counted."""
        if self.flip_flops is None and self._space.accelerator.flip_flops is None:
            return {}
        found = fit(self.results, flip_flops=self.flip_flops)
        return {one.name: (one.flip_flops, one.fit) for one in found.types}

    def _of_type(self, flag: str, here: NDArray[np.bool_], confidence: float) -> Estimate:
        return bounds.divided(self._of(flag, here, confidence), float(self._mass[here].sum()))

    def _of(self, flag: str, here: NDArray[np.bool_], confidence: float) -> Estimate:
        """Return the probability that an upset strikes *here* and has an outcome."""
        sample = self._sample(confidence)
        found = sample.mean(np.where(here, sample.p, 0.0), self._shares[flag])
        crashes = flag in self._crashing
        return shifted(found, float(self._mass[here & self._space.is_control].sum()) if crashes else 0.0)

    def _coverage(self, here: NDArray[np.bool_]) -> bounds.Fraction | None:
        if self.detector is None:
            return None
        half = 1 - (1 - self.confidence) / 2
        one, other = (self._of_type(flag, here, half) for flag in (DETECTED, UNDETECTED))
        return bounds.coverage(one, other, counts=None, confidence=self.confidence)

    @property
    def _flags(self) -> tuple[str, ...]:
        detected = () if self.detector is None else (DETECTED, UNDETECTED)
        return (FAILED, SDC, DUE, *detected)

    @property
    def _crashing(self) -> tuple[str, ...]:
        """The outcomes that crashes have: a watchdog sees them where the detector is of DUE."""
        return (FAILED, DUE, DETECTED if self.detector in ("due", "crash") else UNDETECTED)

    @property
    def _space(self) -> Any:
        return self.results.space

    @cached_property
    def _mass(self) -> Floats:
        return np.asarray(UpsetMeasure().mass(self._space))

    @cached_property
    def _shares(self) -> dict[str, Floats]:
        """The share of the inputs of each draw on which it has an outcome."""
        columns, repeats = self.results.sampled, int(self.results.record.configuration.get("inputs_per_fault", 1))
        draw = np.arange(len(columns)) // repeats
        size = np.bincount(draw)
        flags = marked(columns, self.detector)
        return {
            name: np.asarray(np.bincount(draw, flag.astype(bool), len(size)) / size) for name, flag in flags.items()
        }

    def _sample(self, confidence: float) -> UpsetSample:
        return sample_of(self.results, level=bounds.level_of(confidence))
