"""Running a campaign: draw, run, record, estimate, stop?; resumable, interruptible, one transaction per batch."""

import math
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import torchfault
from torchfault.campaign.audit import widening
from torchfault.campaign.identity import describe, differences
from torchfault.campaign.measure import Reference, measure, reference
from torchfault.campaign.plan import Campaign, check, forget, population, prepare, reach, rules, total
from torchfault.campaign.results import Results, load
from torchfault.campaign.standing import Standing, expected
from torchfault.campaign.stopped import LOOK
from torchfault.errors import CampaignError, StoreError
from torchfault.sampling import AdaptiveSampler, History, WeightedSampler
from torchfault.statistics import Estimate, HalfWidth, MaxTrials, Progress, TimeBudget, proportion
from torchfault.store import Columns, Record, Store

__all__ = ["CampaignInterrupted", "check_resumable", "run"]

_SMALLEST_BATCH = 256  # of the first one: results, and a rule's first look, should not have to wait for a full batch
_TOGETHER = 1 << 12  # trials that shortcuts resolve together where the sampler does not adapt
_QUIET = 0.1  # seconds between two calls of the progress callback within a batch


class CampaignInterrupted(KeyboardInterrupt):
    """Ctrl-C during a campaign: what was done is kept, in the store and in *results*; run it again to resume.

    >>> issubclass(CampaignInterrupted, KeyboardInterrupt)
    True
    """

    def __init__(self, results: Results) -> None:
        super().__init__(f"campaign '{results.name}' was interrupted after {len(results)} trials")
        self.results = results


@dataclass
class _Session:
    """One run of a campaign: what was found so far, and where it goes."""

    campaign: Campaign
    record: Record
    store: Store | None
    progress: Callable[[Standing], None] | None
    batch: int
    parts: list[Columns] = field(default_factory=list)
    trials: int = 0
    failures: int = 0
    seconds: float = 0.0
    stored: bool = False
    spoke: float = 0.0
    estimate: Estimate | None = None

    def results(self, *, status: str, reason: str) -> Results:
        columns = Columns.join(self.parts)
        ended = replace(self.record, status=status, reason=reason, trials=len(columns), seconds=self.seconds)
        return Results(ended, columns)


def run(
    campaign: Campaign,
    *,
    store: Store | str | Path | None = None,
    name: str = "campaign",
    progress: Callable[[Standing], None] | None = None,
    batch: int = 4096,
    settings: Mapping[str, Any] | None = None,
) -> Results:
    """Run *campaign* until its rule says stop, or resume it where *store* already holds some of it under *name*.

    With a *store*, open or named by path or URL, every batch of about *batch* lanes (fewer at first) is one
    transaction: a crash loses at most the one in flight. Without one the results are in memory alone. *progress* is
    called with a :class:`Standing` from time to time. *settings*, plain JSON, are kept under ``settings`` in the
    configuration for whoever builds the campaign anew; they decide nothing, so a resumed one may have others. Trials
    do not depend on *batch*, save that an engine may round differently, which can tip a tie between two classes.

    Raises :class:`CampaignError` where the stored campaign is another one, naming what changed (only the stopping rule
    may, which extends it), :class:`torchfault.errors.StoreError` where another process is running it, and
    :class:`CampaignInterrupted` after Ctrl-C.

    >>> from torchfault.engine import Engine
    >>> from torchfault.data import Data
    >>> import tempfile, torch
    >>> engine = Engine(torch.nn.Linear(4, 3).eval(), Data(torch.ones(2, 4)), executor="hooks")
    >>> campaign = Campaign(engine, engine.space.select("weight"), stop=MaxTrials(100))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = run(campaign, store=f"{folder}/results.sqlite", name="linear")
    ...     longer = run(replace(campaign, stop=MaxTrials(150)), store=f"{folder}/results.sqlite", name="linear")
    >>> len(first), len(longer), longer.columns.faults[:100].tolist() == first.columns.faults.tolist()
    (100, 150, True)
    """
    if batch < 1:
        raise CampaignError(f"a batch has at least one lane, got {batch}; leave it at 4096")
    if isinstance(store, str | Path):
        with Store(store) as opened:
            return run(campaign, store=opened, name=name, progress=progress, batch=batch, settings=settings)
    check(campaign)
    _warn(campaign)
    forget(campaign)
    session = _Session(campaign, _record(campaign, name, settings), store, progress, batch)
    if store is None:
        return _guarded(session)
    with store.writer(name):
        if name in store:
            _resume(session, store)
        return _guarded(session)


