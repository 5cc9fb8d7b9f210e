"""The same faults in several representations of a model: which fails more, by pairs of trials."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from torchfault.campaign.judging import check_golden
from torchfault.criteria import Criterion, NonFinite, Top1Change
from torchfault.criteria.compose import verdict
from torchfault.data import rows
from torchfault.engine import Engine
from torchfault.errors import SamplingError
from torchfault.faults import BitFlip
from torchfault.space import FaultSpace, Locations
from torchfault.statistics.differences import paired_difference
from torchfault.statistics.intervals import wilson
from torchfault.trials import strike

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["paired"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def paired(
    engines: Mapping[str, Engine],
    sites: str | Sequence[str] = "*",
    *,
    trials: int = 1000,
    criterion: Criterion | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> "pd.DataFrame":
    """Return how often one random bit flip fails in each of *engines*, struck in the same elements on the same inputs.

    *engines* run representations of one model, on the same data. *sites* are globs of what all of them have, in the
    same shapes, as the weights are; each trial draws an element, an input, and how high a bit it strikes, which in a
    word of w bits is bit w u for a number u from 0 to 1. A row for each has the share that fails (*criterion*, the top
    class unless told) with its interval, and what it has more than the first, *difference*, with an interval of paired
    differences that is far narrower than that of two samples. Raises :class:`SamplingError` where sites differ, and
    :class:`CampaignError` where the outputs of one are not finite without faults.

    >>> import torch
    >>> from torchfault import Data, represent
    >>> _ = torch.manual_seed(0)
    >>> model, data = torch.nn.Linear(4, 3).eval(), Data(torch.randn(8, 4))
    >>> engines = {how: Engine(represent(model, how), data) for how in ("float32", "mxfp8_e4m3")}
    >>> paired(engines, "weight", trials=200)[["format", "trials"]].to_numpy().tolist()
    [['float32', 200], ['mxfp8_e4m3', 200]]
    """
    import pandas as pd

    spaces = {name: engine.space.select(sites) for name, engine in engines.items()}
    _check(spaces, engines)
    for engine in engines.values():
        check_golden(engine.golden())
    rng, first = np.random.default_rng(seed), next(iter(spaces.values()))
    ends = np.cumsum([site.elements for site in first.sites])
    element, inputs = rng.integers(0, ends[-1], trials), rng.integers(0, len(next(iter(engines.values())).data), trials)
    height = rng.random(trials)
    site = np.searchsorted(ends, element, side="right")
    element = element - np.concatenate(([0], ends[:-1]))[site]
    failed: dict[str, Bools] = {}
    for name, space in spaces.items():
        widths = np.array([one.width for one in space.sites])[site]
        where = Locations(site.astype(np.int32), element, (height * widths).astype(np.int16))
        failed[name] = _failed(engines[name], space, where, inputs, criterion or Top1Change())
    base, found = next(iter(failed.values())), []
    for name, mine in failed.items():
        low, high = (float(bound) for bound in wilson(mine.sum(), trials, level=level))
        pairs = (base & mine, base & ~mine, mine & ~base, ~(base | mine))
        more = paired_difference(*(int(outcomes.sum()) for outcomes in pairs), level=level)
        found.append((name, trials, float(mine.mean()), low, high, more.value, more.low, more.high))
    columns = ["format", "trials", "value", "low", "high", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(found, columns=columns)


def _check(spaces: Mapping[str, FaultSpace], engines: Mapping[str, Engine]) -> None:
    shapes = {name: [(site.name, site.shape) for site in space.sites] for name, space in spaces.items()}
    first = next(iter(shapes))
    for name, mine in shapes.items():
        if mine != shapes[first] or len(engines[name].data) != len(engines[first].data):
            raise SamplingError(
                f"the same faults need the same sites and inputs, got others in '{name}' than in '{first}'; choose "
                "sites that both have in one shape, such as '*.weight'"
            )


def _failed(engine: Engine, space: FaultSpace, where: Locations, inputs: Ints, criterion: Criterion) -> Bools:
    """Return which flips fail, or leave no answer."""
    trials = strike(space, where, model=BitFlip(), rng=np.random.default_rng(0), inputs=inputs)
    failed, without = np.zeros(len(inputs), dtype=bool), NonFinite()
    for lanes in engine.run(trials):
        labels = rows(engine.data.labels, torch.from_numpy(lanes.inputs))
        wrong = verdict(criterion, lanes.golden, lanes.outputs, labels)
        lost = verdict(without, lanes.golden, lanes.outputs, labels)
        failed[lanes.trial] = (wrong | lost).cpu().numpy() | lanes.crashed
    return failed
