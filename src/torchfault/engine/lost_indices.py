"""Trials whose stored indices point to nowhere: whoever reads them detects the error, so nothing is run for them."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from torchfault.data import Tree, rows
from torchfault.engine.executor import Lanes
from torchfault.model.home import Home
from torchfault.trials import Trials
from torchfault.words import Edits

__all__ = ["crashed", "loses_an_index"]

_AT_ONCE = 4096


def loses_an_index(trials: Trials, homes: Mapping[str, Home]) -> NDArray[np.bool_]:
    """Return which of *trials* put an index outside its range, given the homes of the model's words by their names."""
    lost = np.zeros(len(trials), dtype=bool)
    owner = trials.owner
    for position in np.unique(trials.site):
        site = trials.sites[position]
        home = homes.get(site.name)
        if home is None or not (part := home.parts[site.name]).highest:
            continue
        mine, words = trials.site == position, home.words[site.name]
        columns = (trials.element[mine], trials.keep[mine], trials.toggle[mine])
        edits = Edits.of(site.name, part.fmt, *columns, device=words.device)
        wrong = part.astray(edits.element, edits.changed(words.reshape(-1)[edits.element]), words.shape)
        lost[owner[mine][wrong.cpu().numpy()]] = True
    return lost


def crashed(trials: Trials, which: NDArray[np.int64], golden: Tree) -> Iterator[Lanes]:
    """Yield the trials at the positions *which* as lanes that crashed; *golden* has a row for each input."""
    for begin in range(0, len(which), _AT_ONCE):
        chunk = which[begin : begin + _AT_ONCE]
        inputs = trials.inputs[chunk]
        mine = rows(golden, torch.from_numpy(inputs))
        yield Lanes(chunk, inputs, mine, mine, np.zeros(len(chunk), dtype=bool), np.ones(len(chunk), dtype=bool))