def _warn(campaign: Campaign) -> None:
    if (reached := reach(campaign)) < 1:
        warnings.warn(
            f"{type(campaign.sampler).__name__} can draw {100 * reached:.3g} % of the faults: the others count as "
            "unknown; give it floor=0.5 to reach them all",
            stacklevel=3,
        )


def _record(campaign: Campaign, name: str, settings: Mapping[str, Any] | None) -> Record:
    import torch

    from torchfault.criteria import bounds

    reached = reach(campaign)
    configuration = {
        "sampler": describe(campaign.sampler),
        "fault": describe(campaign.fault),
        "criterion": None if campaign.metric else describe(campaign.criterion),
        "metric": describe(campaign.metric),
        "stop": describe(campaign.stop),
    }
    configuration |= {} if campaign.shortcuts is None else {"shortcuts": describe(campaign.shortcuts)}
    if isinstance(campaign.sampler, WeightedSampler):
        configuration["largest_weight"] = float(campaign.sampler.largest_weight(campaign.space))
    if campaign.metric is not None and all(map(math.isfinite, known := bounds(campaign.metric))):
        configuration["span"] = list(known)
    configuration |= {} if settings is None else {"settings": dict(settings)}
    configuration |= {} if reached == 1 else {"reach": reached}
    versions = {
        "torchfault": torchfault.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executor": campaign.engine.executor,
    }
    return Record(
        name,
        space=campaign.space,
        inputs=campaign.inputs,
        configuration=configuration,
        seed=campaign.seed,
        versions=versions,
        model=campaign.engine.digest(),
        data=campaign.engine.data.digest(),
        population=population(campaign),
    )


def _resume(session: _Session, store: Store) -> None:
    """Take up what *store* holds, after making sure that it is the same campaign."""
    stored, now = store.campaign(session.record.name), session.record
    _check_same(stored, now)
    now = replace(now, configuration={**stored.configuration, **now.configuration})  # settings stay unless given anew
    session.record = replace(stored, configuration=now.configuration)
    columns = store.trials(now.name)
    session.parts = [columns]
    session.trials, session.failures = len(columns), int(columns.failed.sum())
    session.seconds, session.stored = stored.seconds, True
    if stored.status != "running" or stored.configuration != now.configuration:
        store.reopen(now.name, now.configuration)


def check_resumable(campaign: Campaign, stored: Record) -> None:
    """Raise :class:`CampaignError`, naming what changed, unless *stored* is *campaign* so far.

    :func:`run` does so by itself; this is for those who want to know beforehand.

    >>> from torchfault.engine import Engine
    >>> from torchfault.data import Data
    >>> from torchfault.statistics import MaxTrials
    >>> import torch
    >>> engine = Engine(torch.nn.Linear(4, 3).eval(), Data(torch.ones(2, 4)), executor="hooks")
    >>> begun = run(Campaign(engine, engine.space, seed=1, stop=MaxTrials(100)))
    >>> check_resumable(Campaign(engine, engine.space, seed=2, stop=MaxTrials(200)), begun.record)
    Traceback (most recent call last):
    torchfault.errors.CampaignError: campaign 'campaign' was begun with another seed (was 1, is now 2); ...
    """
    check(campaign)
    _check_same(stored, _record(campaign, stored.name, None))


def _check_same(stored: Record, now: Record) -> None:
    changed = differences(_identity(stored), _identity(now))
    if stored.space.digest() != now.space.digest():
        changed.append(_space_change(stored, now))
    if changed:
        raise CampaignError(
            f"campaign '{now.name}' was begun with another {', '.join(changed)}; "
            "restore that to resume it, or choose another name"
        )


