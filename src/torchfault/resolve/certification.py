"""Certified masking: changes that are proven too small to change the top class, whose outcomes are golden's."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torchfault.data import leaves
from torchfault.engine import Engine
from torchfault.errors import CampaignError, ModelError, first_line
from torchfault.model.discover import find
from torchfault.model.export import capture
from torchfault.resolve.block import Block, Resolver
from torchfault.resolve.direct import Direct
from torchfault.resolve.radii import Certificate, certificates
from torchfault.resolve.struck import words_struck
from torchfault.space import FaultSpace, Site
from torchfault.words.deltas import values_of
from torchfault.words.largest_flips import largest_flips

__all__ = ["Certified", "certified", "certifies"]

Bits = NDArray[np.uint64]
Ints = NDArray[np.int64]
Words = Mapping[str, NDArray[np.unsignedinteger]]


@dataclass(frozen=True, eq=False)
class Certified:
    """Take the trials that are proven to leave the top class as it is without a lane; *inner* finds the other outcomes.

    *words* are the golden words of the sites that *proofs* hold certificates of (:func:`certified` makes both). Nothing
    is assumed: these outcomes are exact for criteria of the top class, and count as such. A share *audit* of them is
    run all the same, and what comes out otherwise is told. Raises :class:`CampaignError` for a share out of range.

    >>> Certified({}, {}).assumption
    ''
    """

    words: Words
    proofs: Mapping[str, Certificate] = field(compare=False, repr=False)
    inner: Resolver = field(default_factory=Direct)
    audit: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.audit <= 1:
            raise CampaignError(f"audit is a share from 0 to 1, got {self.audit}; the usual one is 0.01")

    @property
    def assumption(self) -> str:
        """What the inner resolver assumes."""
        return self.inner.assumption

    def resolve(self, block: Block, rows: Ints) -> None:
        """Find the outcomes of the trials at *rows* of *block*."""
        trials = block.trials
        first = trials.offsets[rows]
        known = np.array([site.name in self.proofs for site in trials.sites], dtype=bool)
        single = np.flatnonzero(np.diff(trials.offsets)[rows] == 1)
        single = single[known[trials.site[first[single]]]]
        proven = np.zeros(len(rows), dtype=bool)
        edits = first[single]
        for site, here, words in words_struck(trials, edits, self.words):
            at = edits[here]
            proof, inputs = self.proofs[site.name], trials.inputs[rows[single[here]]]
            change = _change(site, words, trials.keep[at], trials.toggle[at], proof.apart)
            proven[single[here]] = proof.proves(change, trials.element[at], inputs)
        block.take_as_golden(rows[proven])
        block.audit[rows[proven]] = self.audit
        self.inner.resolve(block, rows[~proven])


def _change(site: Site, words: Bits, keep: Bits, toggle: Bits, apart: float) -> NDArray[np.float64]:
    """Return by how much edits change the values of *words*, that may be *apart* from those in a lane, (n,).

    Of words that may be others only flips of single bits have a bound; other edits are infinite.
    """
    if not apart:
        with np.errstate(invalid="ignore"):
            return values_of((words & keep) ^ toggle, site.word) - values_of(words, site.word)
    full = np.uint64((1 << site.width) - 1)
    flips = (keep == full) & (toggle > 0) & (toggle & (toggle - np.uint64(1)) == 0)
    bit = np.log2(np.maximum(toggle, np.uint64(1)).astype(np.float64)).astype(np.int64)
    return np.where(flips, largest_flips(values_of(words, site.word), site.word, bit, apart=apart), np.inf)


def certified(engine: Engine, space: FaultSpace, inner: Resolver | None = None, *, audit: float = 0.01) -> Certified:
    """Return the resolver that certifies changes of *space*, a part of the engine's, around *inner*.

    A warning tells of how many sites nothing can be certified, and why of the first of them.

    >>> import torch
    >>> from torchfault import Data
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> engine = Engine(model, Data(torch.randn(5, 4)))
    >>> sorted(certified(engine, engine.space.select("*.weight")).proofs)
    ['0.weight', '2.weight']
    """
    found, without = _proofs(engine, space)
    if without:
        name, why = next(iter(without.items()))
        warnings.warn(
            f"nothing is certified in {len(without)} of {len(space.sites)} sites, whose trials have lanes of their "
            f"own; of '{name}', since {why}",
            stacklevel=2,
        )
    words = engine.words(space.select(list(found))) if found else {}
    return Certified(words, found, inner or Direct(), audit=audit)


def certifies(resolver: Resolver | None) -> bool:
    """Whether *resolver*, or one that it is around, tells of trials without a lane that the top class stays.

    >>> certifies(Certified({}, {})), certifies(Direct())
    (True, False)
    """
    while resolver is not None and not isinstance(resolver, Certified):
        resolver = getattr(resolver, "inner", None)
    return resolver is not None


def _proofs(engine: Engine, space: FaultSpace) -> tuple[Mapping[str, Certificate], Mapping[str, str]]:
    """Return the certificates of sites, and why the others have none."""
    golden = leaves(engine.golden())
    if len(golden) != 1 or golden[0].dim() != 2 or not golden[0].is_floating_point():
        return {}, dict.fromkeys(space.names, "the outputs are no scores of shape (inputs, classes)")
    try:
        captured = engine.captured or capture(engine.model, engine.data, find(engine.model, engine.data))
    except ModelError as error:
        return {}, dict.fromkeys(space.names, first_line(error))
    return certificates(captured, engine.data, golden[0], space)
