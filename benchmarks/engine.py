"""What a trial costs, whether it is right, and what it needs: the figures of the engine, paired in one run.

ResNet-20 with its real weights on the first 100 CIFAR-10 test images in TORCHFAULT_DATA (default ../shared/data).
Costs are ratios to golden: seconds per lane over seconds per image of a plain eager pass at batch 128;
``lane_cost_batch1`` over seconds of a pass of one image, with lanes and pass on one thread. ``multi_fault`` tells by
how much dearer lanes become with several struck weights, drawn from the whole network or, for each lane, from one
layer. With ``--device cuda`` lanes run on a GPU, and agree with the reference on the processor; the overhead of many
concurrent faults is measured on the processor in any case.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.overhead import overhead
from tests.support.networks import NETWORKS
from tests.support.reference import reference
from torchfault import zoo
from torchfault.data import Data, leaves
from torchfault.engine import Engine
from torchfault.faults import BitFlip
from torchfault.space import FaultSpace
from torchfault.trials import Trials, strike

ROOT = Path(__file__).parents[1]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIE = 1e-4
BUDGET_MIB = 256
CONCURRENT = (2, 16, 100)


def data_folder() -> Path:
    """Return the folder of the real inputs, or leave with a message."""
    folder = Path(os.environ.get("TORCHFAULT_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10_test_1000.npz").exists():
        raise SystemExit(f"no CIFAR-10 images in {folder}; set TORCHFAULT_DATA to the folder that holds them")
    return folder


def resnet20(images: slice = slice(100)) -> tuple[nn.Module, Data]:
    """Return ResNet-20 with its weights, and *images* of the test set, the first 100 unless told."""
    folder = data_folder()
    stored = torch.load(folder / "resnet20-12fca82f.th", map_location="cpu", weights_only=True)["state_dict"]
    model = zoo.resnet20()
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in stored.items()})
    with np.load(folder / "cifar10_test_1000.npz") as archive:
        shown, labels = torch.from_numpy(archive["images"][images]), torch.from_numpy(archive["labels"][images])
    pixels = shown.permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    return model, Data(pixels.contiguous(), labels)


def random_trials(space: FaultSpace, inputs: int, n: int, *, seed: int, faults: int = 1) -> Trials:
    """Return *n* trials of *faults* bit flips drawn uniformly from *space*, each on a random input."""
    rng = np.random.default_rng(seed)
    where = space.locate(rng.integers(0, len(space), n * faults))
    counts = np.full(n, faults)
    return strike(space, where, model=BitFlip(), rng=rng, counts=counts, inputs=rng.integers(0, inputs, n))


def layer_trials(space: FaultSpace, inputs: int, n: int, *, seed: int, faults: int) -> Trials:
    """Return *n* trials of *faults* bit flips each in a site that is drawn by its size from *space*."""
    rng = np.random.default_rng(seed)
    site = np.repeat(space.locate(rng.integers(0, len(space), n)).site, faults)
    elements, width = (
        np.array([count(s) for s in space.sites]) for count in (lambda s: s.elements, lambda s: len(s.bits))
    )
    element, bit = (rng.integers(0, most[site]) for most in (elements, width))
    where = space.locate(space.number(site, element, bit))
    return strike(space, where, model=BitFlip(), rng=rng, counts=np.full(n, faults), inputs=rng.integers(0, inputs, n))


def targets(space: FaultSpace) -> dict[str, FaultSpace]:
    """Return the weights and the inputs of all convolutions and the linear layer."""
    types = ["Conv2d", "Linear"]
    return {kind: space.select(kinds=kind[:-1], types=types) for kind in ("weights", "inputs")}


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that *action* takes, with all that it leaves a GPU to do."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def cpu_seconds(action: Callable[[], Any]) -> float:
    """Return the seconds of processor time that *action* takes: what other work on the machine disturbs least."""
    start = time.process_time()
    action()
    return time.process_time() - start


def drain(engine: Engine, trials: Trials) -> int:
    """Run *trials* and return how many were masked."""
    return sum(int(lanes.masked.sum()) for lanes in engine.run(trials))


@dataclass(frozen=True)
class LaneCost:
    """Medians over the repeats: cost of a lane in golden images, lanes per second, share masked, share of GEMM peak."""

    ratio: float
    rate: float
    masked: float
    gemm_share: float


def gemm_peak(size: int = 2048, *, device: str = "cpu") -> float:
    """Return the floating-point operations per second of a large matrix product on this machine."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    a @ b
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(5))


