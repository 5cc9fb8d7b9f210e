"""Which words on which images are analysed: those that the recipe's own sampler draws, with their golden values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torchfault.sampling import Population, TwoStage, stream
from torchfault.space import FaultSpace
from torchfault.words import decode, word
from torchfault.words.native import masks_to_words

__all__ = ["Targets", "all_targets", "targets_of"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Targets:
    """Words, each on one image, in columns of shape (targets,): the number of the *site*, the *element*, the *image*,
    and the golden *words*."""

    site: Ints
    element: Ints
    image: Ints
    words: NDArray[np.uint64]

    def where(self, kept: NDArray[np.bool_]) -> "Targets":
        """Return those that are *kept*, shape (targets,)."""
        return Targets(self.site[kept], self.element[kept], self.image[kept], self.words[kept])

    def values(self, space: FaultSpace) -> dict[int, Tensor]:
        """Return the golden values of each site's targets, in their order."""
        found = {}
        for number in np.unique(self.site).tolist():
            fmt = word(space.sites[number].word)
            found[number] = decode(masks_to_words(self.words[self.site == number], fmt), fmt)
        return found


def targets_of(space: FaultSpace, sampler: TwoStage, images: int, *, seed: int) -> Iterator[Targets]:
    """Yield the words that *sampler* draws on all *images*, block by block."""
    population = Population(space, inputs=images)
    total = sampler.design(population).total or 0
    for start in range(0, total, sampler.block):
        n, rng = min(sampler.block, total - start), stream(seed, 0, start // sampler.block)
        draws = sampler.draw(population, n, rng=rng, start=start)
        where = space.locate(draws.index)
        if draws.inputs is not None:
            yield Targets(where.site.astype(np.int64), where.element, draws.inputs, draws.words)
            continue
        site, element = (np.repeat(column, images) for column in (where.site.astype(np.int64), where.element))
        yield Targets(site, element, np.tile(np.arange(images), n), draws.words.reshape(-1))


def all_targets(space: FaultSpace, sampler: TwoStage, images: int, *, seed: int) -> Targets:
    """Return all of them together."""
    parts = list(targets_of(space, sampler, images, seed=seed))
    columns: Mapping[str, NDArray] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("site", "element", "image", "words")
    }
    return Targets(**columns)
