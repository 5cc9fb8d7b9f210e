"""Networks of real size on two cores within 4 GiB: what it takes to start, what a lane costs, whether it is right.

ResNet-50, MobileNetV2 and ViT-B/16 of torchvision on images of 224 x 224, and a GPT-2 of 12 layers (124 million
parameters) of transformers on 32 tokens, all with random weights, each in a process of its own. Costs are ratios to
golden: seconds per lane over seconds per image (or text) of a plain eager pass at the batch that is fastest.
torchvision and transformers are looked for in the environment, then in its folder ``ecosystem`` (see ecosystem.txt).
"""

import argparse
import copy
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.ecosystem import look_beside
from benchmarks.engine import drain, outcomes, random_trials, tied, timed, watched
from tests.support.reference import reference
from torchfault.data import Data, call, leaves, rows
from torchfault.engine import Engine
from torchfault.space import FaultSpace

ROOT = Path(__file__).parents[1]
BUDGET = "4GiB"
INPUTS = 8
TOKENS = 32


class NextToken(nn.Module):
    """The scores of the token that follows a text, (N, words)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        scores: Tensor = self.model(input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return scores


def _images() -> Data:
    return Data(torch.randn(INPUTS, 3, 224, 224, generator=torch.Generator().manual_seed(1)))


def resnet50() -> tuple[nn.Module, Data]:
    """Return ResNet-50."""
    return _torchvision().resnet50(), _images()


def mobilenet_v2() -> tuple[nn.Module, Data]:
    """Return MobileNetV2."""
    return _torchvision().mobilenet_v2(), _images()


def vit_b_16() -> tuple[nn.Module, Data]:
    """Return ViT-B/16, with a head that is not all zeros."""
    model = _torchvision().vit_b_16()
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model, _images()


def gpt2() -> tuple[nn.Module, Data]:
    """Return the GPT-2 of 12 layers that scores the next token."""
    _torchvision()  # which transformers imports
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config())
    texts = torch.randint(0, 50257, (INPUTS, TOKENS), generator=torch.Generator().manual_seed(1))
    return NextToken(model), Data({"input_ids": texts})


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Data]]] = {
    "resnet50": resnet50, "mobilenet_v2": mobilenet_v2, "vit_b_16": vit_b_16, "gpt2": gpt2,
}  # fmt: skip


def _torchvision() -> Any:
    look_beside()
    importlib.import_module("tests.ecosystem.common")  # lets the registry's torchvision stand beside a CPU torch
    return importlib.import_module("torchvision.models")


def tell(text: str) -> None:
    """Tell people how far it is."""
    print(text, file=sys.stderr, flush=True)


def targets(space: FaultSpace) -> dict[str, FaultSpace]:
    """Return the weights and the inputs of all layers that multiply by weights."""
    types = {site.module_type for site in space.sites if site.kind == "weight" and len(site.shape) > 1}
    return {kind: space.select(kinds=kind[:-1], types=sorted(types)) for kind in ("weights", "inputs")}


def golden_seconds(model: nn.Module, data: Data, *, batch: int) -> float:
    """Return the seconds for an input of an eager pass over so many of them."""
    some = rows(data.inputs, slice(0, batch))
    with torch.inference_mode():
        return min(timed(lambda: call(model, some)) for _ in range(2)) / batch


def fastest_batch(model: nn.Module, data: Data) -> int:
    """Return how many inputs are fastest together: one, or all."""
    return min((1, len(data)), key=lambda batch: golden_seconds(model, data, batch=batch))


def cost(engine: Engine, space: FaultSpace, *, batch: int, lanes: int, repeats: int, seed: int) -> float:
    """Return the cost of a lane in golden images: the median of runs, each between two golden passes."""
    ratios = []
    for repeat in range(repeats):
        trials = random_trials(space, len(engine.data), lanes, seed=seed + repeat)
        before = golden_seconds(engine.model, engine.data, batch=batch)
        seconds = timed(lambda trials=trials: drain(engine, trials)) / lanes
        ratios.append(seconds / ((before + golden_seconds(engine.model, engine.data, batch=batch)) / 2))
    return statistics.median(ratios)


def disagreements(engine: Engine, model: nn.Module, data: Data, *, trials: int) -> tuple[int, int]:
    """Return in how many trials the engine and the slow reference, on the processor, differ; how many of them tie."""
    spaces = enumerate(targets(engine.space).values())
    drawn = [random_trials(space, len(data), trials // 2, seed=9 + seed) for seed, space in spaces]
    golden, found = leaves(engine.golden())[0].cpu(), np.zeros(2, dtype=int)
    for part in drawn:
        slow = leaves(reference(model, data, part))[0]
        expected = outcomes(golden[torch.from_numpy(part.inputs)], slow)
        mine = torch.empty_like(expected)
        for lanes in engine.run(part):
            mine[torch.from_numpy(lanes.trial)] = outcomes(leaves(lanes.golden)[0], leaves(lanes.faulty)[0]).cpu()
        differs = mine != expected
        found += int(differs.sum()), int((differs & tied(slow)).sum())
    return int(found[0]), int(found[1])


def measured(name: str, *, lanes: int, repeats: int, trials: int, device: str) -> dict[str, Any]:
    """Return the figures of one network, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model, data = NETWORKS[name]()
    slow = copy.deepcopy(model).eval() if device != "cpu" else model.eval()
    model.eval().to(device)
    batch = fastest_batch(model, data.to(device))
    with watched(device) as peak:
        started = time.perf_counter()
        engine = Engine(model, data, executor="graph", memory=BUDGET, device=device)
        engine.golden()
        found: dict[str, Any] = {"start_s": round(time.perf_counter() - started, 1)}
        found["golden_s"] = round(golden_seconds(model, engine.data, batch=batch), 4)
        tell(f"{name}: started in {found['start_s']} s, a golden image takes {found['golden_s']} s")
        ratio = {}
        sizes = {"batch": batch, "lanes": lanes, "repeats": repeats}
        for seed, (kind, space) in enumerate(targets(engine.space).items()):
            ratio[kind] = round(cost(engine, space, **sizes, seed=seed * repeats), 3)
            tell(f"{name}: a lane of {kind} costs {ratio[kind]} golden images")
        found |= {"ratio": ratio, "lane_s": {k: round(r * found["golden_s"], 4) for k, r in ratio.items()}}
        found["peak_mib"] = round(peak())
    found["disagreements"], found["ties"] = disagreements(engine, slow, data, trials=trials)
    tell(f"{name}: {found['disagreements']} of {trials} trials disagree, {found['ties']} of them ties")
    return found


