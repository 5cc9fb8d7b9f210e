"""Search: as many faults that fail as can be found, and how many there are in all."""

from collections.abc import Mapping, Sequence

from torchfault.campaign import Campaign
from torchfault.criteria import Criterion, Top1Change
from torchfault.engine import Engine
from torchfault.faults import BitFlip, FaultModel
from torchfault.sampling import Search
from torchfault.space import FaultSpace
from torchfault.statistics import MaxTrials, Rule

__all__ = ["search"]


def search(
    engine: Engine,
    space: FaultSpace,
    *,
    side: int = 2048,
    block: int = 512,
    known: Sequence[int] = (),
    stop: Rule | None = None,
    fault: FaultModel | None = None,
    criterion: Criterion | None = None,
    verdicts: Mapping[str, Criterion] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Campaign:
    """Return the campaign that looks for faults that fail: none of them twice, 10,000 trials unless *stop* says more.

    The first *side* faults are a random sample, by which :func:`torchfault.results.recall` tells how many there are in
    all; each later block of *block* faults goes where they have failed most so far. Those of *known* numbers are left
    out. Parameters are searched by their words, activations by their channels.

    >>> from torchfault import demo
    >>> engine = Engine(demo.model(), demo.data().take(slice(0, 20)), executor="hooks")
    >>> search(engine, engine.space.select("fc*.weight"), side=512).sampler.side
    512
    """
    kinds = {site.kind for site in space.sites if not site.is_activation}
    words = engine.words(space.select(kinds=kinds)) if kinds else None
    return Campaign(
        engine,
        space,
        sampler=Search(side=side, block=block, words=words, known=tuple(known), seed=seed),
        fault=fault or BitFlip(),
        criterion=criterion or Top1Change(),
        verdicts=verdicts or {},
        level=level,
        seed=seed,
        stop=stop or MaxTrials(10_000),
    )
