"""The tally of a campaign: its finished trials, counted as they come by block, stratum and group."""

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.sampling.design import Design
from torchfault.sampling.flips import flips_by_group, masks_of
from torchfault.statistics.sequences import SETTLED, Sequences
from torchfault.store import Columns

__all__ = ["Blocks", "Counts", "Follower", "Rounds", "Tally"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
F = TypeVar("F", bound="Follower")


class Follower(Protocol):
    """Something that is kept up to date with the trials of a campaign."""

    def add(self, columns: Columns) -> None:
        """Take in the next trials."""
        ...


class Tally:
    """The trials so far of a campaign on *space* under *design*, and whatever follows them.

    Each draw is *repeats* trials in a row, one on each of its inputs. *widening* tells by how much what audits leave
    open widens the intervals of the groups of a grouping.

    Followers are made when first asked for, see all earlier trials then, and every later one once: nothing is counted
    again.

    >>> from torchfault.space import FaultSpace, Site
    >>> from torchfault.sampling.design import Strata
    >>> space = FaultSpace((Site("a", (2,)),))
    >>> tally = Tally(space, Design(Strata.one(64)))
    >>> tally.add(Columns(np.array([3, 40]), np.zeros(2, dtype=np.int64), {"failed": np.array([True, False])}))
    >>> tally.trials, tally.counts("site").failures
    (2, array([1.]))
    """

    def __init__(self, space: Space, design: Design, *, repeats: int = 1, widening: "Widening | None" = None) -> None:
        self.space, self.design, self.repeats, self.widening = space, design, repeats, widening
        self.trials = 0
        self._parts: list[Columns] = []
        self._followers: dict[Hashable, Follower] = {}

    def add(self, columns: Columns) -> None:
        """Take in the next trials."""
        if len(columns):
            self._parts.append(columns)
            self.trials += len(columns)
            for follower in self._followers.values():
                follower.add(columns)

    def columns(self) -> Columns:
        """Return all trials so far, in order."""
        if len(self._parts) > 1:
            self._parts = [Columns.join(self._parts)]
        return self._parts[0] if self._parts else Columns.empty()

    def follow(self, key: Hashable, make: Callable[[], F]) -> F:
        """Return the follower called *key*; made, and shown all trials so far, the first time."""
        if key not in self._followers:
            fresh = make()
            if self.trials:
                fresh.add(self.columns())
            self._followers[key] = fresh
        return self._followers[key]  # type: ignore[return-value]

    def counts(self, by: str) -> "Counts":
        """Return how many trials there are, and how many of them failed, by the groups of *by*."""
        return self.follow(("counts", by), lambda: Counts(self.space, by))

    def blocks(self) -> "Blocks":
        """Return what each complete block drew from the strata, and what that cost."""
        return self.follow("blocks", partial(Blocks, len(self.design.strata), self.design.block * self.repeats))

    def rounds(self, by: str, *, level: float) -> "Rounds":
        """Return the confidence sequences of the groups of *by*, which the design has to have targets for."""
        make = partial(Rounds, self.space, self.design, by, self.blocks(), level=level, repeats=self.repeats)
        return self.follow(("rounds", by, level), make)

    def unfinished(self, by: str, half_width: float, *, level: float) -> NDArray[np.bool_]:
        """Return which groups of *by* have too wide an interval, audits included, or a value that a stop would bias.

        Groups without a mass are finished. It is for designs whose intervals hold at every look.
        """
        rounds = self.rounds(by, level=level)
        unfinished = np.zeros(len(rounds.axis), dtype=np.bool_)
        widths = 2 * half_width - self.widened(by, level)
        unfinished[rounds.groups] = ~rounds.sequences.enough(widths[rounds.groups])
        return unfinished

    def widened(self, by: str, level: float) -> Floats:
        """Return by how much audits widen the interval of each group of *by*, shape (groups,)."""
        if self.widening is None or not self.trials:
            return np.zeros(len(self.space.axis(by)))
        return self.widening(self, by, level)


Widening = Callable[[Tally, str, float], Floats]


class Counts:
    """The *trials* and *failures* of each group of *by*, shape (groups,); a trial counts once in each that it struck.

    Of a word the failing share of its bits in the group counts. *equal* tells whether all trials have the same weight.
    """

    def __init__(self, space: Space, by: str) -> None:
        self.space, self.axis = space, space.axis(by)
        self.trials, self.failures = np.zeros(len(self.axis)), np.zeros(len(self.axis))
        self.equal = True

    def add(self, columns: Columns) -> None:
        """Take in the next trials."""
        groups, failed = len(self.axis), masks_of(columns, "failed")
        self.equal &= columns.weights is None or bool((columns.weights == 1).all())
        if columns.counts is not None:
            pairs = np.unique(columns.owner * groups + self.axis.code(columns.faults))
            self.trials += np.bincount(pairs % groups, minlength=groups)
            self.failures += np.bincount(pairs % groups, failed[pairs // groups], groups)
            return
        for part in flips_by_group(self.space, columns, self.axis):
            self.trials += np.bincount(part.code, minlength=groups)
            self.failures += np.bincount(part.code, part.count(failed) / part.bits, groups)


class Blocks:
    """The *trials* of each stratum in every complete block of *size* trials, (strata,) each, and what they *cost*.

    *cost* has one entry more: how many lanes a trial of each stratum had taken before the first block (1), the second,
    and so on to the next one.
    """

    def __init__(self, strata: int, size: int) -> None:
        self.size, self.trials, self.cost = size, list[Floats](), [np.ones(strata)]
        self._spent = np.ones((2, strata))  # lanes and trials
        self._filled, self._block = 0, np.zeros_like(self._spent)

    def add(self, columns: Columns) -> None:
        """Take in the next trials."""
        for part, complete in _by_block(columns, self.size, self._filled):
            strata = self._spent.shape[1]
            self._block += np.bincount(part.stratum, part.lanes, strata), np.bincount(part.stratum, minlength=strata)
            if complete:
                self._spent += self._block
                self.trials.append(self._block[1])
                self.cost.append(self._spent[0] / self._spent[1])
                self._block = np.zeros_like(self._spent)
        self._filled = (self._filled + len(columns)) % self.size


def _by_block(columns: Columns, size: int, filled: int) -> Iterator[tuple[Columns, bool]]:
    """Yield *columns* in parts that end where blocks do, and whether each completes one; *filled* trials of the first
    block came before."""
    first = 0
    while first < len(columns):
        last = min(first + size - filled, len(columns))
        filled += last - first
        yield columns.take(first, last), filled == size
        filled, first = filled % size, last


class Rounds:
    """Confidence sequences of the groups of a grouping *by*, updated after every complete block.

    *groups* are the codes of those that have a mass; *sequences* has one for each of them, over the strata that reach
    into it, whose numbers are in *strata*, shape (groups, width), -1 beyond the last. A draw fails as often as its
    *repeats* trials and the bits of a word do, on average. *blocks* of the same trials, which see them first, tell how
    many came from each stratum, and what they cost: by that the next ones are planned unless the design has prices.
    """

    def __init__(
        self, space: Space, design: Design, by: str, blocks: Blocks, *, level: float, repeats: int = 1
    ) -> None:
        self.space, self.axis, self.design, self.repeats = space, space.axis(by), design, repeats
        target = design.targets.get(by, min(design.targets.values(), default=0.01))
        reach, masses = design.strata.within(space, self.axis)
        self.groups = np.flatnonzero((masses > 0) & reach.any(axis=1))
        reach = reach[self.groups]
        order = np.argsort(~reach, axis=1, kind="stable")[:, : int(reach.sum(axis=1).max())]
        held = np.take_along_axis(reach, order, axis=1)
        self.strata = np.where(held, order, -1)
        shares = np.where(held, design.strata.masses[order] / masses[self.groups, None], 0.0)
        prior = None if design.strata.prior is None else np.where(held, design.strata.prior[order], 0.5)
        self._given = given = list[tuple[Floats, NDArray[np.bool_]]]()  # of each block
        price = design.price or (lambda _: blocks.cost[len(given)][order])
        self.sequences = Sequences(shares, target=target, level=level, prior=prior, price=price)
        self._blocks, self._filled, self._failures = blocks, 0, self._none()

    def _none(self) -> Floats:
        return np.zeros((len(self.axis), len(self.design.strata)))

    def add(self, columns: Columns) -> None:
        """Take in the next trials; what completes a block updates the sequences."""
        for part, complete in _by_block(columns, self._blocks.size, self._filled):
            self._count(part)
            if complete:
                self._complete()
        self._filled = (self._filled + len(columns)) % self._blocks.size

    def _count(self, columns: Columns) -> None:
        """Count failures by group and stratum."""
        failed, strata = masks_of(columns, "failed"), len(self.design.strata)
        for part in flips_by_group(self.space, columns, self.axis):
            cell = part.code * strata + columns.stratum[part.rows]
            share = part.count(failed) / part.whole
            self._failures += np.bincount(cell, share, self._failures.size).reshape(self._failures.shape)

    def _complete(self) -> None:
        held, before = self.strata >= 0, self.sequences.settled
        trials = self._blocks.trials[len(self._given)]
        k = np.where(held, self._failures[self.groups[:, None], self.strata], 0.0) / self.repeats
        n = np.where(held, trials[self.strata], 0.0) / self.repeats
        self.sequences.update(np.minimum(k, n), n)
        full = np.asarray(((n > 0) | ~held).all(axis=1))
        self._given.append((self.sequences.settled - before, full))
        self._failures = self._none()

    @property
    def weights(self) -> Floats:
        """How much each complete block counts for the value of each of the *groups*, (blocks, groups).

        They sum to 1, and were fixed before the block was drawn: any mean over trials that weighs the blocks by them is
        unbiased like the value, whenever the campaign ended (:class:`torchfault.statistics.Sequences`).
        """
        given, full = (np.array(part).reshape(-1, len(self.groups)) for part in zip(*self._given, strict=True))
        return np.where(self.sequences.settled >= SETTLED, given, full / np.maximum(full.sum(axis=0), 1))
