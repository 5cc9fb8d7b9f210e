"""The words in which the variables of layers are kept, among the sites of a model; NumPy only."""

from torchfault.errors import HardwareError
from torchfault.hardware.work import Work
from torchfault.space import FaultSpace, Site

__all__ = ["NO_SCALES", "scale_of", "scales_of", "word_width"]

NO_SCALES = (0, 0)
_OF_BLOCK = 8  # the most bits of a scale that is a block's


def word_width(work: Work, holds: str, space: FaultSpace) -> int:
    """Return the bits of the words of one kind of variable; raises :class:`HardwareError` where they are not alike."""
    sites = [space.site(name) for name in work.sites(holds)]
    widths, elements = {site.width for site in sites}, sum(site.elements for site in sites)
    if len(widths) != 1 or elements != work.count(holds):
        raise HardwareError(
            f"the {work.count(holds)} {holds} variables of '{work.layer}' need sites with words of one width, got "
            f"{elements} with {sorted(widths) or 'none'}; fold computed weights, or convert to one type"
        )
    return widths.pop()


def scale_of(space: FaultSpace, name: str) -> Site | None:
    """Return the site of the scales (or exponents) that blocks of the variables called *name* share, if any.

    A scale of a whole row or tensor, a float32, is none: sums are multiplied by it once they are complete.
    """
    around = (f"{name}{mark}{part}" for mark in ":." for part in ("scale", "exponent"))
    found = next((space.site(other) for other in around if other in space.names), None)
    return found if found is not None and found.width <= _OF_BLOCK else None


def scales_of(work: Work, holds: str, space: FaultSpace) -> tuple[int, int]:
    """Return the bits and the number of the scales that blocks of one kind of variable share."""
    sites = [scale for name in work.sites(holds) if (scale := scale_of(space, name)) is not None]
    return (sites[0].width, sum(site.elements for site in sites)) if sites else NO_SCALES
