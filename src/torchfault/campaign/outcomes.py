"""From drawn trials to finished ones: their outcomes by the campaign's resolver, or its metric, back in their rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.campaign import Campaign
from torchfault.campaign.drawing import Drawn
from torchfault.campaign.judging import Meter
from torchfault.errors import CampaignError
from torchfault.resolve import Ask, Block, Direct, Verdicts
from torchfault.resolve.audit import audit, control
from torchfault.resolve.expectation import Expectation, is_top_bit
from torchfault.sampling import Design
from torchfault.sampling.tally import Tally
from torchfault.space import FaultSpace
from torchfault.store import Columns
from torchfault.trials import all_at_once

__all__ = ["Prospects", "measured", "prospects_of", "resolved"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
_DETAILS = {"answers": "answer", "changes": "change", "reach": "reach"}  # columns, and the details that they hold
_HIGH = 0.01  # what a bit may make one expect at most, where strata tell how large the change is


@dataclass(frozen=True, eq=False)
class Prospects:
    """What earlier outcomes tell of lanes: the failing share *expected*, and which to strike *alone*, (lanes,)."""

    expected: Floats
    alone: Bools


def prospects_of(campaign: Campaign, design: Design, drawn: Drawn, tally: Tally) -> Prospects:
    """Return the prospects of *drawn* by the outcomes in *tally*; none for resolvers that do not go by them."""
    n, space, strata = len(drawn.row), campaign.space, design.strata
    if not campaign.resolver.assumption or not isinstance(space, FaultSpace):
        return Prospects(np.zeros(n), np.zeros(n, dtype=bool))
    most = {} if strata.alone is None else {"most": _HIGH}
    expectation = tally.follow("expectation", lambda: Expectation(space, strata=len(strata), **most))
    single = drawn.columns.at(drawn.row, drawn.index)
    alone = is_top_bit(space, drawn.index) if strata.alone is None else strata.alone[single.stratum] > 0
    return Prospects(expectation.of(single), alone)


def resolved(
    campaign: Campaign,
    drawn: Drawn,
    ask: Ask,
    prospects: Prospects,
    *,
    golden: Callable[[], Verdicts],
    rng: np.random.Generator,
) -> Columns:
    """Return the columns of *drawn* with their outcomes; what others vouch for is audited with *rng*.

    *ask* runs their lanes, and *golden* returns the verdicts on all inputs without faults.
    """
    _check_single(campaign, drawn)
    index, expected, alone = drawn.index, prospects.expected, prospects.alone
    block = Block(campaign.space, index, drawn.trials, ask, golden, expected, alone)
    campaign.resolver.resolve(block, np.arange(len(index)))
    audit(block, rng=rng)
    control(block, rng=rng)
    return _in_rows(drawn, block, golden)


def _check_single(campaign: Campaign, drawn: Drawn) -> None:
    """Refuse what a resolver cannot take apart: trials of several faults and, where others vouch, of several words."""
    resolver = type(campaign.resolver).__name__
    if drawn.columns.counts is not None and not isinstance(campaign.resolver, Direct):
        raise CampaignError(
            f"{resolver} finds the outcomes of single faults, got trials of several; take Direct(), or strike one"
        )
    if campaign.resolver.assumption and (np.diff(all_at_once(drawn.trials).offsets) != 1).any():
        raise CampaignError(f"{resolver} tells changes of single words apart, got faults of several; take Direct()")


def _in_rows(drawn: Drawn, block: Block, golden: Callable[[], Verdicts]) -> Columns:
    """Return the outcomes of lanes as those of rows: of the same trials, of words as masks, or as golden without."""
    columns, row = drawn.columns, drawn.row
    lanes = np.bincount(row, block.lanes, len(columns)).astype(np.int64)
    if columns.unit == "word":
        assert isinstance(block.space, FaultSpace)
        hot = np.left_shift(np.uint64(1), block.space.locate(block.index).bit.astype(np.uint64))
        masks = {name: np.zeros(len(columns), dtype=np.uint64) for name in block.flags}
        for name, values in block.flags.items():
            np.bitwise_or.at(masks[name], row[values], hot[values])
        return replace(columns, flags=masks, lanes=lanes)
    held = {name: np.zeros(len(columns), dtype=values.dtype) for name, values in block.flags.items()}
    if len(row) < len(columns):
        held |= {name: values[columns.inputs] for name, values in golden().items()}
        for name in set(held) - set(block.flags):
            held[name][row] = False
    for name, values in block.flags.items():
        held[name][row] = values
    flags = {name: values for name, values in held.items() if values.dtype == np.bool_}
    seen = {name: held.get(verdict) for name, verdict in _DETAILS.items()}
    return replace(columns, flags=flags, lanes=lanes, **seen)  # type: ignore[arg-type]  # columns of these names


def measured(drawn: Drawn, meter: Meter, ask: Ask) -> Columns:
    """Return the columns of *drawn* with the metric of every trial; one that changes it at all counts as failed."""
    found = ask(drawn.trials)
    metric, due = found["metric"], found["due"]
    drop = meter.drop(metric)
    flags = {"failed": due | ~(drop == 0), "due": due}
    return replace(drawn.columns, flags=flags, values=drop, metric=metric)
