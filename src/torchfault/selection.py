"""Which sites, bits and time steps pass filters by name, kind and module type; each filter must admit something."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torchfault.errors import SpaceError
from torchfault.names import listed, matching
from torchfault.site import Site

__all__ = ["select_sites"]


def select_sites(
    sites: Sequence[Site],
    names: str | Iterable[str],
    *,
    exclude: str | Iterable[str],
    kinds: str | Iterable[str],
    types: str | Iterable[str],
    bits: Iterable[int],
    steps: tuple[int, int] | None,
) -> list[Site]:
    """Return the part of *sites* that every filter admits; see :meth:`torchfault.FaultSpace.select`."""
    every = set(range(len(sites)))
    kept, dropped = (matching([site.name for site in sites], patterns, what="site") for patterns in (names, exclude))
    kind, type_ = [site.kind for site in sites], [site.module_type for site in sites]
    by_kind = matching(kind, kinds, what="site of kind") if listed(kinds) else every
    by_type = matching(type_, types, what="site of module type") if listed(types) else every
    chosen = sorted((kept & by_kind & by_type) - dropped)
    if not chosen:
        raise SpaceError("no site passes all the filters together; loosen one of names, exclude, kinds or types")
    wanted = set(bits)
    found = [sites[i] for i in chosen]
    if wanted:
        held = {bit for site in found for bit in site.bits}
        if not wanted <= held:
            lacking, widest = sorted(wanted - held), max(held)
            raise SpaceError(f"no chosen site has the bits {lacking}; the highest is {widest}, see space.table()")
        found = [replace(s, bits=tuple(wanted & set(s.bits))) for s in found if wanted & set(s.bits)]
    return found if steps is None else _during(found, *steps)


def _during(sites: Sequence[Site], first: int, end: int) -> list[Site]:
    """Return *sites* with the time steps *first* to *end* - 1 alone, in those that have steps."""
    last = max((site.steps[1] for site in sites if site.steps), default=0)
    if not 0 <= first < end <= last:
        known = f"steps run from 0 to {last - 1} here" if last else "no chosen site has time steps"
        raise SpaceError(f"time steps are a range such as 0:{last or 4}, got {first}:{end}; {known}")
    kept = []
    for site in sites:
        if site.steps is None:
            kept.append(site)
        elif (low := max(first, site.steps[0])) < (high := min(end, site.steps[1])):
            kept.append(replace(site, shape=(high - low, *site.shape[1:]), steps=(low, high)))
    return kept
