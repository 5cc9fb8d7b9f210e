"""How many of the first 100 faults are critical, by sampler: ISimDL's published codes, and what beats them.

A fault is critical at 5 % (25 %) if it lowers the accuracy on 500 images by that share of itself. Precision is the
share of critical faults among the first 100 drawn, over 10 seeds: 1,000 independent draws with a Wilson interval.
Codes are ISimDL's, with o for outputs and w for weights of convolutions and linear layers, and beside them

- ``joint``: sensitivity times derivative of the bit, drawn together (:func:`torchfault.sensitivity.corrected`);
- ``bit30-R``, ``bit30-I``: always the bit that changes the value most, on a random or on a sensitive neuron;
- ``bit30-I+``: on sensitive neurons that hold a positive value: what follows a layer is mostly a rectifier, which stops
  what became very negative;
- ``effect``: the first-order effect in margins (:func:`torchfault.sensitivity.effect`);
- ``uniform``: every bit alike, a neuron at random: what ratios refer to. All draws at random neurons count for it, bit
  by bit, so that it is known better than from ``RBRN`` alone.

Outcomes are shared by all codes and kept in ``--cache``: an interrupted run goes on where it was. Most faults do
nothing: one under which no image of a screen (48 with the least margin, 48 at random) changes counts as harmless. One
in 16 of these runs in full all the same, and how many of them turn out critical is told at the end: so many verdicts
are wrong. All other faults run until their verdict is certain, whatever the images that are left do.
"""

import argparse
import json
import os
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.sections import Size, bounds
from torchfault import zoo
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.faults import BitFlip
from torchfault.sampling import Importance, Population, Sensitivity, stream
from torchfault.sensitivity import BIT_CODES, CODES, conductances, corrected, effect, gradients, held_values
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate, proportion, stratified
from torchfault.trials import strike

FOLDER = Path(os.environ.get("TORCHFAULT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
THRESHOLDS = (0.05, 0.25)
SCREEN, AUDIT, STEP = 48, 16, 101
FIRST, SEEDS, IMAGES = 100, 10, 500
OURS = ("joint", "bit30-R", "bit30-I", "bit30-I+", "effect")
RANDOM_NEURONS = ("RBRN", "LBRN", "EBRN", "GBRN", "bit30-R")


@dataclass
class Network:
    """A trained model, the images that faults are judged on, and others for sensitivities."""

    name: str
    engine: Engine
    others: Data
    targets: dict[str, FaultSpace] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = ("Conv2d", "Linear")
        self.targets = {
            "w": self.engine.space.select(kinds="weight", types=layers),
            "o": self.engine.space.select(kinds="output", types=layers),
        }


def cifar(name: str, blocks: str, images: int) -> Network:
    """Return a CIFAR-10 ResNet with its published weights."""
    with np.load(FOLDER / "cifar10_test_1000.npz") as held:
        pixels, labels = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])
    scaled = pixels.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    inputs = ((scaled - mean) / std).contiguous()
    state = torch.load(FOLDER / blocks, map_location="cpu", weights_only=True)["state_dict"]
    model = getattr(zoo, name)()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return Network(name, Engine(model, Data(inputs[:images], labels[:images])), Data(inputs[-100:], labels[-100:]))