def _identity(record: Record) -> dict[str, Any]:
    """Return all that decides a campaign's trials and outcomes, save its space."""
    fixed = {key: value for key, value in record.configuration.items() if key not in ("stop", "settings")}
    digests = {"model": {"sha256": record.model}, "data": {"sha256": record.data}}
    return {**digests, "inputs": record.inputs, "seed": record.seed, **fixed}


def _space_change(stored: Record, now: Record) -> str:
    before, after = ({site.name: site for site in record.space.sites} for record in (stored, now))
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    other = [name for name in after if name in before and before[name] != after[name]]
    phrases = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("without", gone), ("with the new", new), ("with another", other))
        if names
    ]
    return f"space (now {'; '.join(phrases) or 'its sites in another order'})"


def _guarded(session: _Session) -> Results:
    """Run *session*, and whatever ends it, leave the store saying what became of it."""
    store, name = session.store, session.record.name
    try:
        reason = _loop(session)
    except KeyboardInterrupt:
        # The transaction under way is in the store or it is not: only the store knows, so ask it.
        note = "interrupted from the keyboard"
        if store is None or name not in store:
            raise CampaignInterrupted(session.results(status="interrupted", reason=note)) from None
        store.finish(name, status="interrupted", reason=note)
        raise CampaignInterrupted(load(store, name)) from None
    except BaseException as error:
        if store is not None and session.stored:
            with suppress(StoreError):  # the first error is the one to hear of
                store.finish(name, status="failed", reason=f"{type(error).__name__}: {error}")
        raise
    if store is not None:
        store.finish(name, reason=reason)
    return session.results(status="finished", reason=reason)


def _loop(session: _Session) -> str:
    """Run batch after batch; return the reason to stop."""
    campaign, end = session.campaign, total(session.campaign)
    golden = reference(campaign)
    size = session.batch if golden is None else golden.batch(session.batch)
    reason = _reason(session, session.trials, session.failures, session.seconds) if session.trials else None
    while reason is None:
        if end is not None and session.trials >= end:
            return f"all {end} trials run"
        border = _affordable(session, _border(campaign, session.trials, size, end))
        reason = _enough(session) or _batch(session, border, golden)
    return reason


def _enough(session: _Session) -> str | None:
    """Return an adaptive sampler's reason to stop; it is asked after each of its blocks."""
    sampler, trials = session.campaign.sampler, session.trials
    if not isinstance(sampler, AdaptiveSampler) or not trials or trials % sampler.block:
        return None
    return sampler.finished(session.campaign.space, _history(session))


def _history(session: _Session) -> History:
    """Return the outcomes so far, for samplers that learn from them."""
    columns = Columns.join(session.parts)
    strata = np.zeros(len(columns), dtype=np.int32) if columns.strata is None else columns.strata
    wider = None if columns.lanes is None else partial(widening, columns, session.record.space)
    return History(columns.faults, strata, columns.failed, wider)


