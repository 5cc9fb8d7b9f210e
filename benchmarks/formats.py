"""The formats of weights compared: accuracy, vulnerability of element and scale bits, failures per megabyte and upset.

ResNet-20 with its CIFAR-10 weights (in TORCHFAULT_DATA, default ../shared/data), and a small transformer that learns
scikit-learn's digits in seconds. In every format the weights of two or more axes are kept as it says, and random single
bit flips strike their elements and, apart from those, their scales; a trial fails where the top class changes. Failures
per megabyte-upset are those to expect where each megabyte of stored weights takes one upset.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine import resnet20
from benchmarks.error_rates import accuracy
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
COLUMNS = (
    *("network", "format", "accuracy (%)", "megabytes", "an element's bit fails (%)", "a scale's bit fails (%)"),
    *("failures per 100 upsets in each megabyte", "more than the first, paired (%)"),
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

    def bounds(self) -> tuple[float, float, float]:
        """Return the share of upsets in all stored bits that fail, and its interval: of strata by their sizes."""
        parts = [(self.elements, self.hit), *([(self.scales, self.moved)] if self.scales and self.moved else [])]
        shares = [len(space) / 8e6 / self.megabytes for space, _ in parts]
        found = [results.estimate() for _, results in parts]
        value = sum(share * one.value for share, one in zip(shares, found, strict=True))
        down = sqrt(sum((share * (one.value - one.low)) ** 2 for share, one in zip(shares, found, strict=True)))
        up = sqrt(sum((share * (one.high - one.value)) ** 2 for share, one in zip(shares, found, strict=True)))
        return value, value - down, value + up


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


def percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.2f} ({100 * low:.2f}-{100 * high:.2f})"


def line(row: Row, more: Any) -> str:
    """Return the row of the first table."""
    value, low, high = row.bounds()
    size, hit = row.megabytes, row.hit.estimate()
    scale = row.moved.estimate() if row.moved else None
    return (
        f"| {row.network} | {row.format} | {100 * row.accuracy:.1f} | {size:.3f} "
        f"| {percent(hit.value, hit.low, hit.high)} "
        f"| {percent(scale.value, scale.low, scale.high) if scale else '-'} "
        f"| {100 * size * value:.3f} ({100 * size * low:.3f}-{100 * size * high:.3f}) "
        f"| {percent(more.difference, more.difference_low, more.difference_high)} |"
    )


def bits(row: Row) -> Iterator[str]:
    """Yield rows of the second table: bits of which some flips fail, from the top."""
    for what, results in (("elements", row.hit), ("scales", row.moved)):
        if results is None:
            continue
        table = results.table("bit").sort_values("key", ascending=False)
        shown = [f"{one.key}: {percent(one.value, one.low, one.high)}" for one in table.itertuples() if one.failures]
        width = max(site.width for site in results.space.sites)
        yield f"| {row.network} | {row.format} | {what} | {width} | {'; '.join(shown) or 'none'} |"


def _say(part: str) -> None:
    took, used = time.perf_counter() - STARTED, time.process_time()
    print(f"{took:6.0f} s, {used:6.0f} s of processor time  {part}", file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000, help="flips in elements, and half as many in scales (2000)")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), help="the formats (all); the first is the base")
    options = parser.parse_args(words)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    by_bit: list[str] = []
    for name in options.networks:
        found = {}
        for how in options.formats:
            found[how] = measured(name, how, options.trials)
            _say(f"{name} {how}")
        names = list(next(iter(found.values()))[0].elements.names)
        pairs = paired({how: engine for how, (_, engine) in found.items()}, names, trials=options.trials, seed=3)
        for (row, _), more in zip(found.values(), pairs.itertuples(), strict=True):
            print(line(row, more), flush=True)
            by_bit += bits(row)
        _say(f"{name}: pairs")
    print("\n| network | format | struck | bits of a word | bit: flips that fail (%) |\n|---|---|---|---|---|")
    print(*by_bit, sep="\n")


if __name__ == "__main__":
    main()
