"""What runs the lanes of a campaign: this process, or others that hold the same model and inputs."""

from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from torchfault.campaign.campaign import Campaign
from torchfault.campaign.judging import Judge, Meter, Seen
from torchfault.resolve import Verdicts
from torchfault.trials import Runs, Trials, all_at_once

__all__ = ["SHARD", "Bench", "Crew", "Shards", "Workers", "bench_of"]

SHARD = 1024
"""Lanes that a worker gets at a time of what is resolved together: some more and a sweep gains little."""

_TELL = 0.2  # seconds between two looks at Ctrl-C and at the progress while workers work


@dataclass(frozen=True, eq=False)
class Bench:
    """What a worker needs of *campaign*: it takes trials and returns the verdicts, or the metric, of each.

    With *details* also the answer and the change of every lane. It can be pickled where the model can.
    """

    campaign: Campaign
    details: bool

    def __call__(self, runs: Runs, seen: Seen = lambda _: None) -> Verdicts:
        """Return the columns of *runs*, shape (lanes,) each; *seen* is told of lanes as they end."""
        if self.meter is None:
            return self.judge(runs, seen)
        metric, due = self.meter(runs, seen)
        return {"metric": metric, "due": due}

    @cached_property
    def judge(self) -> Judge:
        """What tells verdicts."""
        return Judge(self.campaign, self.details)

    @cached_property
    def meter(self) -> Meter | None:
        """What measures the metric, if there is one; it keeps what it knows of the model without faults."""
        return None if self.campaign.metric is None else Meter(self.campaign)


def bench_of(campaign: Campaign, *, details: bool) -> Bench:
    """Return what workers need of *campaign*: not how it draws, nor how it resolves, nor when it stops."""
    engine, metric = campaign.engine, campaign.metric
    if metric is not None:
        return Bench(Campaign(engine, engine.space, metric=metric), details)
    judged = {"criterion": campaign.criterion, "verdicts": campaign.verdicts, "monitor": campaign.monitor}
    return Bench(Campaign(engine, engine.space, **judged), details)  # type: ignore[arg-type]  # each of its own type


class Crew(Protocol):
    """Workers that are at work."""

    @property
    def size(self) -> int:
        """How many there are to be, also while some of them are lost."""
        ...

    @property
    def present(self) -> int:
        """How many are at work now: those that have not begun yet, and those that are lost, are not."""
        ...

    def submit(self, trials: Trials) -> "Future[Verdicts]":
        """Give *trials* to the next worker that is free; what a lost worker had is given to another."""
        ...


@runtime_checkable
class Workers(Protocol):
    """Where lanes run, as a value; :class:`torchfault.cluster.Processes` is one."""

    def start(self, bench: Bench) -> AbstractContextManager[Crew]:
        """Start workers that each hold *bench*; they end with the scope, whatever ends it."""
        ...


@dataclass(frozen=True, eq=False)
class Shards:
    """Takes trials apart, has the parts run by *bench* or by a *crew*, and puts their verdicts together again.

    The parts have *size* trials, or are whole (``None``), whoever runs them: results do not tell how many did.
    """

    bench: Bench
    crew: Crew | None
    size: int | None
    seen: Seen

    def __call__(self, runs: Runs) -> Verdicts:
        """Return the verdicts of *runs*, shape (lanes,) each."""
        n, size = len(runs), self.size or max(len(runs), 1)
        if n <= size:
            (whole,) = self._parts([runs])
            return whole
        rows = [np.arange(first, min(first + size, n)) for first in range(0, n, size)]
        found: dict[str, Any] = {}
        for row, verdicts in zip(rows, self._parts([runs.take(row) for row in rows]), strict=True):
            for name, values in verdicts.items():
                found.setdefault(name, np.zeros(n, dtype=values.dtype))[row] = values
        return found

    def _parts(self, parts: list[Runs]) -> Iterator[Verdicts]:
        if self.crew is None:
            for part in parts:
                yield self.bench(part, self.seen)
            return
        futures = [self.crew.submit(all_at_once(part)) for part in parts]
        for part, future in zip(parts, futures, strict=True):
            yield awaited(future, self.seen)
            self.seen(len(part))


def awaited(future: "Future[Any]", seen: Seen) -> Any:
    """Return the result of *future*; meanwhile Ctrl-C is heard, and *seen* is called from time to time."""
    while True:
        try:
            return future.result(timeout=_TELL)
        except NotYet:
            if future.done():
                raise
            seen(0)
