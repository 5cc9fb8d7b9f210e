"""What an architecture makes of faults, as an estimate that grows sharper: RA, uniform RA_SW, or 1 - MVF."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torchfault.campaign import Campaign, run
from torchfault.criteria import Misclassified, Top1Change
from torchfault.engine import Engine
from torchfault.errors import CampaignError, did_you_mean
from torchfault.hardware.accelerator import OUTPUT_STATIONARY, Accelerator
from torchfault.hardware.layers import Layers
from torchfault.hardware.measure import hardware_space
from torchfault.recipes import upsets
from torchfault.results import Results, resiliency
from torchfault.statistics import Estimate, MaxTrials
from torchfault.store import Store

__all__ = ["Robustness", "RobustnessKind"]

RobustnessKind = Literal["ra", "ra_sw", "mvf"]


@dataclass(frozen=True)
class Robustness:
    """What is estimated of each candidate, the larger the better, and on how many *trials* at the looks at it.

    *kind* is ``ra``, the Resiliency Accuracy on *accelerator*; ``ra_sw``, the accuracy under one uniform bit flip in
    any variable of its layers; or ``mvf``, the share of these flips that leave the answer as it is. Raises
    :class:`CampaignError` for another kind, and for trials that do not grow.

    >>> Robustness("ra", trials=(2048, 8192)).trials
    (2048, 8192)
    """

    kind: RobustnessKind = "ra"
    trials: tuple[int, ...] = (2048, 4096, 8192)
    accelerator: Accelerator = OUTPUT_STATIONARY

    def __post_init__(self) -> None:
        kinds = get_args(RobustnessKind)
        if self.kind not in kinds:
            raise CampaignError(
                f"robustness is one of {', '.join(kinds)}, got '{self.kind}'{did_you_mean(self.kind, kinds)}"
            )
        if not self.trials or self.trials[0] < 1 or list(self.trials) != sorted(set(self.trials)):
            raise CampaignError(
                f"the trials at each look grow from 1 up, got {self.trials}; the first look is cheapest"
            )

    def looks(self, engine: Engine, layers: Layers, *, store: Store, name: str, seed: int) -> Iterator[Results]:
        """Yield the results of *engine* after each number of trials, which *store* keeps under *name*."""
        campaign = self._campaign(engine, layers, seed)
        for trials in self.trials:
            yield run(replace(campaign, stop=MaxTrials(trials)), store=store, name=name)

    def estimate(self, results: Results, *, level: float) -> Estimate:
        """Return what is known of a candidate."""
        if self.kind == "ra":
            return resiliency(results, level=level).ra
        wrong = results.estimate(level=level)
        return replace(wrong, value=1 - wrong.value, low=1 - wrong.high, high=1 - wrong.low)

    def _campaign(self, engine: Engine, layers: Layers, seed: int) -> Campaign:
        if self.kind == "ra":
            return upsets(engine, self.accelerator, layers=layers, seed=seed)
        criterion = Misclassified() if self.kind == "ra_sw" else Top1Change()
        return Campaign(
            engine, hardware_space(layers.works, engine.space), criterion=criterion, seed=seed, stop=MaxTrials(1)
        )
