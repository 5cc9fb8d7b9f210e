"""From settings to what saves lanes: sampling by deviation, searches, shortcuts."""

from typing import TYPE_CHECKING, Any

from torchfault.config.schema import Settings

if TYPE_CHECKING:
    from torchfault.campaign import Shortcuts
    from torchfault.engine import Engine
    from torchfault.sampling import Sampler
    from torchfault.space import FaultSpace

__all__ = ["deviation", "search", "shortcuts"]

_RESERVE = 0.05  # of a half-width, for what an audit adds to intervals


def deviation(settings: Settings, engine: "Engine", space: "FaultSpace") -> "Sampler":
    """Return the sampler by deviation that *settings* describe, with the words that the engine's model holds."""
    from torchfault.sampling import Deviation

    sampler, pool = settings.sampler, settings.shortcuts.pool if settings.shortcuts else 0
    widths = [h for h in (sampler.site, sampler.whole) if h is not None]
    return Deviation(
        _words(engine, space),
        sampler.site,
        sampler.whole,
        level=settings.level,
        reserve=_RESERVE * min(widths) if settings.shortcuts else 0.0,
        block=_block(len(space.sites) if sampler.site else 1, pool=bool(pool)),
        pool=pool,
        margins=_margins(engine),
    )


def _block(sites: int, *, pool: bool) -> int:
    """Return how many draws are planned together: twice the strata at least, and many where they share lanes."""
    from torchfault.sampling import Deviation
    from torchfault.sampling.deviation import BEYOND

    strata = len(Deviation.edges) * (len(Deviation.unsure) + 1) + BEYOND
    least = 1 << (2 * strata * sites - 1).bit_length()
    return max(8192 if pool else 1024, least)


def _margins(engine: "Engine") -> Any:
    """Return the margin of each input, ``None`` where outputs are no scores of classes."""
    from torchfault.errors import CriterionError
    from torchfault.sensitivity import margins

    try:
        return margins(engine.golden())
    except CriterionError:
        return None


def _words(engine: "Engine", space: "FaultSpace") -> Any:
    from torchfault.model.golden_words import golden_words

    return golden_words(engine.model, engine.data, space)


def search(engine: "Engine", space: "FaultSpace", *, seed: int) -> "Sampler":
    """Return the sampler of a search, which goes by the words of parameters, and by channels elsewhere."""
    from torchfault.sampling import Search

    kinds = {site.kind for site in space.sites if not site.is_activation}
    return Search(words=_words(engine, space.select(kinds=kinds)) if kinds else None, seed=seed)


def shortcuts(settings: Settings, engine: "Engine", space: "FaultSpace") -> "Shortcuts | None":
    """Return the shortcuts that *settings* ask for, if any."""
    from torchfault.campaign import Shortcuts

    given = settings.shortcuts
    if given is None or not (given.pool or given.monotone):
        return None
    return Shortcuts(given.pool, _words(engine, space) if given.monotone else None, given.audit)