def lane_costs(*, lanes: int, repeats: int, device: str = "cpu", images: int = 128) -> dict[str, LaneCost]:
    """Time golden passes of so many *images* and sweeps in turns."""
    model, data = resnet20()
    engine = Engine(model, data, device=device)
    batch = engine.data.inputs.repeat(2, 1, 1, 1)[:images]
    costs = {}

    def golden() -> float:
        with torch.inference_mode():
            return statistics.median(timed(lambda: model(batch)) for _ in range(3 + 128 // len(batch))) / len(batch)

    for kind, space in targets(engine.space).items():
        trials = random_trials(space, len(data), lanes, seed=len(costs))
        masked = drain(engine, trials) / lanes
        with FlopCounterMode(display=False) as counter:
            drain(engine, trials)
        rows = []
        for _ in range(repeats):
            before, peak = golden(), gemm_peak(device=device)
            seconds = timed(lambda trials=trials: drain(engine, trials))
            plain = (before + golden()) / 2
            rows.append((seconds / lanes / plain, lanes / seconds, counter.get_total_flops() / seconds / peak))
        ratio, rate, share = (statistics.median(column) for column in zip(*rows, strict=True))
        costs[kind] = LaneCost(ratio, rate, masked, share)
    return costs


def batch_of_one(*, lanes: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """Return what lanes cost on one thread, in golden passes of one image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        costs = lane_costs(lanes=lanes, repeats=repeats, device=device, images=1)
    finally:
        torch.set_num_threads(threads)
    return {kind: round(cost.ratio, 4) for kind, cost in costs.items()}


def costs_of_many(draw: Callable[..., Trials], *, lanes: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """Return by how much dearer lanes with 2, 16 and 100 struck weights are than lanes with one, timed in turns.

    *draw* draws them, as :func:`random_trials` does.
    """
    model, data = resnet20()
    engine = Engine(model, data, device=device)
    weights = targets(engine.space)["weights"]
    drawn = {n: draw(weights, len(data), lanes, seed=n, faults=n) for n in (1, *CONCURRENT)}
    for trials in drawn.values():
        drain(engine, trials)
    seconds = [{n: timed(lambda t=t: drain(engine, t)) for n, t in drawn.items()} for _ in range(repeats)]
    return {str(n): round(statistics.median(row[n] / row[1] for row in seconds), 2) for n in CONCURRENT}


def outcomes(golden: Tensor, faulty: Tensor) -> Tensor:
    """Return which rows fail: another top-1 class, or a logit that is not finite."""
    return (golden.argmax(-1) != faulty.argmax(-1)) | ~faulty.isfinite().all(-1)


def tied(faulty: Tensor) -> Tensor:
    """Return which rows have two largest logits within rounding of each other."""
    top = faulty.double().topk(2, -1).values
    return (top[:, 0] - top[:, 1]) <= TIE * faulty.double().abs().amax(-1).clamp(min=1e-30)


def agreement(*, trials: int, device: str = "cpu") -> dict[str, int]:
    """Compare both executors with the slow reference on the processor, and count disagreements, and ties among them.

    An eighth of the trials each strikes 2, 16 and 100 stored words at once, the rest one word or activation.
    """
    networks = {"resnet20": resnet20, **{n: NETWORKS[n] for n in ("depthwise", "transformer", "lstm")}}
    total = {"trials": 0, "disagreements": 0, "ties": 0}
    for seed, build in enumerate(networks.values()):
        model, data = build()
        engines = {kind: Engine(build()[0], data, executor=kind, device=device) for kind in ("graph", "hooks")}
        space, golden = engines["graph"].space, leaves(engines["graph"].golden())[0].cpu()
        stored = space.select([name for name in space.names if ":" not in name])
        many = trials // len(networks) // 8
        parts = [random_trials(space, len(data), trials // len(networks) - len(CONCURRENT) * many, seed=seed)]
        parts += [random_trials(stored, len(data), many, seed=seed, faults=faults) for faults in CONCURRENT]
        for drawn in parts:
            slow = leaves(reference(model, data, drawn))[0]
            expected = outcomes(golden[torch.from_numpy(drawn.inputs)], slow)
            for engine in engines.values():
                mine = torch.empty_like(expected)
                for lanes in engine.run(drawn):
                    found = outcomes(leaves(lanes.golden)[0], leaves(lanes.faulty)[0])
                    mine[torch.from_numpy(lanes.trial)] = found.cpu()
                differs = mine != expected
                total["disagreements"] += int(differs.sum())
                total["ties"] += int((differs & tied(slow)).sum())
            total["trials"] += len(drawn)
    return total


@contextmanager
def watched(device: str = "cpu") -> Iterator[Callable[[], float]]:
    """Yield a function that tells by how many MiB the memory in use has peaked above where it was on entry.

    That is the memory of this process, or what torch holds of a GPU's.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        yield lambda: (torch.cuda.max_memory_allocated(device) - held) / 2**20
        return
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    yield lambda: (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise SystemExit(f"this system does not tell {key}")


def peak_of_one(kind: str, device: str = "cpu") -> float:
    """Return the peak of memory, in MiB, of 4,000 lanes under a budget of 256 MiB."""
    model, data = resnet20()
    with torch.inference_mode():
        model(data.inputs[:2])
    small = Engine(model, data.take(slice(0, 2)), memory=f"{BUDGET_MIB}MiB", device=device)
    drain(small, random_trials(targets(small.space)[kind], 2, 200, seed=0))  # load code and kernels first
    with watched(device) as peak:
        engine = Engine(model, data, memory=f"{BUDGET_MIB}MiB", device=device)
        drain(engine, random_trials(targets(engine.space)[kind], len(data), 4000, seed=1))
        return peak()


def peak(device: str = "cpu") -> float:
    """Return the larger peak of weights and inputs, each in a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--peak-of"]
    runs = [subprocess.run([*command, kind], check=True, capture_output=True) for kind in ("weights", "inputs")]
    return max(float(run.stdout) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--lanes", type=int, default=8192, help="lanes per timed run (8192)")
    parser.add_argument("--repeats", type=int, default=7, help="runs to take the median of (7)")
    parser.add_argument("--trials", type=int, default=10_000, help="trials to compare with the reference (10000)")
    parser.add_argument("--device", default="cpu", help="where lanes run: cpu, cuda, cuda:1 (cpu)")
    parser.add_argument("--peak-of", choices=["weights", "inputs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.peak_of:
        print(peak_of_one(options.peak_of, options.device))
        return
    costs = lane_costs(lanes=options.lanes, repeats=options.repeats, device=options.device)
    many = {"lanes": options.lanes // 16, "repeats": options.repeats, "device": options.device}
    found = {
        "lane_cost": {kind: round(cost.ratio, 4) for kind, cost in costs.items()},
        "lane_cost_batch1": batch_of_one(lanes=options.lanes // 2, repeats=options.repeats, device=options.device),
        "multi_fault": costs_of_many(random_trials, **many),
        "multi_fault_layer": costs_of_many(layer_trials, **many),
        "lanes_per_second": {kind: round(cost.rate) for kind, cost in costs.items()},
        "masked": {kind: round(cost.masked, 4) for kind, cost in costs.items()},
        "overhead": overhead(),
        "agreement": agreement(trials=options.trials, device=options.device),
        "gemm_share": round(statistics.mean(cost.gemm_share for cost in costs.values()), 4),
        "peak_mib": round(peak(options.device), 1),
    }
    print(json.dumps(found) if options.json else table(found))


def table(found: dict[str, Any]) -> str:
    """Return the figures as text for people."""
    lines = [f"{'lanes':12} {'cost / golden image':>20} {'per second':>11} {'masked':>8}"]
    for kind in found["lane_cost"]:
        cost, rate, masked = (found[key][kind] for key in ("lane_cost", "lanes_per_second", "masked"))
        lines.append(f"{kind:12} {cost:20.3f} {rate:11,d} {100 * masked:6.1f} %")
    lines += ["", "lanes on one thread, in passes of one image: " + _listed(found["lane_cost_batch1"])]
    lines += ["faults in a lane, to one: " + _listed(found["multi_fault"])]
    lines += ["faults in one layer of a lane, to one: " + _listed(found["multi_fault_layer"])]
    lines += ["", f"{'overhead':22} " + " ".join(f"{int(n):>9,d}" for n in ("1", "1000", "100000"))]
    for network, kinds in found["overhead"].items():
        lines += [
            f"{network + ' ' + kind:22} " + " ".join(f"{r:9.3f}" for r in by.values()) for kind, by in kinds.items()
        ]
    agreed = found["agreement"]
    lines += [
        "",
        f"agreement: {agreed['trials']:,} trials by both executors, {agreed['disagreements']} disagreements, "
        f"{agreed['ties']} of them ties",
        f"share of the GEMM peak: {100 * found['gemm_share']:.0f} %",
        f"peak memory: {found['peak_mib']:.0f} MiB under a budget of {BUDGET_MIB} MiB",
    ]
    return "\n".join(lines)


def _listed(ratios: dict[str, float]) -> str:
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())


if __name__ == "__main__":
    main()
