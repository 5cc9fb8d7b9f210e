"""The loop of every campaign: draw, resolve, update the tally, append to the store, stop?"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torchfault.campaign.campaign import Campaign, check, level_of, population_of
from torchfault.campaign.drawing import RESOLVING, Drawn, Source
from torchfault.campaign.identity import check_same, record_of
from torchfault.campaign.judging import Judge, Meter, golden_facts
from torchfault.campaign.outcomes import Prospects, measured, prospects_of, resolved
from torchfault.campaign.progress import Standing, expected_trials, half_widths, is_counted, running_estimate
from torchfault.errors import CampaignError, StoreError
from torchfault.resolve import Verdicts
from torchfault.results import LOOK, Results, load
from torchfault.results.assumptions import widening
from torchfault.sampling import Design, stream
from torchfault.sampling.tally import Tally
from torchfault.statistics import Estimate, MaxTrials, Progress, TimeBudget
from torchfault.statistics.stopping import AllOf, AnyOf, Rule, rules
from torchfault.store import Columns, Record, Store

__all__ = ["CampaignInterrupted", "check_resumable", "run"]

_SMALLEST_BATCH = 256  # of the first one: results, and a rule's first look, should not have to wait for a full batch
_TOGETHER = 1 << 12  # rows that a resolver sees together where the sampler's blocks do not decide
_LANES = 4  # about as many as a whole word takes, so that a batch of words is not kept later than one of faults
_QUIET = 0.1  # seconds between two calls of the progress callback within a batch
_PATIENCE = 10.0  # an estimate for the callback is made anew after so many times as long as the last one took


class CampaignInterrupted(KeyboardInterrupt):
    """Ctrl-C during a campaign: what was done is kept, in the store and in *results*; run it again to resume.

    >>> issubclass(CampaignInterrupted, KeyboardInterrupt)
    True
    """

    def __init__(self, results: Results) -> None:
        super().__init__(f"campaign '{results.name}' was interrupted after {len(results)} trials")
        self.results = results


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

    >>> from torchfault.testing import example_campaign
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = run(example_campaign(trials=100), store=f"{folder}/results.sqlite", name="linear")
    ...     longer = run(example_campaign(trials=150), store=f"{folder}/results.sqlite", name="linear")
    >>> len(first), len(longer), longer.columns.faults[:100].tolist() == first.columns.faults.tolist()
    (100, 150, True)
    """
    _check_arguments(batch, progress)
    if isinstance(store, str | Path):
        with Store(store) as opened:
            return run(campaign, store=opened, name=name, progress=progress, batch=batch, settings=settings)
    session = _Session(campaign, store, progress, batch)
    session.record = _record(session, name, settings)
    if store is None:
        return _guarded(session)
    with store.writer(name):
        if name in store:
            _take_up(session, store)
        return _guarded(session)


def _check_arguments(batch: int, progress: object) -> None:
    if batch < 1:
        raise CampaignError(f"a batch has at least one lane, got {batch}; leave it at 4096")
    if progress is not None and not callable(progress):
        raise CampaignError(f"progress is a function that takes a Standing, got {progress!r}; pass print to try it")


def check_resumable(campaign: Campaign, stored: Record) -> None:
    """Raise :class:`CampaignError`, naming what changed, unless *stored* is *campaign* so far.

    :func:`run` does so by itself; this is for those who want to know beforehand.

    >>> from torchfault.testing import example_campaign
    >>> begun = run(example_campaign(trials=100, seed=1))
    >>> check_resumable(example_campaign(trials=200, seed=2), begun.record)
    Traceback (most recent call last):
    torchfault.errors.CampaignError: campaign 'campaign' was begun with another seed (was 1, is now 2); ...
    """
    check_same(stored, _record(_Session(campaign, None, None, 1), stored.name, None))