def digits(images: int) -> Network:
    """Return a small CNN trained on half of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    held = load_digits()
    order = torch.randperm(len(held.target), generator=torch.Generator().manual_seed(5))
    inputs = torch.from_numpy(held.images).float().div(16).unsqueeze(1)[order]
    labels = torch.from_numpy(held.target).long()[order]
    torch.manual_seed(5)
    model = zoo.digits_cnn().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(25):
        for batch in torch.randperm(1000).reshape(-1, 100):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    data = Data(inputs[1000 : 1000 + images].clone(), labels[1000 : 1000 + images].clone())
    return Network("digits_cnn", Engine(model.eval(), data), Data(inputs[-100:].clone(), labels[-100:].clone()))


NETWORKS = {
    "digits_cnn": digits,
    "resnet20": lambda images: cifar("resnet20", "resnet20-12fca82f.th", images),
    "resnet32": lambda images: cifar("resnet32", "resnet32-d509ac18.th", images),
}


def samplers(network: Network, target: str, *, images: int = 16) -> dict[str, Importance]:
    """Return the samplers by code; the sensitivities are computed once for all."""
    space, data, model = network.targets[target], network.others, network.engine.model
    found: dict[str, Importance] = {}
    if target == "w":
        sensitive = gradients(model, data, space, images=images)
        held = by_gradient = held_values(model, data, space)
    else:
        by_gradient = conductances(model, data, space, images=images, steps=20, signed=True)
        sensitive, held = {name: abs(c) for name, c in by_gradient.items()}, held_values(model, data, space)
    for code in CODES:
        elements = sensitive if code[2] == "I" else {}
        score = Sensitivity(elements, bits=BIT_CODES[code[0]], values=by_gradient)
        found[code] = Importance(score, floor=0.0, shares="equal")
    positive = {name: sensitive[name] * (held[name] > 0) for name in held}
    for code, elements in (("bit30-R", {}), ("bit30-I", sensitive), ("bit30-I+", positive)):
        found[code] = Importance(Sensitivity(elements, bits="change", values=held), floor=0.0, shares="equal")
    found["joint"] = Importance(corrected(model, data, space, images=images).score, floor=0.0)
    found["effect"] = Importance(effect(model, data, space), floor=0.0)
    return found


class Outcomes:
    """The verdict on every fault that was run: critical at each threshold, and 1 if screened alone, 2 if audited."""

    def __init__(self, network: Network, space: FaultSpace, file: Path | None) -> None:
        self.network, self.space, self.file = network, space, file
        self.known: dict[int, list[int]] = {}
        if file is not None and file.exists():
            self.known = {int(key): value for key, value in json.loads(file.read_text()).items()}
        data = network.engine.data
        scores = network.engine.golden()
        self.right = (scores.argmax(-1) == data.labels).numpy()
        best = scores.topk(2).values
        lead = (best[:, 0] - best[:, 1]).numpy()
        order = np.lexsort((lead, ~self.right))  # right answers first, those with the least lead before others
        near = order[:SCREEN]
        rest = stream(0, 9).permutation(order[SCREEN : self.right.sum()])
        self.steps = [np.concatenate((near, rest[:SCREEN]))]
        later = np.concatenate((rest[SCREEN:], order[self.right.sum() :]))
        self.steps += [later[first : first + STEP] for first in range(0, len(later), STEP)]

    def of(self, faults: np.ndarray) -> np.ndarray:
        """Return one row per fault, critical at each threshold; runs what is new."""
        new = np.unique([fault for fault in faults.tolist() if fault not in self.known])
        for first in range(0, len(new), 200):
            self._run(new[first : first + 200])
            if self.file is not None:
                self.file.write_text(json.dumps(self.known))
            done = min(first + 200, len(new))
            print(f"  {self.network.name}: {done} of {len(new)} new faults", file=sys.stderr, flush=True)
        return np.array([self.known[fault][:-1] for fault in faults.tolist()], dtype=bool)

    def _run(self, faults: np.ndarray) -> None:
        lost, gained = np.zeros(len(faults)), np.zeros(len(faults))
        active, left, total = np.arange(len(faults)), self.right.copy(), self.right.sum()
        wrong = len(self.right) - total
        screened, audited = np.zeros((2, len(faults)), dtype=bool)
        for number, images in enumerate(self.steps):
            changes = self._changes(faults[active], images)
            lost[active] += changes[0]
            gained[active] += changes[1]
            left[images] = False
            wrong -= (~self.right[images]).sum()
            if number == 0:
                # which faults run in full all the same depends on their numbers alone
                chosen = np.array([zlib.crc32(str(fault).encode()) % AUDIT == 0 for fault in faults.tolist()])
                screened, audited = (lost + gained == 0) & ~chosen, (lost + gained == 0) & chosen
            least = (lost - gained - wrong) / total
            most = (lost - gained + left.sum()) / total
            certain = np.all([(least >= t) | (most < t) for t in THRESHOLDS], axis=0)
            active = np.flatnonzero(~certain & ~screened)
            if not len(active):
                break
        drop = (lost - gained) / total
        for fault, value, kind in zip(faults.tolist(), drop, screened + 2 * audited, strict=True):
            self.known[fault] = [*(int(value >= t) for t in THRESHOLDS), int(kind)]

    def _changes(self, faults: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return how many of *images* each fault makes wrong, and right, shape (2, faults)."""
        engine, labels = self.network.engine, self.network.engine.data.labels
        trials = strike(self.space, self.space.locate(faults), model=BitFlip(), rng=stream(0))
        changes = np.zeros((2, len(faults)))
        for lanes in engine.run(trials.on(images)):
            owner = lanes.trial // len(images)
            right = (lanes.faulty.argmax(-1) == labels[lanes.inputs]) & lanes.faulty.isfinite().all(-1)
            before, after = self.right[lanes.inputs], right.numpy()
            np.add.at(changes[0], owner, before & ~after)
            np.add.at(changes[1], owner, ~before & after)
        return changes


