"""Resiliency Accuracy: how accurate a network is, given that one upset struck the accelerator while it ran.

RA = sum_j p(j) A(j) = SA - c SA - sum_data p(j) UF (SA - A(j)), with SA the accuracy without faults and c the
probability of control, whose faults are crashes (A = 0) and are summed exactly. Source: Tyagi et al., arXiv 2212.02649.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from torchfault.hardware.measure import UpsetMeasure
from torchfault.results.results import Results
from torchfault.results.upset_sample import UpsetSample, negative, sample_of, shifted
from torchfault.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Resiliency", "resiliency"]


@dataclass(frozen=True, eq=False)
class Resiliency:
    """Resiliency Accuracy with its interval, and what goes with it.

    *sa* is the accuracy without faults and *drop* = sa - ra. *sdc* and *due* are the probabilities that an upset makes
    the answer another one, and that it makes it none: a crash (*control*), NaN or infinity. *sample* is what was drawn
    and found.
    """

    ra: Estimate
    sa: float
    drop: Estimate
    sdc: Estimate
    due: Estimate
    control: float
    sample: UpsetSample

    def table(self, by: str = "layer") -> "pd.DataFrame":
        """Return what each ``layer``, ``type``, ``bit`` or ``kind`` takes away: its contribution to the drop.

        Contributions of data and of control (known exactly) add up to the drop. Control, and what leaves random words,
        has no bit and counts under -1. Columns: *by*, data, data_low, data_high, control, drop. Raises
        :class:`torchfault.errors.SpaceError` for another *by*.
        """
        import pandas as pd

        sample, space = self.sample, self.sample.space
        axis, p = space.axis(by), UpsetMeasure().mass(space)
        rows = []
        for code, key in enumerate(axis.keys):
            here = axis.of_cell == code
            control = float(p[here & space.is_control].sum()) * self.sa
            data = sample.drop(np.where(here, sample.p, 0.0), control=0.0)
            rows.append((key, data.value, data.low, data.high, control, data.value + control))
        return pd.DataFrame(rows, columns=[by, "data", "data_low", "data_high", "control", "drop"])


def resiliency(results: Results, *, level: float | None = None) -> Resiliency:
    """Return how accurate the model of a campaign by :func:`torchfault.recipes.upsets` is, given an upset.

    Intervals are of the *level* of the campaign unless told. Raises :class:`torchfault.errors.HardwareError` for other
    campaigns.

    >>> import torch
    >>> from torchfault import Data, Engine, MaxTrials
    >>> from torchfault.campaign import run
    >>> from torchfault.hardware.accelerator import FLAT
    >>> from torchfault.recipes import upsets
    >>> from torchfault.zoo import digits_cnn
    >>> engine = Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8), torch.arange(4)))
    >>> found = resiliency(run(upsets(engine, FLAT, stop=MaxTrials(1100))))
    >>> found.ra.low <= found.ra.value <= found.ra.high
    True
    >>> bool(abs(found.table("layer")["drop"].sum() - found.drop.value) < 1e-9)
    True
    """
    sample = sample_of(results, level=level)
    sa, control = sample.sa, sample.known.control
    drop = sample.drop(sample.p, control=control)
    due = shifted(sample.mean(sample.p, sample.due), control)
    return Resiliency(
        ra=negative(drop, sa),
        sa=sa,
        drop=drop,
        sdc=sample.mean(sample.p, sample.changed),
        due=replace(due, high=min(due.high, 1.0)),
        control=control,
        sample=sample,
    )
