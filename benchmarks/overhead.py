"""What many concurrent faults cost: one trial of 1, 1,000 and 100,000 faults against the golden forward pass.

Every fault has a place and a bit of its own, and strikes every element of the batch. Golden and faulty passes take
turns in one run; a ratio is the median over the pairs. The time to enter the scope and to make the masks ready is told
apart.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.engine.inject import inject
from torchfault.faults import BitFlip
from torchfault.model.discover import Discovery, find
from torchfault.space import FaultSpace
from torchfault.trials import Trials, strike

COUNTS = (1, 1_000, 100_000)


class SmallCNN(nn.Module):
    """Three convolutions whose outputs are 131,072 numbers per image (N, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv3 = nn.Conv2d(128, 128, 3, padding=1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv3(F.relu(self.conv2(x))))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """The basic block of ResNet-18 with a projection where the shape changes (He et al. 2016, option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for CIFAR: convolution outputs of 614,400 numbers per image (N, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        self.layers = nn.Sequential(*(nn.Sequential(Block(i, o, s), Block(o, o, 1)) for i, o, s in widths))
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {"cnn": (SmallCNN, 64), "resnet18": (ResNet18, 16)}


@dataclass(frozen=True)
class Cost:
    """Medians: the ratio of a faulty pass to the golden ones around it, and seconds of either and of the set-up.

    Set-up is entering the scope, leaving it, and what the first pass takes longer than the second.
    """

    ratio: float
    golden: float
    faulty: float
    setup: float


def draw(space: FaultSpace, faults: int, *, seed: int) -> Trials:
    """Return one trial of *faults* different places drawn from all of *space*, each with a bit drawn for itself."""
    rng = np.random.default_rng(seed)
    words = len(space) // 32
    place = rng.choice(words, size=faults, replace=False)
    where = space.locate(place * 32 + rng.integers(0, 32, size=faults))
    return strike(space, where, model=BitFlip(), rng=rng, counts=np.array([faults]))


def output_of(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """Return a copy of what the module called *name* gives, after all hooks that are there already."""
    kept: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _module, _args, out: kept.append(out.clone()))
    model(x)
    handle.remove()
    return kept[0]


def struck_everywhere(model: nn.Module, x: Tensor, trials: Trials, found: Discovery) -> bool:
    """Whether every fault is there: each activation, of a layer fed as in the golden pass, differs just where it must.

    Layer by layer, since behind a struck layer everything differs: only one site's faults are injected at a time.
    """
    for position in np.unique(trials.site):
        rows = trials.site == position
        columns = (trials.site[rows], trials.element[rows], trials.keep[rows], trials.toggle[rows])
        one = Trials(trials.sites, np.array([0, int(rows.sum())]), trials.inputs, *columns)
        name = trials.sites[position].name.partition(":")[0]
        with torch.no_grad():
            golden = output_of(model, name, x)
            with inject(model, one, space=found):
                faulty = output_of(model, name, x)
        golden, faulty = golden.flatten(1).view(torch.int32), faulty.flatten(1).view(torch.int32)
        expected = torch.zeros(golden.shape[1], dtype=torch.int32)
        expected[torch.from_numpy(one.element)] = torch.from_numpy(one.toggle.astype(np.uint32).view(np.int32))
        if not torch.equal(golden ^ faulty, expected.expand_as(golden)):
            return False
    return True


def words_differ(model: nn.Module, trials: Trials) -> bool:
    """Whether, inside the scope, exactly the struck weights differ, each in its own bits, and none behind it."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    expected = {name: np.zeros(parameter.numel(), dtype=np.uint32) for name, parameter in before.items()}
    for position in np.unique(trials.site):
        rows = trials.site == position
        expected[trials.sites[position].name][trials.element[rows]] = trials.toggle[rows]

    def change(name: str, parameter: Tensor) -> np.ndarray:
        bits = (parameter.detach().flatten().view(torch.int32) ^ before[name].flatten().view(torch.int32)).numpy()
        return bits.view(np.uint32)

    with inject(model, trials):
        inside = all(np.array_equal(change(n, p), expected[n]) for n, p in model.named_parameters())
    return inside and not any(change(n, p).any() for n, p in model.named_parameters())


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that *action* takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def pair(model: nn.Module, x: Tensor, trials: Trials, found: Discovery) -> tuple[float, float, float]:
    """Return the seconds of a golden pass (two, around), of a faulty one, and of the set-up."""
    before = timed(lambda: model(x))
    scope = inject(model, trials, space=found)
    entering = timed(scope.__enter__)
    first = timed(lambda: model(x))  # makes the masks ready
    faulty = timed(lambda: model(x))
    leaving = timed(lambda: scope.__exit__(None, None, None))
    after = timed(lambda: model(x))
    return (before + after) / 2, faulty, entering + leaving + first - faulty


def cost(model: nn.Module, x: Tensor, trials: Trials, found: Discovery, *, repeats: int) -> Cost:
    """Time golden and faulty passes in turns."""
    with torch.no_grad():
        for _ in range(3):
            model(x)
        times = [pair(model, x, trials, found) for _ in range(repeats)]
    golden, faulty, setup = zip(*times, strict=True)
    ratio = statistics.median(struck / plain for struck, plain in zip(faulty, golden, strict=True))
    return Cost(ratio, statistics.median(golden), statistics.median(faulty), statistics.median(setup))


def measure(*, repeats: int = 15, counts: tuple[int, ...] = COUNTS) -> dict[str, dict[str, dict[str, Cost]]]:
    """Return the cost of each number of faults, by network and by what is struck, after checking that all strike."""
    results: dict[str, dict[str, dict[str, Cost]]] = {}
    for name, (build, batch) in NETWORKS.items():
        torch.manual_seed(0)
        model, x = build().eval(), torch.randn(batch, 3, 32, 32)
        found = find(model, x)
        spaces = {
            "activations": found.space.select(kinds="output", types="Conv2d"),
            "weights": found.space.select(kinds="weight"),
        }
        results[name] = {kind: {} for kind in spaces}
        for kind, space in spaces.items():
            for count in counts:
                trials = draw(space, count, seed=count)
                struck = (
                    words_differ(model, trials) if kind == "weights" else struck_everywhere(model, x, trials, found)
                )
                if len(trials.element) != count or not struck:
                    raise SystemExit(f"{name}: {count} faults in {kind} did not all strike")
                results[name][kind][str(count)] = cost(model, x, trials, found, repeats=repeats)
    return results


def overhead(*, repeats: int = 15) -> dict[str, dict[str, dict[str, float]]]:
    """Return the ratios of faulty to golden passes: ``{cnn|resnet18: {activations|weights: {"1": ..., ...}}}``."""
    return {
        network: {kind: {n: round(c.ratio, 4) for n, c in by_count.items()} for kind, by_count in kinds.items()}
        for network, kinds in measure(repeats=repeats).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of passes to take the median of (15)")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.json:
        json.dump(overhead(repeats=options.repeats), sys.stdout)
        print()
        return
    print(f"{'network':9} {'struck':12} {'faults':>7} {'ratio':>7} {'golden':>9} {'faulty':>9} {'set-up':>9}")
    for network, kinds in measure(repeats=options.repeats).items():
        for kind, by_count in kinds.items():
            for count, c in by_count.items():
                times = " ".join(f"{1e3 * seconds:6.1f} ms" for seconds in (c.golden, c.faulty, c.setup))
                print(f"{network:9} {kind:12} {count:>7} {c.ratio:7.3f} {times}")


if __name__ == "__main__":
    main()
