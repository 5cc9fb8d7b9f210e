"""One run of a campaign: what is known so far, who runs its lanes, and where its trials go."""

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property

from torchfault.campaign.ahead import Ahead
from torchfault.campaign.campaign import Campaign, check, level_of, population_of, sees_every_lane
from torchfault.campaign.drawing import Drawn, Source
from torchfault.campaign.outcomes import Prospects
from torchfault.campaign.progress import Standing, expected_trials, running_estimate
from torchfault.campaign.workers import SHARD, Bench, Shards, Workers, bench_of
from torchfault.resolve import Verdicts
from torchfault.results.assumptions import widening
from torchfault.sampling import Design
from torchfault.sampling.tally import Tally
from torchfault.statistics import Estimate
from torchfault.store import Columns, Record, Store

__all__ = ["Session"]

_QUIET = 0.1  # seconds between two calls of the progress callback within a batch
_PATIENCE = 10.0  # an estimate for the callback is made anew after so many times as long as the last one took


class Session:
    """What is known so far, who runs the lanes, and where trials go."""

    record: Record

    def __init__(
        self,
        campaign: Campaign,
        store: Store | None,
        progress: Callable[[Standing], None] | None,
        batch: int,
        workers: Workers | None,
    ) -> None:
        self.campaign, self.store, self.progress, self.workers = campaign, store, progress, workers
        self.design = _design(campaign)
        self.source = Source(campaign, self.design)
        self.tally = Tally(
            campaign.space,
            self.design,
            repeats=self.source.repeats,
            widening=widening if campaign.resolver.assumption else None,
        )
        self.bench = Bench(campaign, details=sees_every_lane(campaign) and self.design.unit == "fault")
        self.judge, self.meter = self.bench.judge, self.bench.meter
        each = max(len(site.bits) for site in campaign.engine.space.sites) if self.design.unit == "word" else 1
        self.batch = max(batch // each, 1) if self.meter is None else self.meter.batch(batch)
        self.scope, self.early = ExitStack(), Ahead[Columns]()
        self.prepared: tuple[int, Drawn, Prospects] | None = None
        self.seconds, self.stored = 0.0, False
        self.began, self.ahead, self.lanes = time.perf_counter(), 0, 0
        self.spoke, self.stale = 0.0, 0.0
        self.estimate: Estimate | None = None

    @cached_property
    def golden(self) -> Verdicts:
        """The verdicts on all inputs without faults."""
        return self.judge.golden()

    @cached_property
    def ask(self) -> Shards:
        """Who runs lanes: it starts when the first of them are due, and ends with the scope."""
        # Forgotten at the end: the cycle would keep all trials until Python looks for cycles, which it does seldom.
        self.scope.callback(self.__dict__.pop, "ask", None)
        bench, size = self.bench, None
        if self.together or self.design.adapts:
            size = SHARD if self.meter is None else max(1, SHARD // self.campaign.inputs)
        if self.workers is None:
            return Shards(bench, None, size, self.seen)
        if not self.together and self.meter is None:
            _ = self.golden  # which is then there for all threads
        self.scope.enter_context(self.early)
        crew = self.scope.enter_context(self.workers.start(bench_of(self.campaign, details=bench.details)))
        return Shards(bench, crew, size, self.seen)

    @property
    def together(self) -> bool:
        """Whether a resolver has to see trials together, always the same ones."""
        return not sees_every_lane(self.campaign)

    def seen(self, lanes: int) -> None:
        """Note that so many lanes have ended."""
        self.lanes += lanes
        if not self.together and self.design.unit == "fault":
            self.ahead += lanes
        if time.perf_counter() - self.spoke > _QUIET:
            self.speak(time.perf_counter() - self.began)

    def speak(self, seconds: float, *, last: bool = False) -> None:
        """Tell the progress callback where it stands, so many *seconds* into a batch, or at the *last* one."""
        self.spoke = time.perf_counter()
        if self.progress is None:
            return
        done, spent = self.tally.trials + self.ahead, self.seconds + seconds
        if self.estimate is None or last or (not seconds and self.spoke > self.stale):
            level = level_of(self.campaign)
            self.estimate = running_estimate(self.record, self.tally, level=level)
            now = time.perf_counter()
            if self.tally.trials:  # without any there is nothing yet that might go stale
                self.stale = now + _PATIENCE * (now - self.spoke)
        rate = done / spent if spent > 0 else 0.0
        stop, end = self.campaign.stop, self.source.total
        goal = expected_trials(stop, end, self.estimate, done=done, seconds=spent, rate=rate)
        left = None if goal is None or rate == 0 else max(goal - done, 0) / rate
        self.progress(Standing(done, goal, rate, left, self.estimate, self.lanes))


def _design(campaign: Campaign) -> Design:
    """Return the design of a campaign that can run as it is; warn where it leaves faults out."""
    design = campaign.sampler.design(population_of(campaign))
    check(campaign, design)
    if design.reach < 1:
        warnings.warn(
            f"{type(campaign.sampler).__name__} can draw {100 * design.reach:.3g} % of the faults: the others count as "
            "unknown; give it floor=0.5 to reach them all",
            stacklevel=4,
        )
    return design
