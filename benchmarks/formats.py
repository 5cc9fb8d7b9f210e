"""The formats of weights compared: accuracy, vulnerability of element and scale bits, failures per megabyte and upset.

ResNet-20 with its CIFAR-10 weights (in TORCHFAULT_DATA, default ../shared/data), and a small transformer that learns
scikit-learn's digits in seconds. In every format the weights of two or more axes are kept as it says, and random single
bit flips strike their elements and, apart from those, their scales; a trial fails where the top class changes. Failures
per megabyte-upset are those to expect where each megabyte of stored weights takes one upset.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import format_rows
from benchmarks.engine import resnet20
from benchmarks.error_rates import accuracy
from benchmarks.sections import bounds
from torchfault.adapters.represent import represent
from torchfault.campaign import Campaign, run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.recipes import paired
from torchfault.results import Results
from torchfault.space import FaultSpace
from torchfault.statistics import MaxTrials

FORMATS = (
    *("float32", "bfloat16", "float8_e4m3fn", "mxfp8_e4m3", "mxfp8_e5m2"),
    *("mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "nvfp4", "mxint8", "int8"),
)
STARTED = time.perf_counter()
WIDTH, PATCH, EPOCHS = 64, 2, 60
STRUCK = 200  # inputs on which faults strike


class Digits(nn.Module):
    """A transformer that classifies images of 8 x 8 pixels by their 16 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.place = nn.Parameter(torch.randn(16, WIDTH) * 0.1)
        one = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3).flatten(1, 2)
        return self.head(self.encoder(self.embed(patches) + self.place).mean(1))


@cache
def transformer() -> tuple[nn.Module, Data]:
    """Return the transformer, trained on scikit-learn's digits, and the 397 images that it never saw."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = torch.tensor(bunch.images / 16, dtype=torch.float32), torch.tensor(bunch.target)
    torch.manual_seed(0)
    model = Digits().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(1400).split(50):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    return model.eval(), Data(images[1400:], labels[1400:])


NETWORKS = {"ResNet-20": lambda: resnet20(slice(0, 1000)), "transformer": transformer}


@dataclass(frozen=True)
class Row:
    """What a format does to a network: its *megabytes*, and the results of faults in elements and in scales."""

    network: str
    format: str
    accuracy: float
    elements: FaultSpace
    scales: FaultSpace | None
    hit: Results
    moved: Results | None

    @property
    def megabytes(self) -> float:
        """The size of the stored weights."""
        return sum(len(space) for space in (self.elements, self.scales) if space is not None) / 8e6

    def upsets(self) -> dict[str, float]:
        """Return the share of upsets in all stored bits that fail, with its interval: of strata by their sizes."""
        parts = [(self.elements, self.hit), *([(self.scales, self.moved)] if self.scales and self.moved else [])]
        shares = [len(space) / 8e6 / self.megabytes for space, _ in parts]
        found = [results.estimate() for _, results in parts]
        value = sum(share * one.value for share, one in zip(shares, found, strict=True))
        down = sqrt(sum((share * (one.value - one.low)) ** 2 for share, one in zip(shares, found, strict=True)))
        up = sqrt(sum((share * (one.high - one.value)) ** 2 for share, one in zip(shares, found, strict=True)))
        return {"value": value, "low": value - down, "high": value + up}


def measured(name: str, how: str, trials: int) -> tuple[Row, Engine]:
    """Return what *how* does to a network, and its engine."""
    model, data = NETWORKS[name]()
    twin = represent(model, how)
    engine = Engine(twin, data.take(slice(0, STRUCK)))
    weights = [s.name for s in engine.space.sites if s.kind == "weight" and len(s.shape) > 1]
    elements = engine.space.select(weights, kinds="weight")
    named = [s.name for s in engine.space.sites if s.kind == "scale"]
    scales = engine.space.select(named) if named else None
    hit = run(Campaign(engine, elements, stop=MaxTrials(trials), seed=1))
    moved = run(Campaign(engine, scales, stop=MaxTrials(trials // 2), seed=2)) if scales else None
    return Row(name, how, accuracy(twin, data), elements, scales, hit, moved), engine


def told(row: Row, more: Any) -> dict[str, Any]:
    """Return a row as plain numbers; *more* is its difference from the first format, of paired faults."""
    size, upsets = row.megabytes, row.upsets()
    return {
        "network": row.network,
        "format": row.format,
        "accuracy": row.accuracy,
        "megabytes": size,
        "elements": by_bit(row.hit),
        "scales": None if row.moved is None else by_bit(row.moved),
        "failures_per_upset_a_megabyte": {bound: size * value for bound, value in upsets.items()},
        "difference": {"value": more.difference, "low": more.difference_low, "high": more.difference_high},
    }


def by_bit(results: Results) -> dict[str, Any]:
    """Return how many flips fail, with the interval, in all bits and in each of which some do, from the top."""
    one, table = results.estimate(), results.table("bit").sort_values("key", ascending=False)
    bits = {str(bit.key): bounds(bit) for bit in table.itertuples() if bit.failures}
    width = max(site.width for site in results.space.sites)
    return {**bounds(one), "width": width, "bits": bits}


def _say(part: str) -> None:
    took, used = time.perf_counter() - STARTED, time.process_time()
    print(f"{took:6.0f} s, {used:6.0f} s of processor time  {part}", file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trials", type=int, default=2000, help="flips in elements, and half as many in scales (2000)")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), help="the formats (all); the first is the base")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    lines = []
    for name in options.networks:
        found = {}
        for how in options.formats:
            found[how] = measured(name, how, options.trials)
            _say(f"{name} {how}")
        names = list(next(iter(found.values()))[0].elements.names)
        pairs = paired({how: engine for how, (_, engine) in found.items()}, names, trials=options.trials, seed=3)
        lines += [told(row, more) for (row, _), more in zip(found.values(), pairs.itertuples(), strict=True)]
        _say(f"{name}: pairs")
    if options.json:
        print(json.dumps({"rows": lines}))
    else:
        print(*format_rows.formats({"rows": lines}), "", *format_rows.format_bits({"rows": lines}), sep="\n")


if __name__ == "__main__":
    main()