def _border(campaign: Campaign, first: int, size: int, end: int | None) -> int:
    """Return where the batch that begins at trial *first* ends: on the same borders whenever a campaign is resumed."""
    if campaign.shortcuts is not None:
        border = _whole(campaign, first)[1]
        return min([border, *(r.n for r in rules(campaign.stop) if isinstance(r, MaxTrials) and r.n > first)])
    step = min(size, _SMALLEST_BATCH)
    while step < min(size, first + 1):
        step *= 2
    border = step if first < step < size else (first // size + 1) * size
    limits = [rule.n for rule in rules(campaign.stop) if isinstance(rule, MaxTrials) and rule.n > first]
    if isinstance(campaign.sampler, AdaptiveSampler):  # the next block is planned once this one's outcomes are known
        limits.append((first // campaign.sampler.block + 1) * campaign.sampler.block)
    return min([border, *limits, *([] if end is None else [end])])


def _whole(campaign: Campaign, first: int) -> tuple[int, int]:
    """Return where the trials begin and end that shortcuts resolve together with trial *first*: always the same ones.

    What a pool holds must not depend on where a campaign was interrupted.
    """
    size = campaign.sampler.block if isinstance(campaign.sampler, AdaptiveSampler) else _TOGETHER
    begin, end = first // size * size, total(campaign)
    return begin, begin + size if end is None else min(begin + size, end)


def _affordable(session: _Session, last: int) -> int:
    """Return *last*, or less where a time budget would run out well before."""
    left = [r.seconds - session.seconds for r in rules(session.campaign.stop) if isinstance(r, TimeBudget)]
    spare = min((seconds for seconds in left if seconds > 0), default=None)
    if spare is None or session.campaign.shortcuts is not None or not session.trials or not session.seconds:
        return last
    return min(last, session.trials + max(1, round(spare * session.trials / session.seconds)))


def _batch(session: _Session, last: int, golden: Reference | None) -> str | None:
    """Run the trials up to *last*, keep those that the rule admits, and return its reason to stop, if any."""
    campaign, first, began = session.campaign, session.trials, time.perf_counter()
    history = _history(session) if isinstance(campaign.sampler, AdaptiveSampler) else None
    begin, end = (first, last) if campaign.shortcuts is None else _whole(campaign, first)
    plan = prepare(campaign, begin, end, history=history)
    if plan.columns.weights is not None and any(isinstance(rule, HalfWidth) for rule in rules(campaign.stop)):
        raise CampaignError(
            "HalfWidth is about equally weighted trials, got weighted ones; use MaxTrials or TimeBudget"
        )
    ahead = 0

    def seen(trials: int) -> None:
        nonlocal ahead
        ahead += trials
        if time.perf_counter() - session.spoke > _QUIET:
            _speak(session, ahead, time.perf_counter() - began)

    earlier = None if campaign.shortcuts is None else Columns.join(session.parts).take(0, begin)
    columns = measure(campaign, plan, golden=golden, seen=seen, before=(begin, earlier))
    columns = columns.take(first - begin, last - begin)
    reason, kept = _look(session, columns, time.perf_counter() - began)
    columns, seconds = columns.take(0, kept), time.perf_counter() - began
    if session.store is not None:
        if not session.stored:  # only now: what cannot run at all leaves nothing behind
            session.record, session.stored = session.store.create(session.record), True
        session.store.append(session.record.name, columns, first=first, seconds=seconds)
    session.parts.append(columns)
    session.trials += kept
    session.failures += int(columns.failed.sum())
    session.seconds += seconds
    session.estimate = None
    _speak(session, 0, 0.0)
    return reason


def _look(session: _Session, columns: Columns, seconds: float) -> tuple[str | None, int]:
    """Ask the rule after every so many trials of a finished batch; return its reason and how many of them to keep.

    The looks are at the same trials however a campaign was interrupted, so that a rule on counts always stops it at
    the same one. Time is looked at only at the end of a batch: its trials have been paid for.
    """
    first, last = session.trials, session.trials + len(columns)
    failures = np.concatenate(([0], np.cumsum(columns.failed)))
    for trial in [*range((first // LOOK + 1) * LOOK, last, LOOK), last]:
        spent = session.seconds + (seconds if trial == last else 0.0)
        reason = _reason(session, trial, session.failures + int(failures[trial - first]), spent)
        if reason is not None:
            return reason, trial - first
    return None, len(columns)


def _reason(session: _Session, trials: int, failures: int, seconds: float) -> str | None:
    rule = session.campaign.stop
    return None if rule is None else rule(Progress(trials=trials, failures=failures, seconds=seconds))


def _speak(session: _Session, ahead: int, seconds: float) -> None:
    """Tell the progress callback where the campaign stands, *ahead* trials and *seconds* into a batch."""
    session.spoke = time.perf_counter()
    if session.progress is None:
        return
    done = session.trials + ahead
    estimate = session.estimate = session.estimate or _estimate(session)
    spent = session.seconds + seconds
    rate = done / spent if spent > 0 else 0.0
    goal = expected(session.campaign, estimate, done=done, seconds=spent, rate=rate)
    left = None if goal is None or rate == 0 else max(goal - done, 0) / rate
    session.progress(Standing(done, goal, rate, left, estimate))


def _estimate(session: _Session) -> Estimate:
    """Return the estimate of the finished batches, from counts alone where they suffice."""
    plain = all(part.weights is None and part.values is None for part in session.parts)
    if plain and session.record.population is None:
        return proportion(session.failures, session.trials)
    return session.results(status="running", reason="").estimate()
