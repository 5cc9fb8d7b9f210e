"""Monotone closure: of the flips of one word in one direction, smaller ones fail no more than larger ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import CampaignError
from torchfault.resolve.block import Block, Resolver
from torchfault.resolve.chains import chains
from torchfault.resolve.direct import Direct
from torchfault.resolve.struck import words_struck
from torchfault.words.deltas import flip_deltas

__all__ = ["Monotone"]

Ints = NDArray[np.int64]
_FEW = 16  # outcomes of a block that rest on closure are audited at least, or all


@dataclass(frozen=True, eq=False)
class Monotone:
    """Let a masked flip vouch for the smaller flips of its word on the same input in the same direction, and a failing
    one for the larger ones; *inner* finds the outcomes in between.

    *words* are the golden words of all sites (:func:`torchfault.model.golden_words.golden_words`). Of what others vouch
    for a share *audit*, or 16 in a block, is run all the same, and counts. Raises :class:`CampaignError` for a share
    out of range, where words are missing, and for other faults than bit flips.

    >>> Monotone({}).assumption
    'smaller flips of a word in one direction fail no more than larger ones'
    """

    words: Mapping[str, NDArray[np.unsignedinteger]]
    inner: Resolver = field(default_factory=Direct)
    audit: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.audit <= 1:
            raise CampaignError(f"audit is a share from 0 to 1, got {self.audit}; the usual one is 0.1")

    @property
    def assumption(self) -> str:
        """That smaller flips of a word fail no more than larger ones."""
        own = "smaller flips of a word in one direction fail no more than larger ones"
        return f"{self.inner.assumption}; {own}" if self.inner.assumption else own

    def resolve(self, block: Block, rows: Ints) -> None:
        """Find the outcomes of the trials at *rows* of *block*."""
        trials = block.trials
        found = chains(block.word[rows], trials.inputs[rows], self._changes(block, rows))
        asked = np.zeros(len(rows), dtype=bool)
        while len(probes := found.probes()):
            self.inner.resolve(block, rows[probes])
            asked[probes] = True
            found.settle(probes, block.failed[rows[probes]])
        rest = np.flatnonzero(~asked)
        audit = min(1.0, max(self.audit, _FEW / max(len(rest), 1))) if self.audit else 0.0
        block.vouch(rows[rest], found.failing()[rest], audit=audit)

    def _changes(self, block: Block, rows: Ints) -> NDArray[np.float64]:
        """Return what each flip adds to the value of its word, shape (rows,)."""
        trials, change = block.trials, np.empty(len(rows))
        full = np.array([(1 << site.width) - 1 for site in trials.sites], dtype=np.uint64)[trials.site[rows]]
        toggle = trials.toggle[rows]
        if ((trials.keep[rows] != full) | (toggle == 0) | (toggle & (toggle - np.uint64(1)) != 0)).any():
            raise CampaignError("monotone closure compares single bit flips, got other changes; use fault=BitFlip()")
        for site, here, words in words_struck(trials, rows, self.words):
            bit = np.log2(toggle[here].astype(np.float64)).astype(np.int64)
            change[here] = flip_deltas(words, site.word, bit=bit)
        return change
