"""Vulnerability factors as a prediction for every fault: where to draw, while the estimate stays unbiased."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import VulnerabilityError, did_you_mean
from torchfault.results.results import Results
from torchfault.results.vulnerability import drawn_in_two_stages
from torchfault.sampling.flips import masks_of
from torchfault.sampling.scores import Score
from torchfault.site import Site

__all__ = ["FactorScore", "factor_score"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_PRIOR = 20.0  # words that the site's share counts as, beside those of the channel


@dataclass(frozen=True, eq=False)
class FactorScore(Score):
    """The probability that a flip fails, by channel, bit and, where it is known, the sign of the word.

    *shares*, by the name of the site, have shape (2, channels, width): of words from 0 up, and of words below 0.
    *negative*, (elements,), tells which words are below 0; sites without take the first of the two for all.
    """

    shares: Mapping[str, Floats]
    negative: Mapping[str, Bools]

    def rows(self, site: Site, elements: Ints) -> Floats:
        """Return the scores of all bits, in the order of ``site.bits``, of some *elements*: shape (n, bits)."""
        if site.name not in self.shares:
            near = did_you_mean(site.name, self.shares) or "; choose sites that were analysed, or analyse more"
            raise VulnerabilityError(f"'{site.name}' was not analysed{near}")
        signs = self.negative.get(site.name)
        sign = np.zeros(len(elements), dtype=np.int64) if signs is None else signs[elements].astype(np.int64)
        return np.asarray(self.shares[site.name][sign, site.channel_of(elements)][:, list(site.bits)])


def factor_score(results: Results, words: Mapping[str, NDArray[np.unsignedinteger]] | None = None) -> FactorScore:
    """Return the factors of *results* as a score: how likely each fault is to fail, by channel and bit.

    It serves :class:`torchfault.Importance` as the score to draw by: whatever the factors assumed or missed, the
    estimate from such draws is unbiased and has a valid interval. With *words*, the golden ones of the model's weights
    (:func:`torchfault.model.golden_words.golden_words`), weights above and below 0 are told apart.

    A channel's share is drawn towards its site's by as much as 20 words, one that was not drawn has that of its site,
    and none is 0. Raises :class:`VulnerabilityError` for a campaign that was not drawn in two stages.

    >>> import torch
    >>> from torchfault import Data, Engine, run
    >>> from torchfault.recipes import vulnerability
    >>> engine = Engine(torch.nn.Sequential(torch.nn.Linear(4, 3)).eval(), Data(torch.randn(5, 4)))
    >>> results = run(vulnerability(engine, weights=None))
    >>> factor_score(results).rows(results.space.site("0.weight"), np.arange(4)).shape
    (4, 32)
    """
    from torchfault.words.deltas import values_of

    space, columns = drawn_in_two_stages(results), results.columns
    where, failed = space.locate(columns.faults), masks_of(columns, "failed")
    shares, negative = {}, {}
    for position, site in enumerate(space.sites):
        rows = np.flatnonzero(where.site == position)
        assert columns.words is not None
        below = np.zeros(len(rows), dtype=np.int64)
        if words is not None and not site.is_activation:
            below = (values_of(columns.words[rows], site.word) < 0).astype(np.int64)
            negative[site.name] = values_of(np.asarray(words[site.name][0]), site.word) < 0
        channel = site.channel_of(where.element[rows])
        halves = [_table(site, channel[below == sign], failed[rows[below == sign]]) for sign in (0, 1)]
        shares[site.name] = np.stack(halves)
    return FactorScore(shares, negative)


def _table(site: Site, channel: Ints, failed: NDArray[np.uint64]) -> Floats:
    """Return the share of flips that fail for all channels of the site, shape (channels, width)."""
    words, bits = np.bincount(channel, minlength=site.channels), list(site.bits)
    harmful = np.empty((site.channels, len(bits)))
    for place, bit in enumerate(bits):
        set_ = (failed >> np.uint64(bit) & np.uint64(1)).astype(np.float64)
        harmful[:, place] = np.bincount(channel, set_, site.channels)
    # Half a flip more, whichever bit it is: a bit that was never seen to fail keeps a chance.
    whole = (harmful.sum(axis=0) + 0.5 / len(bits)) / (words.sum() + 1)
    table = np.zeros((site.channels, site.width))
    table[:, bits] = (harmful + _PRIOR * whole) / (words[:, None] + _PRIOR)
    return table