def apart(name: str, arguments: list[str]) -> dict[str, Any]:
    """Return the figures of one network, measured in a process of its own, whose peak is nobody else's."""
    command = [sys.executable, "-m", "benchmarks.networks", "--measure", name, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return the figures as text for people."""
    lines = [
        f"{'network':14} {'start':>8} {'golden':>9} {'weights':>8} {'inputs':>7} {'peak':>10} {'wrong':>6} {'ties':>5}"
    ]
    for name, one in found["networks"].items():
        ratio = [one["ratio"][kind] for kind in ("weights", "inputs")]
        cells = (one["start_s"], one["golden_s"], *ratio, one["peak_mib"], one["disagreements"], one["ties"])
        lines.append(f"{name:14}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--only", choices=[*NETWORKS], action="append", help="measure this network (all)")
    parser.add_argument("--lanes", type=int, default=64, help="lanes per timed run (64)")
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of (3)")
    parser.add_argument("--trials", type=int, default=200, help="trials to compare with the reference (200)")
    parser.add_argument("--device", default="cpu", help="where lanes run: cpu, cuda, cuda:1 (cpu)")
    parser.add_argument("--measure", choices=[*NETWORKS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("lanes", "repeats", "trials", "device")}
    if options.measure:
        print(json.dumps(measured(options.measure, **sizes)))
        return
    given = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    found = {"networks": {name: apart(name, given) for name in options.only or NETWORKS}}
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