class _Session:
    """One run of a campaign: what is known so far, and where it goes."""

    record: Record

    def __init__(
        self, campaign: Campaign, store: Store | None, progress: Callable[[Standing], None] | None, batch: int
    ) -> None:
        self.campaign, self.store, self.progress = campaign, store, progress
        self.design = _design(campaign)
        self.source = Source(campaign, self.design)
        self.tally = Tally(
            campaign.space,
            self.design,
            repeats=self.source.repeats,
            widening=widening if campaign.resolver.assumption else None,
        )
        self.judge = Judge(
            campaign, self.seen, details=not campaign.resolver.assumption and self.design.unit == "fault"
        )
        self.meter = None if campaign.metric is None else Meter(campaign)
        each = max(len(site.bits) for site in campaign.engine.space.sites) if self.design.unit == "word" else 1
        self.batch = max(batch // each, 1) if self.meter is None else self.meter.batch(batch)
        self.prepared: tuple[int, Drawn, Prospects] | None = None
        self.seconds, self.stored = 0.0, False
        self.began, self.ahead, self.lanes = time.perf_counter(), 0, 0
        self.spoke, self.stale = 0.0, 0.0
        self.estimate: Estimate | None = None

    @cached_property
    def golden(self) -> Verdicts:
        """The verdicts on all inputs without faults."""
        return self.judge.golden()

    @property
    def together(self) -> bool:
        """Whether a resolver has to see trials together, always the same ones."""
        return bool(self.campaign.resolver.assumption)

    def seen(self, lanes: int) -> None:
        """Note that so many lanes have ended."""
        self.lanes += lanes
        if not self.together and self.design.unit == "fault":
            self.ahead += lanes
        if time.perf_counter() - self.spoke > _QUIET:
            _speak(self, time.perf_counter() - self.began)


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


def _record(session: _Session, name: str, settings: Mapping[str, Any] | None) -> Record:
    facts = golden_facts(session.campaign, session.judge, session.meter)
    return record_of(session.campaign, session.design, name=name, settings=settings, golden=facts)


def _take_up(session: _Session, store: Store) -> None:
    """Take up what *store* holds, after making sure that it is the same campaign."""
    now = session.record
    stored = store.campaign(now.name)
    check_same(stored, now)
    now = replace(now, configuration={**stored.configuration, **now.configuration})  # settings stay unless given anew
    session.record = replace(stored, configuration=now.configuration)
    columns = load(store, now.name).columns
    session.seconds, session.stored = stored.seconds, True
    begin, end = _span(session, len(columns))
    session.tally.add(columns.take(0, begin))
    if begin < len(columns):  # what was drawn and resolved together depends on what came before it, and on no more
        _prepare(session, begin, end)
        session.tally.add(columns.take(begin, len(columns)))
    if stored.status != "running" or stored.configuration != now.configuration:
        store.reopen(now.name, now.configuration)


def _guarded(session: _Session) -> Results:
    """Run *session*, and whatever ends it, leave the store saying what became of it."""
    store, name = session.store, session.record.name
    try:
        reason = _loop(session)
        if store is not None:
            store.finish(name, reason=reason)
            store.verify(name, trials=session.tally.trials)
    except KeyboardInterrupt:
        # The transaction under way is in the store or it is not: only the store knows, so ask it.
        note = "interrupted from the keyboard"
        if store is None or name not in store:
            raise CampaignInterrupted(_results(session, status="interrupted", reason=note)) from None
        store.finish(name, status="interrupted", reason=note)
        raise CampaignInterrupted(load(store, name)) from None
    except BaseException as error:
        if store is not None and session.stored:
            with suppress(StoreError):  # the first error is the one to hear of
                store.finish(name, status="failed", reason=f"{type(error).__name__}: {error}")
        raise
    return _results(session, status="finished", reason=reason)


def _results(session: _Session, *, status: str, reason: str) -> Results:
    columns = session.tally.columns()
    ended = replace(session.record, status=status, reason=reason, trials=len(columns), seconds=session.seconds)
    return Results(ended, columns)


def _loop(session: _Session) -> str:
    """Run batch after batch; return the reason to stop."""
    tally, total = session.tally, session.source.total
    reason = _reason(session) if tally.trials else None
    while reason is None:
        if total is not None and tally.trials >= total:
            return f"all {total} trials run"
        first, session.began = tally.trials, time.perf_counter()
        columns = _outcomes(session, first, _border(session, first))
        reason, kept = _update(session, columns)
        _append(session, columns.take(0, kept), first)
        _speak(session, 0.0, last=reason is not None)
    return reason


def _outcomes(session: _Session, first: int, last: int) -> Columns:
    """Draw the trials from *first* to *last*, or some fewer, and find their outcomes."""
    begin, end = _span(session, first)
    if not session.together:
        if session.design.adapts:
            _prepare(session, begin, end)
        drawn = session.source.take(first, last, session.tally)
        if session.meter is not None:
            return measured(drawn, session.meter, session.seen)
        return _resolved(session, first, drawn, prospects_of(session.campaign, session.design, drawn, session.tally))
    _, drawn, prospects = _prepare(session, begin, end)
    return _resolved(session, begin, drawn, prospects).take(first - begin, last - begin)


def _resolved(session: _Session, first: int, drawn: Drawn, prospects: Prospects) -> Columns:
    rng = stream(session.campaign.seed, RESOLVING, first)
    return resolved(session.campaign, drawn, session.judge, prospects, golden=lambda: session.golden, rng=rng)


def _span(session: _Session, first: int) -> tuple[int, int]:
    """Return where the trials begin and end that are drawn or resolved together with trial *first*: always the same.

    What a block or a pool holds must not depend on where a campaign was interrupted.
    """
    total, size = session.source.total, session.source.size
    if session.together and not session.design.adapts:
        size = _TOGETHER if session.design.unit == "fault" else _TOGETHER // _LANES
    elif not session.together and not session.design.adapts:
        return first, first
    begin = first // size * size
    return begin, begin + size if total is None else min(begin + size, total)


def _prepare(session: _Session, begin: int, end: int) -> tuple[int, Drawn, Prospects]:
    """Draw what depends on the outcomes before trial *begin*, once; the tally holds these, or it was drawn before."""
    if session.prepared is None or session.prepared[0] != begin:
        if session.together:
            drawn = session.source.take(begin, end, session.tally)
        else:
            drawn = session.source.take(begin, begin + 1, session.tally)  # its block is kept
        session.prepared = (begin, drawn, prospects_of(session.campaign, session.design, drawn, session.tally))
    return session.prepared


def _border(session: _Session, first: int) -> int:
    """Return where the batch that begins at trial *first* ends: on the same borders whenever a campaign is resumed."""
    campaign, size, total = session.campaign, session.batch, session.source.total
    limits = [rule.n for rule in rules(campaign.stop) if isinstance(rule, MaxTrials) and rule.n > first]
    limits += [] if total is None else [total]
    if session.together:
        return min([_span(session, first)[1], *limits])
    step = min(size, _SMALLEST_BATCH)
    while step < min(size, first + 1):
        step *= 2
    border = step if first < step < size else (first // size + 1) * size
    if session.design.adapts:  # the next block is planned once this one's outcomes are known
        limits.append(_span(session, first)[1])
    return min([_affordable(session, border), *limits])


def _affordable(session: _Session, last: int) -> int:
    """Return *last*, or less where a time budget would run out well before."""
    left = [r.seconds - session.seconds for r in rules(session.campaign.stop) if isinstance(r, TimeBudget)]
    spare, done = min((seconds for seconds in left if seconds > 0), default=None), session.tally.trials
    if spare is None or not done or not session.seconds:
        return last
    return min(last, done + max(1, round(spare * done / session.seconds)))


def _update(session: _Session, columns: Columns) -> tuple[str | None, int]:
    """Add a batch to the tally, and ask the rule at every look; return its reason and how many trials count."""
    first, spent = session.tally.trials, session.seconds + time.perf_counter() - session.began
    done = 0
    for last in _looks(session, first, first + len(columns)):
        session.tally.add(columns.take(done, last - first))
        done = last - first
        reason = _reason(session, seconds=spent if done == len(columns) else None)
        if reason is not None:
            return reason, done
    return None, done


def _looks(session: _Session, first: int, last: int) -> Iterator[int]:
    """Yield after which trials of a batch to ask the rule: the same ones however a campaign was interrupted.

    Rules that count are asked after so many trials, those on intervals that hold at every look after every block.
    Where intervals take more than counts, and for time, whose trials have been paid for, the batch's end has to do.
    """
    stop = session.campaign.stop
    patient = all(isinstance(rule, MaxTrials | TimeBudget | AllOf | AnyOf) for rule in rules(stop))
    every = session.design.looks == "every"
    if not patient and (every or is_counted(session.record, session.tally)):
        step = session.source.size if every else LOOK
        yield from range((first // step + 1) * step, last, step)
    yield last


def _reason(session: _Session, *, seconds: float | None = None) -> str | None:
    """Return why to stop, or ``None`` to go on."""
    rule: Rule | None = session.campaign.stop
    if rule is None:
        return None
    tally = session.tally
    widths = partial(half_widths, session.record, tally)
    failures = float(tally.counts("model").failures[0])
    spent = session.seconds if seconds is None else seconds
    return rule(Progress(trials=tally.trials, failures=failures, seconds=spent, widths=widths))


def _append(session: _Session, columns: Columns, first: int) -> None:
    """Store a finished batch, and count its time."""
    seconds = time.perf_counter() - session.began
    if session.store is not None:
        if not session.stored:  # only now: what cannot run at all leaves nothing behind
            session.record, session.stored = session.store.create(session.record), True
        session.store.append(session.record.name, columns, first=first, seconds=seconds)
    session.seconds += seconds
    session.ahead = 0


def _speak(session: _Session, seconds: float, *, last: bool = False) -> None:
    """Tell the progress callback where the campaign stands, so many *seconds* into a batch, or at the *last* one."""
    session.spoke = time.perf_counter()
    if session.progress is None:
        return
    done, spent = session.tally.trials + session.ahead, session.seconds + seconds
    if session.estimate is None or last or (not seconds and session.spoke > session.stale):
        level = level_of(session.campaign)
        session.estimate = running_estimate(session.record, session.tally, level=level)
        now = time.perf_counter()
        if session.tally.trials:  # without any there is nothing yet that might go stale
            session.stale = now + _PATIENCE * (now - session.spoke)
    rate = done / spent if spent > 0 else 0.0
    stop, end = session.campaign.stop, session.source.total
    goal = expected_trials(stop, end, session.estimate, done=done, seconds=spent, rate=rate)
    left = None if goal is None or rate == 0 else max(goal - done, 0) / rate
    session.progress(Standing(done, goal, rate, left, session.estimate, session.lanes))
