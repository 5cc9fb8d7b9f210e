"""The loop of every campaign: draw, resolve, update the tally, append to the store, stop?"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torchfault.campaign.campaign import Campaign
from torchfault.campaign.drawing import RESOLVING, Drawn
from torchfault.campaign.identity import check_same, record_of
from torchfault.campaign.judging import golden_facts
from torchfault.campaign.outcomes import Prospects, measured, prospects_of, resolved
from torchfault.campaign.progress import Standing, half_widths, is_counted
from torchfault.campaign.session import Session
from torchfault.campaign.workers import Shards, Workers
from torchfault.errors import CampaignError, StoreError
from torchfault.results import LOOK, Results, load
from torchfault.sampling import stream
from torchfault.statistics import MaxTrials, Progress, TimeBudget
from torchfault.statistics.stopping import AllOf, AnyOf, Rule, rules
from torchfault.store import Columns, Record, Store
from torchfault.trials import all_at_once

__all__ = ["CampaignInterrupted", "check_resumable", "run"]

_BATCH, _LARGEST_BATCH = 4096, 1 << 15
_SMALLEST_BATCH = 256  # of the first one: results, and a rule's first look, should not have to wait for a full batch
_SHARED = 16  # lanes of a batch for each input, so that little of a lane's time goes to passes without faults
_TOGETHER = 1 << 12  # rows that a resolver sees together where the sampler's blocks do not decide
_LANES = 4  # about as many as a whole word takes, so that a batch of words is not kept later than one of faults


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
    batch: int | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: Workers | None = None,
) -> Results:
    """Run *campaign* until its rule says stop, or resume it where *store* already holds some of it under *name*.

    With a *store*, open or named by path or URL, every batch of about *batch* lanes (fewer at first) is one
    transaction: a crash loses at most the one in flight. Unless told these are 4,096, and more on more than 256 inputs,
    of which each batch runs the golden pass anew where their values do not all fit into the memory. Without a store the
    results are in memory alone. *progress* is called with a :class:`Standing` from time to time. *settings*, plain
    JSON, are kept under ``settings`` in the configuration for whoever builds the campaign anew; they decide nothing, so
    a resumed one may have others. Trials do not depend on *batch*, save that an engine may round differently, which can
    tip a tie between two classes. Lanes run in this process, or in *workers* (:mod:`torchfault.cluster`), with the same
    results.

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
    batch = _usual_batch(campaign) if batch is None else batch
    _check_arguments(batch, progress, workers)
    if isinstance(store, str | Path):
        with Store(store) as opened:
            return run(
                campaign, store=opened, name=name, progress=progress, batch=batch, settings=settings, workers=workers
            )
    session = Session(campaign, store, progress, batch, workers)
    session.record = _record(session, name, settings)
    if store is None:
        return _guarded(session)
    with store.writer(name):
        if name in store:
            _take_up(session, store)
        return _guarded(session)


def _usual_batch(campaign: Campaign) -> int:
    return min(max(_BATCH, _SHARED * campaign.inputs), _LARGEST_BATCH)


def _check_arguments(batch: int, progress: object, workers: object) -> None:
    if batch < 1:
        raise CampaignError(f"a batch has at least one lane, got {batch}; leave it out")
    if progress is not None and not callable(progress):
        raise CampaignError(f"progress is a function that takes a Standing, got {progress!r}; pass print to try it")
    if workers is not None and (isinstance(workers, type) or not isinstance(workers, Workers)):
        raise CampaignError(f"workers are those of torchfault.cluster, got {workers!r}; write workers=Processes(2)")


def check_resumable(campaign: Campaign, stored: Record) -> None:
    """Raise :class:`CampaignError`, naming what changed, unless *stored* is *campaign* so far.

    :func:`run` does so by itself; this is for those who want to know beforehand.

    >>> from torchfault.testing import example_campaign
    >>> begun = run(example_campaign(trials=100, seed=1))
    >>> check_resumable(example_campaign(trials=200, seed=2), begun.record)
    Traceback (most recent call last):
    torchfault.errors.CampaignError: campaign 'campaign' was begun with another seed (was 1, is now 2); ...
    """
    check_same(stored, _record(Session(campaign, None, None, 1, None), stored.name, None))


