"""What is repaired in the published method, each part to be switched off and measured by itself."""

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Refinements"]


@dataclass(frozen=True, kw_only=True)
class Refinements:
    """The refinements of DeepVigor+ that are on; all of them unless told.

    - *shape*: a weight's error is that of the weight itself (its change times the shifted input channel), tried on
      words of the filter; without it, one value is added to the whole output channel.
    - *per_image*: errors are mapped image by image; without it, the map is pooled over the images.
    - *exact*: thresholds lie between the errors of actual flips; without it, at powers of two from 2^-10 to 2^10,
      errors count by whole octaves, and those nearer to 0 never.
    - *tails*: errors of 1,024 and more, and those that are not finite, are tried themselves; without it, they are as
      harmful as 1,024, and what is not finite always is.

    >>> Refinements(shape=False)
    Refinements(shape=False, per_image=True, exact=True, tails=True)
    """

    shape: bool = True
    per_image: bool = True
    exact: bool = True
    tails: bool = True


PUBLISHED = Refinements(shape=False, per_image=False, exact=False, tails=False)
"""The method as published (in inference mode)."""
