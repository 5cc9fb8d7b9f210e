"""Every representation in one table: faults, lanes per second, agreement with a slow reference; and what bit errors do.

ResNet-20 with its CIFAR-10 weights and images in TORCHFAULT_DATA (default ../shared/data), and a spiking network on
digits. The reference changes the stored words of the model for one fault, runs it whole on the fault's input alone, and
puts the words back; that of the spiking network is the tests' own, which runs up to the step, edits and runs on. What
needs a package that is not there is left out, with a line that says so.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks import error_rates, overhead, spiking
from benchmarks.ecosystem import missing
from benchmarks.engine import MEAN, STD, data_folder, outcomes, random_trials, resnet20, tied
from benchmarks.rows import representations
from tests.support.reference import reference as step_by_step
from torchfault.adapters.represent import represent
from torchfault.data import Data, call, leaves, rows
from torchfault.engine import Engine, inject
from torchfault.errors import StorageError
from torchfault.faults import BitFlip
from torchfault.model.discover import find
from torchfault.model.rounding import rounded_as
from torchfault.names import site_name
from torchfault.space import FaultSpace
from torchfault.storages import MICROSCALED, EachValue, InBlocks
from torchfault.trials import Trials, strike

Choice = Callable[[FaultSpace], FaultSpace]
STARTED = time.perf_counter()
EPOCHS, BATCH = 2, 100
PAIRS = 5  # runs of a representation and of float32 in turn
NUDGES, NUDGE = 24, 2.0**-21  # four units in the last place


def of_kind(*kinds: str) -> Choice:
    """Return the choice of sites of the *kinds* that a space has, in convolutions and linear layers."""
    return lambda space: space.select(kinds=kinds, exclude=[s.name for s in space.sites if not _layer(s.module_type)])


def _layer(kind: str) -> bool:
    return "Conv" in kind or "Linear" in kind


WEIGHTS, ACTIVATIONS = of_kind("weight"), of_kind("output")
SCALES, INDICES = of_kind("scale"), of_kind("index")


@cache
def pruned() -> nn.Module:
    """Return ResNet-20 without the 80 % of its weights that are smallest, trained on for two epochs."""
    model, _ = resnet20()
    layers = [(module, "weight") for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.8)
    with np.load(data_folder() / "cifar10_train_4000.npz") as archive:
        images, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"])
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(
        1, 3, 1, 1
    )
    torch.manual_seed(0)
    model.train().to(memory_format=torch.channels_last)
    steps = EPOCHS * len(labels) // BATCH
    optimiser = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        if step % (steps // EPOCHS) == 0:
            order = torch.randperm(len(labels))
        mine = order[step % (steps // EPOCHS) * BATCH :][:BATCH]
        batch = torch.where(torch.rand(len(mine), 1, 1, 1) < 0.5, pixels[mine], pixels[mine].flip(3))
        scores = model(batch.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(scores, labels[mine])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model = model.eval().to(memory_format=torch.contiguous_format)
    return represent(model, "float32")  # with the masks applied for good


def sparse(how: str) -> tuple[nn.Module, Data]:
    return represent(pruned(), how), resnet20()[1]


def emulated(how: str) -> tuple[nn.Module, Data]:
    model, data = resnet20()
    return represent(model, how), data


def rounding(how: str) -> tuple[nn.Module, Data]:
    """Return ResNet-20 whose convolutions and linear layer read and give words called *how*."""
    model, data = resnet20()
    return represent(model, activations=how, data=data.take(slice(0, 100))), data


def codes(space: FaultSpace) -> FaultSpace:
    """Return what layers give, in the words of the values themselves."""
    return space.select([site.name for site in ACTIVATIONS(space).sites if not site_name(site.name).block])


def quantised(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Return *model* in torch's own int8, static, by FX graph mode, calibrated on *inputs*."""
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    observed = quantize_fx.prepare_fx(model, get_default_qconfig_mapping("x86"), (inputs[:8],))
    with torch.no_grad():
        observed(inputs)
    return quantize_fx.convert_fx(observed)


def deployed() -> tuple[nn.Module, Data]:
    model, data = resnet20()
    return quantised(model, data.inputs), data


def reference(model: nn.Module, data: Data, trials: Trials) -> Tensor:
    """Return the scores under each trial; NaN where the stored words cannot be followed."""
    found, scores = find(model, data), []
    width = leaves(call(model, rows(data.inputs, slice(0, 1))))[0].shape[1:]
    for i, which in enumerate(trials.inputs):
        try:
            with torch.no_grad(), inject(model, trials.take(np.array([i])), space=found):
                scores.append(leaves(call(model, rows(data.inputs, slice(int(which), int(which) + 1))))[0])
        except StorageError:
            scores.append(torch.full((1, *width), torch.nan))
    return torch.cat(scores)


