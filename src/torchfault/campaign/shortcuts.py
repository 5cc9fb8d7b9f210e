"""Shortcuts to outcomes: pooled injection and monotone closure, audited; fewer lanes than trials."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.closure import Chains, chains
from torchfault.campaign.pools import search
from torchfault.errors import CampaignError
from torchfault.space import FaultSpace, Locations
from torchfault.store import Columns
from torchfault.store.columns import AUDITED, CONTROLLED, HIDDEN, POOLED, VOUCHED, WRONG

if TYPE_CHECKING:
    from torchfault.trials import Trials

__all__ = ["Shortcuts", "Verdicts", "assumption", "resolve"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Verdicts = Callable[["Trials"], tuple[Bools, Bools]]
"""Runs trials, one lane each; returns which fail, and which with a NaN or infinity."""

_PRIOR_TRIALS = 4.0  # what a bit makes one think of a fault counts as so many trials of its kind
_CLOSER = 10.0  # how many times as often closure is audited as pools: fewer outcomes rest on it
_FEW = 16  # outcomes of a block that rest on closure are audited at least, or all
_CALM = 0.5  # what all inputs being alike counts for, in failures of quiet faults
_TOP, _HIGH, _LOW = 0.5, 0.01, 0.002  # failing shares: exponent's top bit, sign and other exponent bits, mantissa


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """Ways to know the outcome of a trial without a lane of its own, each under an assumption that is audited.

    *pool*: faults that are expected to be harmless, failing less than *quiet* as far as earlier outcomes, the bit
    and the input tell, and not in the top bit of an exponent, are struck together, at most so many in one lane on one
    input; a masked pool counts for all of them, a failing one is searched, and every fault is run alone before it is
    said to fail. It assumes that errors do not cancel.

    *words*, the golden words of all sites (:func:`torchfault.model.golden_words.golden_words`), switch on monotone
    closure: of the flips of one word on one input in one direction, a masked one vouches for the smaller ones, and a
    failing one for the larger ones.

    Every outcome that a pool vouches for is run alone with probability *audit*, ten times that, or 16 in a block, where
    another flip of its word does; what it finds counts. Of the faults found failing a share *control* is struck again
    amid a masked pool, to see whether a pool can hide them. Estimates widen by what either allows for. Raises
    :class:`CampaignError` for numbers out of range, or without any shortcut.

    >>> Shortcuts(pool=64).assumption
    'errors of pooled faults do not cancel'
    """

    pool: int = 0
    words: Mapping[str, NDArray[np.unsignedinteger]] | None = None
    audit: float = 0.01
    control: float = 1.0
    quiet: float = 0.1

    def __post_init__(self) -> None:
        if self.pool == 1 or self.pool < 0 or (not self.pool and self.words is None):
            raise CampaignError(f"shortcuts are a pool of 2 faults or more, golden words or both, got {self.pool}")
        if not all(0 <= share <= 1 for share in (self.audit, self.control)) or not 0 < self.quiet <= 0.5:
            raise CampaignError(
                f"audit and control are shares from 0 to 1, quiet one from 0 to 0.5, got {self.audit}, {self.control} "
                f"and {self.quiet}; the usual values are 0.01, 1 and 0.1"
            )

    @property
    def assumption(self) -> str:
        """What vouched outcomes rest on, in words."""
        return assumption(pool=bool(self.pool), monotone=self.words is not None)


def assumption(*, pool: bool, monotone: bool) -> str:
    """Return what shortcuts rest on, in words.

    >>> assumption(pool=False, monotone=True)
    'smaller flips of a word in one direction fail no more than larger ones'
    """
    pooled = "errors of pooled faults do not cancel"
    closure = "smaller flips of a word in one direction fail no more than larger ones"
    return "; ".join(text for text, used in ((pooled, pool), (closure, monotone)) if used)


@dataclass(eq=False)
class _Block:
    """The trials of a block, and what is known of them."""

    trials: "Trials"
    verdicts: Verdicts
    key: Ints
    failed: Bools
    due: Bools
    marks: NDArray[np.uint8]
    lanes: Ints
    masked: list[Ints] = field(default_factory=list)

    @property
    def inputs(self) -> Ints:
        """The input of each trial."""
        return self.trials.inputs

    def ask(self, pools: Sequence[Ints]) -> Bools:
        """Run one lane for each of *pools*; return which fail."""
        from torchfault.trials import Trials

        if not pools:
            return np.zeros(0, dtype=bool)
        counts = np.array([len(pool) for pool in pools])
        rows = np.concatenate([pool[np.argsort(self.key[pool], kind="stable")] for pool in pools])
        heads, of = np.array([pool[0] for pool in pools]), self.trials
        columns = (of.site[rows], of.element[rows], of.keep[rows], of.toggle[rows])
        offsets = np.concatenate(([0], np.cumsum(counts)))
        failed, due = self.verdicts(Trials(of.sites, offsets, of.inputs[heads], *columns))
        np.add.at(self.lanes, heads, 1)
        alone = counts == 1
        self.due[heads[alone]] = due[alone]
        return failed


def resolve(
    shortcuts: Shortcuts,
    space: FaultSpace,
    columns: Columns,
    trials: "Trials",
    verdicts: Verdicts,
    *,
    before: Columns,
    rng: np.random.Generator,
    apart: Bools | None = None,
) -> Columns:
    """Return *columns*, single faults, with their outcomes; *before* are the finished trials ahead of them.

    *apart* are faults that their sampler keeps out of pools, ``None`` where it does not tell: top bits are then.
    """
    n = len(columns)
    where = space.locate(columns.faults)
    key = np.unique(np.stack((where.site.astype(np.int64), where.element)), axis=1, return_inverse=True)[1].reshape(-1)
    zero = np.zeros(n, dtype=np.int64)
    flags = np.zeros(n, dtype=bool)
    block = _Block(trials, verdicts, key, flags, flags.copy(), zero.astype(np.uint8), zero)
    rates = expected(space, columns, before, most=_TOP if apart is None else _HIGH)
    loud = (rates > shortcuts.quiet) | (shortcuts.pool == 0) | (top_bits(space, where) if apart is None else apart)
    found = Chains.single(n)
    if shortcuts.words is not None:
        found = chains(space, where, trials.inputs, dict(shortcuts.words))
    seen = np.zeros(n, dtype=bool)
    while len(probes := found.probes()):
        outcome = np.zeros(n, dtype=bool)
        single = probes[loud[probes]]
        outcome[single] = block.ask([single[i : i + 1] for i in range(len(single))])
        seen[single] = True
        together = probes[~loud[probes]]
        if len(together):
            outcome[together], seen[together] = _pooled(block, together, rates, shortcuts.pool)
        found.settle(probes, outcome[probes])
    block.failed = found.failing()
    block.marks[~seen] |= VOUCHED
    _audit(block, shortcuts, rng)
    _control(block, shortcuts, rng)
    return replace(columns, failed=block.failed, due=block.due, marks=block.marks, lanes=block.lanes)


def _pooled(block: _Block, items: Ints, rates: Floats, pool: int) -> tuple[Bools, Bools]:
    """Search *items* in pools; return which fail, and which of them had a lane of their own."""
    found = search(items, block.inputs[items], block.key[items], rates[items], block.ask, pool=pool)
    block.marks[items] |= POOLED
    block.masked += [items[part] for part in found.masked]
    return found.failing, found.alone


def _audit(block: _Block, shortcuts: Shortcuts, rng: np.random.Generator) -> None:
    """Run a random part of what others vouch for alone; what comes out counts."""
    by_closure = int(((block.marks & VOUCHED > 0) & (block.marks & POOLED == 0)).sum())
    closer = min(1.0, max(_CLOSER * shortcuts.audit, _FEW / max(by_closure, 1)))
    often = np.where(block.marks & POOLED > 0, shortcuts.audit, closer if shortcuts.audit else 0.0)
    chosen = np.flatnonzero((block.marks & VOUCHED > 0) & (rng.random(len(block.marks)) < often))
    if not len(chosen):
        return
    failed = block.ask([chosen[i : i + 1] for i in range(len(chosen))])
    block.marks[chosen] |= AUDITED
    block.marks[chosen[failed != block.failed[chosen]]] |= WRONG
    block.failed[chosen] = failed


def _control(block: _Block, shortcuts: Shortcuts, rng: np.random.Generator) -> None:
    """Strike faults that were found failing again, amid a masked pool on the same input, and see whether it hides them.

    What an audit found counts first: it is what a pool has missed already, and would tell most.
    """
    draws = rng.random((len(block.marks), 2))
    known = block.failed & (block.marks & POOLED > 0) & (block.marks & (VOUCHED | WRONG) != VOUCHED)
    by_input: dict[int, list[Ints]] = {}
    for pool in block.masked:
        by_input.setdefault(int(block.inputs[pool[0]]), []).append(pool)
    faults, pools = [], []
    for fault in np.flatnonzero(known & (draws[:, 0] < shortcuts.control)).tolist():
        held = [p for p in by_input.get(int(block.inputs[fault]), []) if block.key[fault] not in block.key[p]]
        if held:
            faults.append(fault)
            pools.append(np.append(held[int(draws[fault, 1] * len(held))], fault))
    due = block.due.copy()
    hidden = ~block.ask(pools)
    block.due = due
    block.marks[faults] |= CONTROLLED
    block.marks[np.array(faults, dtype=np.int64)[hidden]] |= HIDDEN


def expected(space: FaultSpace, columns: Columns, before: Columns, *, most: float = _TOP) -> Floats:
    """Return the failing share expected of each trial: of its stratum, or else bit, so far, and by its bit.

    No bit makes one think of more than *most*.

    >>> from torchfault.space import Site
    >>> flag, zero = np.zeros(2, dtype=bool), np.zeros(2, dtype=np.int64)
    >>> expected(FaultSpace((Site("a", (4,)),)), Columns(np.array([30, 3]), zero, flag, flag), Columns.empty())
    array([0.5  , 0.002])
    """
    where = space.locate(columns.faults)
    thought = np.minimum(_thoughts(space)[where.site, where.bit], most)
    own, earlier = where.bit.astype(np.int64), space.locate(before.faults).bit.astype(np.int64)
    if columns.strata is not None:
        own = columns.strata.astype(np.int64)
        earlier = np.zeros(len(before), dtype=np.int64) if before.strata is None else before.strata.astype(np.int64)
    last = int(max(own.max(initial=0), earlier.max(initial=0))) + 1
    trials, failures = np.bincount(earlier, minlength=last), np.bincount(earlier[before.failed], minlength=last)
    share = (failures[own] + _PRIOR_TRIALS * thought) / (trials[own] + _PRIOR_TRIALS)
    return np.asarray(np.minimum(share * _fragility(space, before, columns.inputs), _TOP))


def _fragility(space: FaultSpace, before: Columns, inputs: Ints) -> Floats:
    """Return how many times as often as elsewhere quiet faults failed on each of *inputs*: some tip over at a touch."""
    quiet = ~top_bits(space, space.locate(before.faults))
    most = int(max(inputs.max(initial=0), before.inputs.max(initial=0))) + 1
    trials = np.bincount(before.inputs[quiet], minlength=most)
    failures = np.bincount(before.inputs[quiet & before.failed], minlength=most)
    usual = trials * (failures.sum() / max(trials.sum(), 1))
    return np.asarray(((failures + _CALM) / (usual + _CALM))[inputs])


def top_bits(space: FaultSpace, where: Locations) -> Bools:
    """Return which faults strike the top bit of an exponent: their errors are so large that they hide all others.

    >>> from torchfault.space import Site
    >>> space = FaultSpace((Site("a", (4,)),))
    >>> top_bits(space, space.locate([29, 30, 31])).tolist()
    [False, True, False]
    """
    return np.asarray(_thoughts(space)[where.site, where.bit] >= _TOP)


def _thoughts(space: FaultSpace) -> Floats:
    """Return the failing share that each bit makes one think of, shape (sites, widest)."""
    thoughts = np.zeros((len(space.sites), max(site.width for site in space.sites)))
    for row, site in zip(thoughts, space.sites, strict=True):
        row[: site.width] = [_thought(site.word, bit) for bit in range(site.width)]
    return thoughts


def _thought(name: str, bit: int) -> float:
    """Return the failing share that a bit of a word format makes one think of."""
    from torchfault.words import word

    fields = word(name).fields
    if "exponent" not in fields:
        return max(_TOP / 2.0 ** (word(name).width - bit), _LOW)  # an integer's top bit: half of _TOP
    if bit in fields["mantissa"]:
        return _LOW
    return _TOP if bit == fields["exponent"][-1] else _HIGH
