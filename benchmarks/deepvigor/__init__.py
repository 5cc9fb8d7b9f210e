"""DeepVigor+ as published, for comparison: one value added to a whole channel, pooled error maps, powers of two.

What differs from the factors of :func:`torchfault.recipes.vulnerability` can be switched off one by one. Source:
Ahmadilivani et al., DeepVigor+, arXiv 2410.15742.
"""

from benchmarks.deepvigor.analysis import Published, analyse
from benchmarks.deepvigor.refinements import PUBLISHED, Refinements

__all__ = ["PUBLISHED", "Published", "Refinements", "analyse"]