@dataclass(frozen=True)
class Representation:
    """How to *build* a network and its inputs, and which sites each target chooses; *struck* are those with a curve.

    *needs* are packages without which it is left out, *slow* is what its outcomes are held against, *buffers* says that
    buffers are sites, and *base* is the same network in float32, to which speeds are compared.
    """

    build: Callable[[], tuple[nn.Module, Data]]
    targets: dict[str, Choice]
    struck: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    slow: Callable[[nn.Module, Data, Trials], Tensor] = reference
    buffers: bool = False
    base: Callable[[], tuple[nn.Module, Data]] | None = resnet20


def torchao(config: str, **options: Any) -> Representation:
    """Return a small classifier of digits under a configuration of torchao."""

    def build() -> tuple[nn.Module, Data]:
        import torchao.quantization as quantization

        model, data = digits()
        quantization.quantize_(model, getattr(quantization, config)(**options))
        return model, data

    return Representation(build, TORCHAO, needs=("torchao",), base=digits)


def digits() -> tuple[nn.Module, Data]:
    """Return the small classifier of digits, and its images."""
    from torchfault import demo

    return demo.model(), demo.data()


def nvfp4() -> tuple[nn.Module, Data]:
    """Return the classifier of digits with the layers in torchao's NVFP4 whose sizes it can keep so."""
    from torchao.prototype.mx_formats.inference_workflow import NVFP4WeightOnlyConfig
    from torchao.quantization import quantize_

    def fits(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Linear) and not any(size % 16 for size in module.weight.shape)

    model, data = digits()
    quantize_(model, NVFP4WeightOnlyConfig(), filter_fn=fits)
    return model, data


def blocks(how: str) -> Representation:
    """Return ResNet-20 with its weights in blocks with a scale."""
    return Representation(lambda: emulated(how), BOTH)


def rounded_blocks(how: str) -> Representation:
    """Return ResNet-20 with what its layers read and give in blocks with a scale."""
    scales = lambda space: space.select("*:output.*scale")  # noqa: E731
    return Representation(lambda: rounding(how), {**COMPUTED, "scales": scales})


BOTH = {"weights": WEIGHTS, "scales": SCALES}
STORED = {"weights": WEIGHTS, "indices": INDICES}
STATIC = {"weights": WEIGHTS, "activations": ACTIVATIONS, "scales": of_kind("scale", "zero_point")}
TORCHAO = {"weights": lambda s: s.select("fc*", kinds="weight"), "scales": SCALES}
COMPUTED: dict[str, Choice] = {"weights": WEIGHTS, "activations": codes}
CURVES = ("weights", "activations")
NEURONS: dict[str, Choice] = {
    "weights": WEIGHTS,
    "state": lambda s: s.select(kinds="state"),
    "activations": lambda s: s.select(kinds="output", types="Leaky"),  # the spikes
    "thresholds": lambda s: s.select(["*.threshold", "*.beta"]),
}
REPRESENTATIONS: dict[str, Representation] = {
    "float32": Representation(resnet20, {"weights": WEIGHTS, "activations": ACTIVATIONS}, struck=CURVES),
    "bfloat16": Representation(lambda: emulated("bfloat16"), {"weights": WEIGHTS}),
    "fixed point q3.12": Representation(lambda: emulated("q3.12"), {"weights": WEIGHTS}),
    "minifloat e4m3": Representation(lambda: emulated("e4m3"), {"weights": WEIGHTS}),
    "block float bfp8:16": Representation(
        lambda: emulated("bfp8:16"), {"weights": WEIGHTS, "scales": of_kind("exponent")}
    ),
    "float8_e4m3fn": Representation(lambda: emulated("float8_e4m3fn"), {"weights": WEIGHTS}),
    "float8_e4m3fnuz": Representation(lambda: emulated("float8_e4m3fnuz"), {"weights": WEIGHTS}),
    **{how: blocks(how) for how in MICROSCALED},
    "int8 emulated": Representation(lambda: emulated("int8"), BOTH),
    "uint8 emulated": Representation(
        lambda: emulated("uint8"), {"weights": WEIGHTS, "scales": of_kind("scale", "zero_point")}
    ),
    "int4:32 emulated": Representation(lambda: emulated("int4:32"), BOTH),
    "activations in q7.8": Representation(lambda: rounding("q7.8"), COMPUTED),
    "activations in e4m3": Representation(lambda: rounding("e4m3"), COMPUTED),
    "activations in bfloat16": Representation(lambda: rounding("bfloat16"), COMPUTED),
    "activations in int8": Representation(lambda: rounding("int8"), COMPUTED),
    "activations in bfp8:16": Representation(
        lambda: rounding("bfp8:16"), {**COMPUTED, "scales": lambda s: s.select("*:output.exponent")}
    ),
    **{f"activations in {how}": rounded_blocks(how) for how in MICROSCALED},
    "int8 torch static": Representation(deployed, STATIC, struck=CURVES),
    "int8 torchao": torchao("Int8WeightOnlyConfig"),
    "int8 torchao dynamic": torchao("Int8DynamicActivationInt8WeightConfig"),
    "int4 torchao": torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "float8 torchao": torchao("Float8WeightOnlyConfig"),
    "nvfp4 torchao": Representation(nvfp4, TORCHAO, needs=("torchao",), base=digits),
    "80 % sparse, COO": Representation(lambda: sparse("coo"), STORED),
    "80 % sparse, CSR": Representation(lambda: sparse("csr"), {**STORED, "activations": ACTIVATIONS}, struck=CURVES),
    "80 % sparse, BSR 4x1": Representation(lambda: sparse("bsr:4x1"), STORED),
    "spiking snnTorch": Representation(
        spiking.digits,
        NEURONS,
        struck=("weights", "activations", "state"),
        needs=("snntorch", "sklearn"),
        slow=step_by_step,
        buffers=True,
        base=None,
    ),
}
"""The representations of the table; a new one is a row here."""


