"""What is kept of the outcomes: failing flips by channel and bit of every site."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from torchfault.space import FaultSpace

__all__ = ["Tally"]


class Tally:
    """Sums of failing shares by channel and bit of each site of *space*, whose words have bits *positions*."""

    def __init__(self, space: FaultSpace, positions: dict[int, tuple[int, ...]]) -> None:
        self.space, self.positions = space, positions
        self.harmful = [np.zeros((site.channels, len(positions[i]))) for i, site in enumerate(space.sites)]
        self.words = [np.zeros(site.channels) for site in space.sites]

    def add(self, site: int, channel: NDArray[np.int64], share: NDArray[np.float64]) -> None:
        """Take in words of a site: the failing *share* of each of their flips, shape (words, bits)."""
        np.add.at(self.harmful[site], channel, share)
        np.add.at(self.words[site], channel, 1)

    def channels(self) -> pd.DataFrame:
        """Return the factor of each channel analysed."""
        rows = [
            (site.name, channel, float(self.harmful[number][channel].mean() / words))
            for number, site in enumerate(self.space.sites)
            for channel, words in enumerate(self.words[number].tolist())
            if words
        ]
        return pd.DataFrame(rows, columns=["site", "channel", "value"])

    def bits(self) -> pd.DataFrame:
        """Return the failing share of each bit of each site."""
        rows = []
        for number, site in enumerate(self.space.sites):
            drawn = self.words[number] > 0
            share = (self.harmful[number][drawn] / self.words[number][drawn, None]).mean(axis=0)
            rows += [(site.name, bit, one) for bit, one in zip(self.positions[number], share.tolist(), strict=True)]
        return pd.DataFrame(rows, columns=["site", "bit", "value"])
