"""How much less a hardened model fails than the model it was: the same faults in both."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torchfault.campaign import Standing
from torchfault.criteria import Criterion
from torchfault.engine import Engine
from torchfault.errors import SamplingError
from torchfault.names import site_name
from torchfault.recipes.paired import in_part, paired
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate
from torchfault.statistics.intervals import clopper_pearson
from torchfault.store import Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["counterparts", "ratio", "survival"]

_KINDS = {"weights": ("weight", "bias", "norm"), "activations": ("output",)}


def survival(
    before: Engine,
    after: Engine,
    *,
    space: FaultSpace | None = None,
    trials: int = 1000,
    criterion: Criterion | None = None,
    seed: int = 0,
    level: float = 0.95,
    store: Store | str | Path | None = None,
    name: str = "survival",
    progress: Callable[[Standing], None] | None = None,
) -> "pd.DataFrame":
    """Return how often bit flips fail in a model and in what was made of it, in the same words and on the same inputs.

    A row for ``weights`` and one for ``activations``, as far as *space*, a part of that of *before*, has them (all of
    it unless told) and *after* has their :func:`counterparts`: the shares *before* and *after*, *fewer*, the ratio of
    the two, with bounds *low* and *high*, and *difference* with those of paired differences. Each share is a campaign,
    such as *name*-weights-before, which *store* keeps and goes on with where it was interrupted. Raises
    :class:`SamplingError` where there is nothing to strike, and :class:`CampaignError` where *store* holds other
    campaigns of these names.

    >>> import torch
    >>> from torchfault import Data
    >>> from torchfault.hardening import InvariantBits, harden
    >>> _ = torch.manual_seed(0)
    >>> model, data = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval(), Data(torch.randn(20, 4))
    >>> found = survival(Engine(model, data), Engine(harden(model, InvariantBits()), data), trials=400)
    >>> bool(found.set_index("faults").loc["weights", "fewer"] > 1)
    True
    """
    import pandas as pd

    space, rows = before.space if space is None else space, []
    alike = counterparts(space, after.space)
    for faults, kinds in _KINDS.items():
        names = {site.name: alike[site.name] for site in space.sites if site.kind in kinds and alike[site.name]}
        if not names:
            continue
        found = paired(
            {"before": before, "after": after},
            {"before": sorted(names), "after": [names[name] for name in sorted(names)]},
            trials=trials,
            criterion=criterion,
            seed=seed,
            level=level,
            store=store,
            name=f"{name}-{faults}",
            progress=in_part(progress, faults),
        )
        one, two = (round(value * trials) for value in found["value"])
        fewer, told = ratio(one, two, trials, level=level), found.iloc[1]
        differs = (told["difference"], told["difference_low"], told["difference_high"])
        rows.append((faults, trials, one / trials, two / trials, fewer.value, fewer.low, fewer.high, *differs))
    if not rows:
        raise SamplingError(
            "hardening is about weights and the outputs of operations, got no such sites in both models; choose others"
        )
    columns = ["faults", "trials", "before", "after", "fewer", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "difference_low", "difference_high"])


def counterparts(space: FaultSpace, other: FaultSpace) -> dict[str, str]:
    """Return what weights and outputs of *space* are called in the *other* one, of a hardened model: ``""`` for none.

    Where a layer has become several operations, as checksums make of it, its output is that of the first of them that
    gives a tensor of the same shape.

    >>> from torchfault import Site
    >>> plain = FaultSpace((Site("fc.weight", (2, 3)), Site("fc:output", (2,)), Site("relu:output", (2,))))
    >>> counterparts(plain, FaultSpace((Site("fc.weight", (2, 3)), Site("fc.linear:output", (2,)))))
    {'fc.weight': 'fc.weight', 'fc:output': 'fc.linear:output', 'relu:output': ''}
    """
    known, inner = {site.name for site in other.sites}, dict[tuple[str, tuple[int, ...]], str]()
    for site in other.sites:
        if (name := site_name(site.name)).role == "output":
            inner.setdefault((name.caller, site.shape), site.name)
    struck = [site for site in space.sites if any(site.kind in kinds for kinds in _KINDS.values())]
    bases = {site.name: site_name(site.name).base for site in struck}
    return {s.name: s.name if s.name in known else inner.get((bases[s.name], s.shape), "") for s in struck}


def ratio(before: int, after: int, trials: int, *, level: float = 0.95) -> Estimate:
    """Return by what factor failures in *trials* became fewer, with bounds that hold whatever the two have in common.

    Each share has an exact interval of half the error, and the bounds are ratios of their ends (Bonferroni); without
    a failure *after*, the value and the upper bound are infinite.

    >>> str(ratio(100, 5, 1000)), ratio(100, 0, 1000).low > 15
    ('20 [6, 91]', True)
    """
    half = (1 + level) / 2
    (low_before, low_after), (high_before, high_after) = clopper_pearson([before, after], trials, level=half)
    value = before / after if after else float("inf") if before else float("nan")
    high = float(high_before / low_after) if low_after > 0 else float("inf")
    return Estimate(value, float(low_before / high_after), high, trials, "clopper-pearson", level)