@dataclass(frozen=True)
class Row:
    """A representation struck in one target: the size of its fault space, speed, and agreement with the reference.

    *ratio* is the speed over that of float32 weights (of float32 activations, for activations), the median of pairs;
    *ties* are disagreements that the reference has with itself, as :func:`rounding_ties` proves.
    """

    representation: str
    target: str
    executor: str
    faults: int
    lanes_per_second: int
    trials: int
    disagreements: int
    detected: int
    ratio: float | None
    ties: int


def measured(name: str, what: Representation, *, lanes: int, trials: int) -> Iterator[Row]:
    """Yield the rows of one representation."""
    model, data = what.build()
    engine = Engine(model, data, buffers=what.buffers)
    plain = Engine(*what.base()) if what.base is not None else None
    for target, choose in what.targets.items():
        space = choose(engine.space)
        drawn = random_trials(space, len(data), trials, seed=1)
        expected, mine = what.slow(model, data, drawn), None
        for done in engine.run(drawn):
            faulty = leaves(done.outputs)[0]
            mine = torch.empty(trials, *faulty.shape[1:]) if mine is None else mine
            mine[torch.from_numpy(done.trial)] = faulty
        golden = leaves(engine.golden())[0][torch.from_numpy(drawn.inputs)]
        failed = outcomes(golden, mine)
        differs = (failed != outcomes(golden, expected)) & ~tied(expected)
        emulated = any(True for _ in rounded_as(model))
        ties = rounding_ties(partial(what.slow, model, data), drawn, golden, failed, differs & emulated)
        rate, ratio = speeds(engine, space, plain, target, lanes)
        wrong, detected = int((differs & ~ties).sum()), int(expected.isnan().any(1).sum())
        yield Row(name, target, engine.executor, len(space), rate, trials, wrong, detected, ratio, int(ties.sum()))


