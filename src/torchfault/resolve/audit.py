"""The audit of a block: a random part of what others vouch for is run alone, and failing faults struck amid pools."""

import numpy as np
from numpy.typing import NDArray

from torchfault.resolve.block import Block

__all__ = ["audit", "control"]

Ints = NDArray[np.int64]


def audit(block: Block, *, rng: np.random.Generator) -> None:
    """Run a random part of what others vouch for; what comes out counts, and is marked where it refutes them."""
    chosen = np.flatnonzero(block.flag("vouched") & (rng.random(len(block.index)) < block.audit))
    if len(chosen):
        said = block.failed[chosen].copy()
        block.run_alone(chosen)
        block.flag("vouched")[chosen] = True
        block.flag("audited")[chosen] = True
        block.flag("refuted")[chosen] = block.failed[chosen] != said


def control(block: Block, *, rng: np.random.Generator) -> None:
    """Strike faults that were found failing again, amid a masked pool on the same input, and see whether it hides them.

    What an audit found counts first: it is what a pool has missed already, and would tell most.
    """
    draws = rng.random((len(block.index), 2))
    if not block.masked:
        return
    trusted = block.flag("vouched") & ~block.flag("refuted")
    known = block.failed & block.flag("pooled") & ~trusted
    word, inputs = block.word, block.trials.inputs
    by_input: dict[int, list[Ints]] = {}
    for pool in block.masked:
        by_input.setdefault(int(inputs[pool[0]]), []).append(pool)
    faults, pools = [], []
    for fault in np.flatnonzero(known & (draws[:, 0] < block.control)).tolist():
        held = [pool for pool in by_input.get(int(inputs[fault]), []) if word[fault] not in word[pool]]
        if held:
            faults.append(fault)
            pools.append(np.append(held[int(draws[fault, 1] * len(held))], fault))
    hidden = ~block.strike_together(pools)
    block.flag("controlled")[faults] = True
    block.flag("hidden")[np.array(faults, dtype=np.int64)[hidden]] = True
