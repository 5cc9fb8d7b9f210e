"""The failure rate of ResNet-20 within 0.01 points, beside statistical injection, iterative and conservative.

Ruospo, Sonza Reorda, Mariani & Sanchez ("An Effective Iterative Statistical Fault Injection Methodology for Deep Neural
Networks", IEEE Transactions on Computers 2025, doi 10.1109/TC.2025.3566863) strike the weights of ResNet-20 until the
network's failure rate is known within a margin of 0.01 points at 95 %, each fault on all images, and report about 66 %
fewer faults than a conservative plan. The same is asked here of 100 images, in lanes: one fault on one image each.
``conservative`` and ``iterative`` are computed for the same space, by Leveugle's formula at p = 0.5 and at the failure
rate, as if that were known beforehand; ``published`` is theirs. ``pooled`` and ``adaptive`` (nothing assumed) are run.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.engine import resnet20
from benchmarks.sections import Size, bounds
from torchfault.campaign import run
from torchfault.engine import Engine
from torchfault.recipes import economy
from torchfault.statistics import leveugle_sample_size

MARGIN = 1e-4
REDUCTION = 0.66  # published, of the faults of the conservative plan


def record(size: Size) -> Mapping[str, Any]:
    """Return faults and lanes by method for the *margin*, ten times as wide where *size* is quick."""
    margin = 10 * MARGIN if size == "quick" else MARGIN
    engine = Engine(*resnet20())
    space = engine.space.select(kinds="weight", types=("Conv2d", "Linear"))
    ours: dict[str, dict[str, Any]] = {}
    for name, pool in (("pooled", 64), ("adaptive", 0)):
        began = time.process_time()
        results = run(economy(engine, space, half_width={"model": margin}, pool=pool))
        found = results.estimate()
        ours[name] = {
            "lanes": results.lanes,
            "trials": len(results),
            "processor_seconds": round(time.process_time() - began, 1),
            "rate": bounds(found),
        }
        print(f"{name}: {results.lanes:,} lanes, {found}", file=sys.stderr)
    conservative = leveugle_sample_size(len(space), margin=margin)
    rate = ours["pooled"]["rate"]["value"]
    return {
        "record": {
            "margin": margin,
            "population": len(space),
            "conservative": round(conservative),
            "iterative": round(leveugle_sample_size(len(space), margin=margin, p=rate)),
            "published": round((1 - REDUCTION) * conservative) if margin == MARGIN else None,
            "ours": ours,
        }
    }
