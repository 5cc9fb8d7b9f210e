"""From numbers to trials: the n-th is a function of seed and n, and where the sampler adapts of earlier outcomes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign.campaign import Campaign, UpsetModel, population_of, repeats_of
from torchfault.campaign.upset_lanes import UpsetLanes
from torchfault.errors import SamplingError
from torchfault.sampling import Design, Draws, stream
from torchfault.sampling.tally import Tally
from torchfault.space import FaultSpace
from torchfault.store import Columns
from torchfault.trials import Trials, strike

__all__ = ["RESOLVING", "Drawn", "Source"]

Ints = NDArray[np.int64]

# No batch strikes more faults than this: their numbers, places and masks take about 50 bytes each.
_MOST_FAULTS = 1 << 20
FAULTS, MASKS, INPUTS, RESOLVING = range(4)  # the purposes of the random streams; changing one changes every campaign
_PIECE = 1 << 16  # draws that are made lanes together: a sampler without replacement has one block for all its draws
_ROWS = 1 << 12  # draws whose inputs are chosen at a time


@dataclass(frozen=True, eq=False)
class Drawn:
    """Consecutive trials that are ready to run: *columns*, whose outcomes are unset, and their lanes.

    Lane i runs trial i of *trials* for row ``row[i]`` of the columns, and strikes the fault ``index[i]`` (of several,
    the first). A row without a lane changes nothing; one of a word has a lane for each of its bits.
    """

    columns: Columns
    trials: Trials | UpsetLanes
    row: Ints
    index: Ints


@dataclass(frozen=True, eq=False)
class _Block:
    """A block of draws, which one random stream decides.

    *inputs*, shape (draws, repeats), are those of each draw, ``None`` for all in order.
    """

    number: int
    draws: Draws
    inputs: Ints | None


@dataclass(frozen=True, eq=False)
class _Piece:
    """The lanes that the draws of a block from number *first* on become, some of them at a time."""

    block: int
    first: int
    made: "_Struck | _Upsets"


@dataclass(frozen=True, eq=False)
class _Struck:
    """Draws as changes of words: draw i has the lanes ``ends[i]`` to ``ends[i + 1]`` of *trials*, of faults *index*."""

    trials: Trials
    index: Ints
    ends: Ints

    def lanes(self, columns: Columns, draw: Ints) -> tuple[Trials, Ints, Ints]:
        """Return the trials of the rows of *columns*, which are on each *draw*, with the row and the fault of each."""
        each = self.ends[draw + 1] - self.ends[draw]
        row = np.repeat(np.arange(len(draw)), each)
        lanes = np.arange(len(row)) - np.repeat(np.cumsum(each) - each, each) + self.ends[draw][row]
        trials = replace(self.trials.take(lanes), inputs=np.maximum(columns.inputs, 0)[row])
        return trials, row, self.index[lanes]


@dataclass(frozen=True, eq=False)
class _Upsets:
    """Draws as upsets, each with a random word: what they do to words depends on the input."""

    campaign: Campaign
    fault: UpsetModel
    words: NDArray[np.uint64]

    def lanes(self, columns: Columns, draw: Ints) -> tuple[UpsetLanes, Ints, Ints]:
        """Return the same for upsets; some meet no word at all, and have no lane."""
        row = np.flatnonzero(self.fault.strikes(self.campaign.space, columns.faults))
        index, inputs, words = columns.faults[row], columns.inputs[row], self.words[draw[row]]
        return UpsetLanes(self.fault, self.campaign.space, self.campaign.engine, index, inputs, words), row, index


class Source:
    """The trials of *campaign*, by number; keeps the block that it drew last."""

    def __init__(self, campaign: Campaign, design: Design) -> None:
        self.campaign, self.design = campaign, design
        self.population, self.repeats = population_of(campaign), repeats_of(campaign, design)
        self.size = campaign.sampler.block * self.repeats
        self.total = None if design.total is None else design.total * self.repeats
        self._latest: _Block | None = None
        self._piece: _Piece | None = None

    def take(self, first: int, last: int, tally: Tally | None) -> Drawn:
        """Return the trials *first* to *last*, or fewer, where these strike more faults than fit into memory.

        Where draws depend on outcomes, *last* is in the block of *first*, and *tally* holds all before this block (all
        that come later, once it was drawn). Blocks are always drawn whole, since they are what a random stream decides:
        how many trials are asked for at a time changes none of them.
        """
        parts, faults = list[Drawn](), 0
        for number in range(first // self.size, (last - 1) // self.size + 1):
            begin, end = max(first - number * self.size, 0), min(last - number * self.size, self.size)
            while begin < end:
                piece = self.piece(self.block(number, tally), begin // self.repeats)
                border = min(end, (piece.first + _PIECE) * self.repeats)
                parts.append(self._part(self.block(number, tally), piece, begin, border))
                faults += len(parts[-1].columns.faults)
                if faults >= _MOST_FAULTS or len(parts[-1].columns) < border - begin:
                    return _joined(parts)
                begin = border
        return _joined(parts)

    def block(self, number: int, tally: Tally | None) -> _Block:
        """Return block *number*, drawn anew unless it was the latest."""
        if self._latest is None or self._latest.number != number:
            self._latest = self._drawn(number, tally)
        return self._latest

    def _drawn(self, number: int, tally: Tally | None) -> _Block:
        campaign, sampler, end = self.campaign, self.campaign.sampler, self.design.total
        start = number * sampler.block
        n = sampler.block if end is None else min(sampler.block, end - start)
        rng = stream(campaign.seed, FAULTS, number)
        draws = sampler.draw(self.population, n, rng=rng, start=start, tally=tally if self.design.adapts else None)
        if len(draws) != n:
            raise SamplingError(
                f"{type(sampler).__name__} was asked for {n} trials, got {len(draws)}; mend the sampler"
            )
        return _Block(number, draws, self._inputs(number, draws))

    def piece(self, block: _Block, draw: int) -> _Piece:
        """Return the piece of *block* that holds a *draw*, made anew unless it was the latest."""
        number = draw // _PIECE
        first = number * _PIECE
        if self._piece is None or (self._piece.block, self._piece.first) != (block.number, first):
            order = np.arange(first, min(first + _PIECE, len(block.draws)))
            faults, counts = _pick(block.draws, order)
            rng = stream(self.campaign.seed, MASKS, block.number, *([number] if number else []))
            self._piece = _Piece(block.number, first, self._made(len(order), faults, counts, rng))
        return self._piece

    def _made(self, draws: int, faults: Ints, counts: Ints | None, rng: np.random.Generator) -> _Struck | _Upsets:
        """Return so many *draws* of *faults* as changes of words: a lane for each, or for each bit of a whole word."""
        space, fault, ends = self.campaign.space, self.campaign.fault, np.arange(draws + 1)
        if isinstance(fault, UpsetModel):
            if counts is not None or self.design.unit == "word":
                name = type(self.campaign.sampler).__name__
                raise SamplingError(f"upsets strike one by one, got several together; {name} cannot draw")
            return _Upsets(self.campaign, fault, rng.integers(0, 2**64, size=draws, dtype=np.uint64))
        assert isinstance(space, FaultSpace)
        if self.design.unit == "word":
            row, index, _ = space.flips(faults)
            struck = strike(space, space.locate(index), model=fault, rng=rng)
            return _Struck(struck, index, np.searchsorted(row, ends))
        struck = strike(space, space.locate(faults), model=fault, rng=rng, counts=counts)
        return _Struck(struck, faults if counts is None else faults[np.cumsum(counts) - counts], ends)

    def _inputs(self, number: int, draws: Draws) -> Ints | None:
        """Return the inputs of each draw, shape (draws, repeats); different ones, ``None`` for all of them."""
        n, inputs = len(draws), self.campaign.inputs
        if draws.inputs is not None:
            return draws.inputs.reshape(n, 1)
        if self.repeats == inputs or self.campaign.metric is not None:
            return None
        rng = stream(self.campaign.seed, INPUTS, number)
        if self.repeats == 1:
            return rng.integers(inputs, size=(n, 1), dtype=np.int64)
        rows = [min(_ROWS, n - first) for first in range(0, n, _ROWS)]
        return np.concatenate([np.argsort(rng.random((count, inputs)), axis=1)[:, : self.repeats] for count in rows])

    def _part(self, block: _Block, piece: _Piece, first: int, last: int) -> Drawn:
        """Return trials *first* to *last* of a block, all in one *piece*, or as many as fit into memory."""
        campaign, draws = self.campaign, block.draws
        draw, which = np.divmod(np.arange(first, last, dtype=np.int64), self.repeats)
        if isinstance(campaign.fault, UpsetModel):
            end = campaign.fault.fitting(campaign.space, draws.index[draw], engine=campaign.engine)
            draw, which = draw[:end], which[:end]
        if campaign.metric is not None:
            inputs = np.full(len(draw), -1, dtype=np.int64)
        else:
            inputs = which if block.inputs is None else block.inputs[draw, which]
        faults, counts = _pick(draws, draw)
        words = None if draws.words is None else draws.words.reshape(len(draws), -1)
        columns = Columns(
            faults,
            inputs,
            weights=None if (draws.weight == 1).all() else draws.weight[draw],
            strata=None if (draws.stratum == 0).all() else draws.stratum[draw],
            counts=counts,
            words=None if words is None else words[draw, which % words.shape[1]],
            unit=self.design.unit,
        )
        return Drawn(columns, *piece.made.lanes(columns, draw - piece.first))


def _pick(draws: Draws, order: Ints) -> tuple[Ints, Ints | None]:
    """Return the fault numbers, and their counts, of the draws at positions *order*."""
    if draws.counts is None:
        return draws.index[order], None
    begins = np.cumsum(draws.counts) - draws.counts
    chosen = draws.counts[order]
    within = np.arange(chosen.sum()) - np.repeat(np.cumsum(chosen) - chosen, chosen)
    return draws.index[np.repeat(begins[order], chosen) + within], chosen


def _joined(parts: list[Drawn]) -> Drawn:
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(len(part.columns) for part in parts[:-1])])
    row = np.concatenate([part.row + begin for part, begin in zip(parts, before, strict=True)])
    lanes: list[Any] = [part.trials for part in parts]  # all of one kind
    index = np.concatenate([part.index for part in parts])
    return Drawn(Columns.join([part.columns for part in parts]), type(lanes[0]).join(lanes), row, index)