def speeds(
    engine: Engine, space: FaultSpace, plain: Engine | None, target: str, lanes: int
) -> tuple[int, float | None]:
    """Return lanes per second, and that over the speed of *plain*: the median of pairs of runs, turn by turn."""
    count = max((lanes if engine.executor == "graph" else lanes // 8) // PAIRS, 1)
    other = None if plain is None else (ACTIVATIONS if target == "activations" else WEIGHTS)(plain.space)
    spent, ratios = 0.0, []
    for pair in range(PAIRS):
        took = _seconds(engine, space, count, seed=2 + pair)
        spent += took
        if plain is not None and other is not None:
            ratios.append(
                _seconds(plain, other, lanes // PAIRS or 1, seed=2 + pair) / (lanes // PAIRS or 1) * count / took
            )
    return round(PAIRS * count / spent), float(np.median(ratios)) if ratios else None


def _seconds(engine: Engine, space: FaultSpace, lanes: int, *, seed: int) -> float:
    many = random_trials(space, len(engine.data), lanes, seed=seed)
    start = time.perf_counter()
    for _ in engine.run(many):
        pass
    return time.perf_counter() - start


def rounding_ties(
    slow: Callable[[Trials], Tensor], trials: Trials, golden: Tensor, failed: Tensor, differs: Tensor
) -> Tensor:
    """Return which trials that differ are ties: the *slow* reference fails and does not, by last digits of its sums.

    Proven by the reference itself: of NUDGES runs in which every sum is moved by NUDGE of the largest in its row at
    most, less than what another order of addition does, before it is rounded to the words of an activation, some end
    as the engine did, whose outcomes are *failed*.
    """
    ties = torch.zeros_like(differs)
    for which in differs.nonzero()[:, 0].tolist():
        for seed in range(NUDGES):
            with nudged(seed):
                moved = slow(trials.take(np.array([which])))
            if outcomes(golden[which : which + 1], moved)[0] == failed[which]:
                ties[which] = True
                break
    return ties


@contextmanager
def nudged(seed: int) -> Iterator[None]:
    """Move what activations are rounded from, in this scope, by NUDGE of the largest in its row, up or down."""
    generator, plain = torch.Generator().manual_seed(seed), {kind: kind.round for kind in (EachValue, InBlocks)}

    def rounding_of(kind: type) -> Callable[[Any, Tensor], Tensor]:
        def rounded(self: Any, values: Tensor) -> Tensor:
            largest = values.nan_to_num(0.0, 0.0, 0.0).abs().amax(-1, keepdim=True)
            way = torch.randint(-1, 2, values.shape, generator=generator)
            return plain[kind](self, values + NUDGE * largest * way)

        return rounded

    try:
        for kind in plain:
            kind.round = rounding_of(kind)  # type: ignore[method-assign]
        yield
    finally:
        for kind, method in plain.items():
            kind.round = method  # type: ignore[method-assign]


def overhead_of(name: str, faults: int = 100_000, *, batch: int = 64, repeats: int) -> float:
    """Return the cost of a pass under *faults* concurrent faults in the representation *name*, over a golden one's."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 32, 32)
    build, choose = OVERHEAD[name]
    model = build(images)
    found = find(model, images)
    space, rng = choose(found.space), np.random.default_rng(0)
    width = space.sites[0].width
    place = rng.choice(len(space) // width, faults, replace=False)
    where = space.locate(place * width + rng.integers(0, width, faults))
    trial = strike(space, where, model=BitFlip(), rng=rng, counts=np.array([faults]))
    return overhead.cost(model, images, trial, found, repeats=repeats).ratio


OVERHEAD: dict[str, tuple[Callable[[Tensor], nn.Module], Choice]] = {
    "float32": (lambda _: overhead.SmallCNN().eval(), lambda space: space.select("conv*", kinds="output")),
    "int8 torch static": (
        lambda images: quantised(overhead.SmallCNN().eval(), images),
        lambda space: space.select("conv*", kinds="output"),
    ),
    "spiking snnTorch": (lambda _: spiking.convolutional(), NEURONS["state"]),
}
"""The models whose cost under many faults is told, and where they are struck."""


def curves(chosen: dict[str, Representation], *, repeats: int) -> Iterator[error_rates.Curve]:
    """Yield accuracy against the rate of bit errors for all that is struck in the *chosen* representations."""
    for name, what in chosen.items():
        if not what.struck:
            continue
        model, data = what.build()
        for target in what.struck:
            yield error_rates.curve(name, target, model, data, what.targets[target], repeats=repeats)
            _say(f"bit errors in {name}, {target}")


def installed(text: str) -> dict[str, Representation]:
    """Return the representations whose name holds *text*; say which are left out for want of a package."""
    chosen = {}
    for name, what in REPRESENTATIONS.items():
        if text not in name:
            continue
        if lacking := missing(*what.needs):
            print(f"{name} is left out: {' and '.join(lacking)} not installed", file=sys.stderr)
        else:
            chosen[name] = what
    return chosen


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print rows and overhead as one JSON object")
    parser.add_argument("--lanes", type=int, default=2000, help="lanes per timed run (2000)")
    parser.add_argument("--trials", type=int, default=100, help="trials per row to compare with the reference (100)")
    parser.add_argument("--repeats", type=int, default=20, help="repetitions per rate of bit errors (20); 0: none")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--plot", type=Path, help="draw accuracy against the rate of bit errors, and save it here")
    parser.add_argument("--only", default="", help="representations whose name holds this text")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    options = arguments().parse_args(words)
    warnings.filterwarnings("ignore", module="torch")  # what torch.ao says about its future
    torch.set_num_threads(options.threads)
    chosen, found = installed(options.only), dict[str, Any](rows=[])
    for name, what in chosen.items():
        found["rows"] += map(asdict, measured(name, what, lanes=options.lanes, trials=options.trials))
        _say(name)
    found["overhead"] = {name: overhead_of(name, repeats=15) for name in OVERHEAD if name in chosen}
    _say("100,000 concurrent faults")
    if options.json:
        print(json.dumps(found))
    else:
        told = f"100,000 concurrent faults: {found['overhead']}"
        print(*representations(found), "", told, "", sep="\n", flush=True)
    if options.repeats and (options.plot or not options.json):
        drawn = list(curves(chosen, repeats=options.repeats))
        if options.plot:
            error_rates.plot(drawn, options.plot)
        if not options.json:
            print(*error_rates.lines(drawn), sep="\n")


def _say(part: str) -> None:
    took, used = time.perf_counter() - STARTED, time.process_time()
    print(f"{took:6.0f} s, {used:6.0f} s of processor time  {part}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
