"""The golden words that trials strike."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import CampaignError
from torchfault.space import Site
from torchfault.trials import Trials

__all__ = ["words_struck"]

Ints = NDArray[np.int64]
Words = NDArray[np.unsignedinteger]


def words_struck(
    trials: Trials, edits: Ints, words: Mapping[str, Words]
) -> Iterator[tuple[Site, Ints, NDArray[np.uint64]]]:
    """Yield, site by site, which of *edits* of *trials* strike it (positions in *edits*), and the words they find.

    *words* are the golden words of all sites (:func:`torchfault.model.golden_words.golden_words`). Raises
    :class:`CampaignError` where those of a site are missing.
    """
    inputs = trials.inputs[trials.owner[edits]]
    for position in np.unique(trials.site[edits]):
        site = trials.sites[position]
        held = words.get(site.name)
        if held is None or held.shape[1:] != (site.elements,):
            got = "none" if held is None else f"shape {held.shape}"
            raise CampaignError(f"a resolver needs the golden words of '{site.name}', got {got}; use golden_words")
        here = np.flatnonzero(trials.site[edits] == position)
        row = inputs[here] if len(held) > 1 else np.zeros(len(here), dtype=np.int64)
        yield site, here, held[row, trials.element[edits[here]]].astype(np.uint64)
