"""Upsets as trials, all at once, as a campaign makes them part by part."""

import numpy as np
from numpy.typing import NDArray

from torchfault.campaign import Machine, UpsetModel
from torchfault.campaign.upset_lanes import UpsetLanes
from torchfault.cells import Space
from torchfault.trials import Trials, all_at_once

Ints = NDArray[np.int64]


def made(
    fault: UpsetModel, space: Space, index: Ints, inputs: Ints, *, words: NDArray[np.uint64], engine: Machine
) -> tuple[Trials, Ints]:
    """Return the trials that upsets become, and which upsets they are."""
    kept = np.flatnonzero(fault.strikes(space, index))
    return all_at_once(UpsetLanes(fault, space, engine, index[kept], inputs[kept], words[kept])), kept
