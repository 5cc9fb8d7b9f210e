"""The audit of a block: a part of what has no lane is run alone at random, and failing faults struck amid pools."""

import numpy as np
from numpy.typing import NDArray

from torchfault.resolve.block import Block

__all__ = ["audit", "control"]

Ints = NDArray[np.int64]


def audit(block: Block, *, rng: np.random.Generator) -> None:
    """Run a random part of what others vouch for, and of what is proven; what comes out counts, and is marked where it
    is another outcome: ``refuted`` or ``disproved``."""
    chosen = rng.random(len(block.index)) < block.audit
    vouched, proven = (np.flatnonzero(block.flag(name) & chosen) for name in ("vouched", "proven"))
    rows = np.concatenate((vouched, proven))
    if not len(rows):
        return
    said = block.failed.copy()
    block.run_alone(rows)
    block.flag("vouched")[vouched] = True
    for part, seen, otherwise in ((vouched, "audited", "refuted"), (proven, "checked", "disproved")):
        if len(part):
            block.flag(seen)[part] = True
            block.flag(otherwise)[part] = block.failed[part] != said[part]


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
