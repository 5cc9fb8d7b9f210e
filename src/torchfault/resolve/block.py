"""A block of trials on its way to outcomes: what is known of each, and the lanes that find out more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from torchfault.cells import Space
from torchfault.errors import CampaignError
from torchfault.trials import Runs, Trials

__all__ = ["Ask", "Block", "Resolver", "Verdicts"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Verdicts = Mapping[str, NDArray[Any]]
"""Named outcomes of lanes, ``failed`` and ``due`` among them, and details of them, shape (lanes,) each."""
Ask = Callable[[Runs], Verdicts]
"""Runs trials, one lane each."""


@runtime_checkable
class Resolver(Protocol):
    """How outcomes become known: a frozen value, nested in another one that asks it for the outcomes it needs.

    What a resolver does not let run in a lane of its own, it vouches for (:meth:`Block.vouch`); a share of that is run
    all the same, and estimates widen by what this audit leaves open.
    """

    @property
    def assumption(self) -> str:
        """What vouched outcomes rest on, in words; empty where nothing is assumed."""
        ...

    def resolve(self, block: "Block", rows: Ints) -> None:
        """Find the outcomes of the trials at *rows* of *block*."""
        ...


@dataclass(eq=False)
class Block:
    """Trials of single faults, and what is known of them, in columns of shape (trials,).

    *index* are their fault numbers in *space* and *runs* what the engine takes; *ask* runs them, and *golden* tells
    the verdicts on every input without faults, shape (inputs,). *expected* is the failing share that earlier outcomes
    make likely, and *alone* marks trials that are not to be struck together with others. *flags* hold the outcomes
    known so far (in ``failed`` also those that others vouch for), *lanes* how many ran, and *audit* the probability
    with which what is vouched for is run all the same. *masked* are pools that failed nowhere, and *control* the share
    of failing faults to strike once more amid one.
    """

    space: Space
    index: Ints
    runs: Runs
    ask: Ask
    golden: Callable[[], Verdicts]
    expected: Floats
    alone: Bools
    flags: dict[str, NDArray[Any]] = field(default_factory=dict)
    lanes: Ints = field(init=False)
    audit: Floats = field(init=False)
    masked: list[Ints] = field(default_factory=list)
    control: float = 0.0

    def __post_init__(self) -> None:
        self.lanes, self.audit = np.zeros(len(self.index), dtype=np.int64), np.zeros(len(self.index))
        for name in ("failed", "due"):
            self.flags.setdefault(name, np.zeros(len(self.index), dtype=bool))

    @property
    def trials(self) -> Trials:
        """The changes of words; raises :class:`CampaignError` where these are known only where a lane runs."""
        if not isinstance(self.runs, Trials):
            raise CampaignError("this resolver looks at changes of words, got upsets of an accelerator; take Direct()")
        return self.runs

    @property
    def failed(self) -> Bools:
        """Which trials fail, as far as is known."""
        return self.flags["failed"]

    def flag(self, name: str) -> Bools:
        """Return a flag, unset at first, to be written."""
        return self.flags.setdefault(name, np.zeros(len(self.index), dtype=bool))

    @property
    def word(self) -> Ints:
        """A number for each trial, equal for those that strike one word."""
        site, element = self.trials.site.astype(np.int64), self.trials.element
        return np.asarray(site * (element.max(initial=0) + 1) + element)

    def run_alone(self, rows: Ints) -> None:
        """Give the trials at *rows* a lane each, and keep all their verdicts."""
        if len(rows):
            found = self.ask(self.runs.take(rows))
            self.lanes[rows] += 1
            for name, values in found.items():
                self._put(name, rows, values)
            self.flag("vouched")[rows] = False

    def take_as_golden(self, rows: Ints) -> None:
        """Give the trials at *rows*, which change nothing at all, the verdicts of their inputs without faults."""
        if len(rows):
            for name, values in self.golden().items():
                self._put(name, rows, values[self.runs.inputs[rows]])
            self.flag("proven")[rows] = True

    def _put(self, name: str, rows: Ints, values: NDArray[Any]) -> None:
        self.flags.setdefault(name, np.zeros(len(self.index), dtype=values.dtype))[rows] = values

    def strike_together(self, pools: Sequence[Ints]) -> Bools:
        """Run one lane for each of *pools*, trials on one input each; return which fail."""
        if not pools:
            return np.zeros(0, dtype=bool)
        of = self.trials
        counts = np.array([len(pool) for pool in pools])
        rows = np.concatenate([pool[np.lexsort((of.element[pool], of.site[pool]))] for pool in pools])
        heads = np.array([pool[0] for pool in pools])
        offsets = np.concatenate(([0], np.cumsum(counts)))
        columns = (of.site[rows], of.element[rows], of.keep[rows], of.toggle[rows])
        np.add.at(self.lanes, heads, 1)
        return self.ask(Trials(of.sites, offsets, of.inputs[heads], *columns))["failed"]

    def vouch(self, rows: Ints, failing: Bools | bool, *, audit: Floats | float) -> None:
        """Take outcomes of trials at *rows* on trust: whether they are *failing*, and how often to *audit* them."""
        self.failed[rows] = failing
        self.flag("vouched")[rows] = True
        self.audit[rows] = audit