def _record(session: Session, name: str, settings: Mapping[str, Any] | None) -> Record:
    facts = golden_facts(session.campaign, session.judge, session.meter)
    return record_of(session.campaign, session.design, name=name, settings=settings, golden=facts)


def _take_up(session: Session, store: Store) -> None:
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


def _guarded(session: Session) -> Results:
    """Run *session*, and whatever ends it, leave the store saying what became of it."""
    store, name = session.store, session.record.name
    try:
        with session.scope:
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


def _results(session: Session, *, status: str, reason: str) -> Results:
    columns = session.tally.columns()
    ended = replace(session.record, status=status, reason=reason, trials=len(columns), seconds=session.seconds)
    return Results(ended, columns)


def _loop(session: Session) -> str:
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
        session.speak(0.0, last=reason is not None)
    return reason


def _outcomes(session: Session, first: int, last: int) -> Columns:
    """Draw the trials from *first* to *last*, or some fewer, and find their outcomes."""
    begin, end = _span(session, first)
    if session.together:
        _, drawn, prospects = _prepare(session, begin, end)
        return _resolved(session, begin, drawn, prospects, session.ask).take(first - begin, last - begin)
    if _adapts(session, first):
        _prepare(session, begin, end)
        return _alone(session, first, session.source.take(first, last, session.tally), session.ask)
    if session.ask.crew is not None:
        columns = session.early.take(
            first, partial(_begun, session), depth=session.ask.crew.size + 1, seen=session.seen
        )
        session.seen(len(columns))
        return columns
    whole = replace(session.ask, size=None)
    return _alone(session, first, session.source.take(first, last, session.tally), whole)


def _adapts(session: Session, first: int) -> bool:
    """Whether what is drawn from trial *first* on depends on outcomes beyond those of a pilot that has run."""
    pilot = session.design.pilot * session.source.repeats
    return session.design.adapts and not 0 < pilot <= first


def _begun(session: Session, first: int) -> tuple[int, Callable[[], Columns]] | None:
    """Return where the batch that begins at trial *first* ends, and what finds its outcomes; none beyond the end."""
    ends = [rule.n for rule in rules(session.campaign.stop) if isinstance(rule, MaxTrials)]
    if first == session.source.total or (first in ends and first > session.tally.trials):
        return None
    drawn = session.source.take(first, _border(session, first), session.tally)
    if len(drawn.trials):  # here, not in a thread: the engine holds the golden values of one chunk at a time
        drawn = replace(drawn, trials=all_at_once(drawn.trials))
    quiet = replace(session.ask, size=None, seen=lambda _: None)
    return first + len(drawn.columns), partial(_alone, session, first, drawn, quiet)


def _alone(session: Session, first: int, drawn: Drawn, ask: Shards) -> Columns:
    """Return the outcomes of trials that depend on no others."""
    if session.meter is not None:
        return measured(drawn, session.meter, ask)
    return _resolved(session, first, drawn, prospects_of(session.campaign, session.design, drawn, session.tally), ask)


def _resolved(session: Session, first: int, drawn: Drawn, prospects: Prospects, ask: Shards) -> Columns:
    rng = stream(session.campaign.seed, RESOLVING, first)
    return resolved(session.campaign, drawn, ask, prospects, golden=lambda: session.golden, rng=rng)


def _span(session: Session, first: int) -> tuple[int, int]:
    """Return where the trials begin and end that are drawn or resolved together with trial *first*: always the same.

    What a block or a pool holds must not depend on where a campaign was interrupted.
    """
    total, size = session.source.total, session.source.size
    if session.together and not session.design.adapts:
        size = _TOGETHER if session.design.unit == "fault" else _TOGETHER // _LANES
    elif not session.together and not _adapts(session, first):
        return first, first
    begin = first // size * size
    return begin, begin + size if total is None else min(begin + size, total)