def first_faults(sampler: Importance, space: FaultSpace, seeds: int) -> np.ndarray:
    """Return the first 100 faults of each seed; the same seed strikes the same neurons, whatever the bits."""
    population = Population(space)
    parts = [sampler.draw(population, FIRST, rng=stream(seed, 1), start=0).index for seed in range(seeds)]
    return np.concatenate(parts)


def precisions(network: Network, target: str, *, seeds: int, cache: Path | None) -> dict[str, dict[str, Estimate]]:
    """Return the precision of every code at every threshold."""
    space = network.targets[target]
    drawn = {code: first_faults(s, space, seeds) for code, s in samplers(network, target).items()}
    file = None if cache is None else cache / f"{network.name}-{target}.json"
    outcomes = Outcomes(network, space, file)
    found: dict[str, dict[str, Estimate]] = {}
    for code in sorted(drawn, key=lambda code: (code not in OURS, code)):  # those that strike often come first
        verdicts = outcomes.of(drawn[code])
        found[code] = {
            f"{threshold:g}": proportion(int(verdicts[:, k].sum()), len(verdicts))
            for k, threshold in enumerate(THRESHOLDS)
        }
    found["uniform"] = uniform(drawn, outcomes)
    kinds = np.array(list(outcomes.known.values()))
    wrong = kinds[kinds[:, -1] == 2][:, :-1].sum(axis=0)
    note = f"{(kinds[:, -1] == 1).sum()} faults screened alone, {(kinds[:, -1] == 2).sum()} audited, {wrong} critical"
    print(f"  {network.name}, {target}: {note}", file=sys.stderr, flush=True)
    return found


def uniform(drawn: dict[str, np.ndarray], outcomes: Outcomes) -> dict[str, Estimate]:
    """Return the precision of uniform bits at random neurons, each bit from all draws at random neurons that had it."""
    faults = np.concatenate([drawn[code] for code in RANDOM_NEURONS])
    bits, verdicts = outcomes.space.locate(faults).bit, outcomes.of(faults)
    trials = np.bincount(bits, minlength=32)
    found = {}
    for k, threshold in enumerate(THRESHOLDS):
        failures = np.bincount(bits[verdicts[:, k]], minlength=32)
        found[f"{threshold:g}"] = stratified(failures, trials, np.full(32, 1 / 32))
    return found


Figures = dict[str, dict[str, dict[str, dict[str, float]]]]


def figures(names: list[str], *, quick: bool, cache: Path | None, seeds: int = SEEDS) -> Figures:
    """Return ``{network: {code: {threshold: {value, low, high}}}}``, codes ending in w or o for their target."""
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    result: Figures = {}
    for name in names:
        network = NETWORKS[name](100 if quick else IMAGES)
        for target in network.targets:
            for code, by in precisions(network, target, seeds=2 if quick else seeds, cache=cache).items():
                rows = {t: bounds(e) for t, e in by.items()}
                result.setdefault(name, {})[code + target] = rows
    return result


def precision(size: Size) -> dict[str, Figures]:
    """Return the section ``precision`` of ``benchmarks/samplers.py``; TORCHFAULT_CACHE names a folder for outcomes."""
    folder, quick = os.environ.get("TORCHFAULT_CACHE"), size == "quick"
    names = ["digits_cnn", "resnet20"] if size == "full" else ["digits_cnn"]
    return {"precision": figures(names, quick=quick, cache=Path(folder) if folder and not quick else None)}


def main() -> None:
    """Print the table, or the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["digits_cnn", "resnet20"], help=", ".join(NETWORKS))
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="2 seeds and 100 images: to see that it works")
    parser.add_argument("--cache", type=Path, help="a folder for outcomes, from which a later run goes on")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of 100 faults each")
    options = parser.parse_args()
    found = figures(options.networks, quick=options.quick, cache=options.cache, seeds=options.seeds)
    if options.json:
        print(json.dumps({"precision": found}, indent=2))
        return
    for name, codes in found.items():
        print(f"\n{name}")
        for code, by in codes.items():
            base = codes["uniform" + code[-1]]
            shown = [
                f"{100 * e['value']:6.2f} % [{100 * e['low']:.2f}, {100 * e['high']:.2f}]  "
                f"{e['value'] / max(base[t]['value'], 1e-12):5.1f}x"
                for t, e in by.items()
            ]
            print(f"  {code:10}", "   ".join(shown))


if __name__ == "__main__":
    main()
