"""`status`: how far the campaigns of a store are, from another terminal, while they run."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torchfault.cli.machine import print_object
from torchfault.cli.screen import Column, Table, count, duration, next_steps, say, show_table
from torchfault.cli.showing import short, store_flag
from torchfault.errors import ConfigError

if TYPE_CHECKING:
    from torchfault.store import Store

__all__ = ["show_status"]


@dataclass(frozen=True)
class _Standing:
    """Where a campaign stands: *rate* in trials a second over its last batches, *left* in seconds.

    The *workers* are those of its last batch, 0 where the campaign's own process runs the lanes.
    """

    name: str
    state: str
    trials: int
    wanted: int | None
    rate: float | None
    left: float | None
    workers: int | None
    value: float
    low: float
    high: float


def show_status(name: str | None, where: str, *, every: float | None, as_json: bool) -> None:
    """Print where one campaign stands, or all of a store; *every* so many seconds, until none runs any more."""
    from torchfault.store import Store

    if every is not None and not 0.1 <= every <= 86_400:
        raise ConfigError(f"--every: expected seconds from 0.1 to 86400, got {every:g}; try 5")
    while True:
        with Store(where, access="read") as store:
            names = [record.name for record in store.campaigns()] if name is None else [name]
            standings = [_standing(store, one) for one in names]
        if as_json:
            print_object("status", {"store": short(where), "campaigns": [asdict(one) for one in standings]})
        else:
            _print(standings, where)
        if every is None or not any(one.state == "running" for one in standings):
            return
        time.sleep(every)


def _standing(store: "Store", name: str) -> _Standing:
    from torchfault.results import load

    running, results = store.running(name), load(store, name)
    record, (trials, seconds) = results.record, store.pace(name)
    state = "running" if running else "killed" if record.status == "running" else record.status
    stop = (record.configuration.get("settings") or {}).get("stop") or {}
    wanted = stop.get("trials") if isinstance(stop, dict) else None
    rate = trials / seconds if seconds > 0 else None
    left = (wanted - record.trials) / rate if wanted and rate and running else None
    estimate = results.estimate()
    workers = store.workers(name) if running else None
    told = (estimate.value, estimate.low, estimate.high)
    return _Standing(name, state, record.trials, wanted, rate, left, workers, *told)


def _print(standings: Sequence[_Standing], where: str) -> None:
    if not standings:
        say(f"{short(where)} holds no campaign yet; start one with: torchfault run --help", out=True)
        return
    columns = [Column("campaign"), Column("state"), Column("trials", True), Column("of", True, 2)]
    columns += [Column("trials/s", True, 1), Column("left", True, 1), Column("workers", True, 1)]
    columns += [Column("fail %", True), Column("interval", True)]
    rows = [
        (
            one.name,
            one.state,
            count(one.trials),
            "" if one.wanted is None else count(one.wanted),
            "" if one.rate is None else count(round(one.rate)),
            "" if one.left is None else duration(one.left),
            "" if one.workers is None else count(one.workers),
            f"{100 * one.value:.3g}",
            f"[{100 * one.low:.3g}, {100 * one.high:.3g}]",
        )
        for one in standings
    ]
    show_table(Table(columns, rows))
    steps = [f"torchfault resume {one.name}{store_flag(where)}" for one in standings if one.state == "killed"]
    next_steps(steps or [f"torchfault show {standings[-1].name}{store_flag(where)}"])