def _prepare(session: Session, begin: int, end: int) -> tuple[int, Drawn, Prospects]:
    """Draw what depends on the outcomes before trial *begin*, once; the tally holds these, or it was drawn before."""
    if session.prepared is None or session.prepared[0] != begin:
        if session.together:
            drawn = session.source.take(begin, end, session.tally)
        else:
            drawn = session.source.take(begin, begin + 1, session.tally)  # its block is kept
        session.prepared = (begin, drawn, prospects_of(session.campaign, session.design, drawn, session.tally))
    return session.prepared


def _border(session: Session, first: int) -> int:
    """Return where the batch that begins at trial *first* ends: on the same borders whenever a campaign is resumed."""
    campaign, size, total = session.campaign, session.batch, session.source.total
    limits = [rule.n for rule in rules(campaign.stop) if isinstance(rule, MaxTrials) and rule.n > first]
    limits += [] if total is None else [total]
    if session.together:
        return min([_span(session, first)[1], *limits])
    step = min(size, max(_SMALLEST_BATCH, size // _SHARED if size > _BATCH else 0))
    while step < min(size, first + 1):
        step *= 2
    if session.design.pilot and _is_patient(session):  # after a pilot all are drawn alike, and golden serves them best
        step = size
    border = step if first < step < size else (first // size + 1) * size
    if _adapts(session, first):  # the next block is planned once this one's outcomes are known
        limits.append(_span(session, first)[1])
    return min([_affordable(session, border), *limits])


def _affordable(session: Session, last: int) -> int:
    """Return *last*, or less where a time budget would run out well before."""
    left = [r.seconds - session.seconds for r in rules(session.campaign.stop) if isinstance(r, TimeBudget)]
    spare, done = min((seconds for seconds in left if seconds > 0), default=None), session.tally.trials
    if spare is None or not done or not session.seconds:
        return last
    return min(last, done + max(1, round(spare * done / session.seconds)))


def _update(session: Session, columns: Columns) -> tuple[str | None, int]:
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


def _looks(session: Session, first: int, last: int) -> Iterator[int]:
    """Yield after which trials of a batch to ask the rule: the same ones however a campaign was interrupted.

    Rules that count are asked after so many trials, those on intervals that hold at every look, and those on what
    follows a pilot, after every block. Where intervals take more than counts, and for time, whose trials have been paid
    for, the batch's end has to do.
    """
    if not _is_patient(session):
        counted = is_counted(session.record, session.tally)
        if counted or session.design.looks == "every" or session.design.pilot:
            step = LOOK if counted else session.source.size
            yield from range((first // step + 1) * step, last, step)
    yield last


def _is_patient(session: Session) -> bool:
    """Whether the rule is known beforehand to go on until a number of trials, or until time is up."""
    return all(isinstance(rule, MaxTrials | TimeBudget | AllOf | AnyOf) for rule in rules(session.campaign.stop))


def _reason(session: Session, *, seconds: float | None = None) -> str | None:
    """Return why to stop, or ``None`` to go on."""
    rule: Rule | None = session.campaign.stop
    if rule is None:
        return None
    tally = session.tally
    widths = partial(half_widths, session.record, tally)
    failures = float(tally.counts("model").failures[0])
    spent = session.seconds if seconds is None else seconds
    drops = None if session.meter is None else partial(_dropped, session)
    return rule(Progress(trials=tally.trials, failures=failures, seconds=spent, widths=widths, drops=drops))


def _dropped(session: Session, least: float) -> int:
    """Return how many trials have lowered the metric by *least* or more."""
    values = session.tally.columns().values
    return 0 if values is None else int((values >= least).sum())


def _append(session: Session, columns: Columns, first: int) -> None:
    """Store a finished batch, and count its time."""
    seconds = time.perf_counter() - session.began
    if session.store is not None:
        if not session.stored:  # only now: what cannot run at all leaves nothing behind
            session.record, session.stored = session.store.create(session.record), True
        crew = session.ask.crew
        workers = 0 if crew is None else crew.present
        session.store.append(session.record.name, columns, first=first, seconds=seconds, workers=workers)
    session.seconds += seconds
    session.ahead = 0
