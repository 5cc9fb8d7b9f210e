"""Checksums of ResNet-20's convolutions: what they see of the faults that change an answer, and whether they err."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.engine import MEAN, STD, data_folder
from benchmarks.latency import TURNS, latency
from benchmarks.subjects import resnet
from torchfault.criteria import NonFinite, Top1Change
from torchfault.criteria.compose import verdict
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.faults import BitFlip
from torchfault.hardening import Checksums, Standby, detecting, guards, harden, profile
from torchfault.hardening.checksums import ChecksumGuard
from torchfault.statistics import proportion
from torchfault.trials import strike

_BATCH = 128
_NOISE = 0.02  # of a deviation of the pixels: no two inputs are the same
_LAYERS = "*conv*"


def abft(*, clean: int, trials: int) -> dict[str, Any]:
    """Return the coverage of flips that change an answer, with its bounds, the latencies and the false alarms.

    Faults are bit flips in what convolutions give, one to an image among 128; *trials* are drawn, and those that change
    an answer are shown to the check of their layer. False alarms are counted on *clean* inputs, 128 at a time, of
    checksums that stand by, whose bounds are no wider, and input by input on as many of *attention*, in float32 and
    bfloat16.
    """
    subject = resnet()
    model, data = subject.model, subject.measured
    safe = harden(model, Checksums(_LAYERS))
    resting = harden(
        model, Checksums(_LAYERS), Standby(words=False), profile=profile(model, subject.known, batch=_BATCH)
    )
    seen, failed = _coverage(model, safe, data.take(slice(0, _BATCH)), trials)
    coverage = proportion(seen, failed, method="clopper-pearson", level=0.95)
    alarms = _alarms(resting, clean)
    slower = latency(model, {"at work": safe, "standby": resting}, data, batch=_BATCH, least=TURNS)
    at_most = proportion(alarms, clean, method="clopper-pearson", level=0.95).high
    return {
        "coverage": [coverage.value, coverage.low, coverage.high, failed],
        "latency": slower["standby"].value,
        "latency_bounds": [slower["standby"].low, slower["standby"].high],
        "latency_at_work": slower["at work"].value,
        "false_alarms": [alarms, clean, at_most],
        "attention": {str(dtype)[6:]: _attention(dtype, clean) for dtype in (torch.float32, torch.bfloat16)},
    }


def _coverage(model: nn.Module, safe: nn.Module, data: Data, trials: int) -> tuple[int, int]:
    """Return how many of the flips that change an answer the check of their layer sees, and how many do."""
    engine = Engine(model, data)
    space = engine.space.select("*conv*:output")
    rng = np.random.default_rng(7)
    where, inputs = space.locate(rng.integers(0, len(space), trials)), rng.integers(0, len(data), trials)
    changed = np.zeros(trials, dtype=bool)
    for lanes in engine.run(strike(space, where, model=BitFlip(), rng=rng, inputs=inputs)):
        wrong = [verdict(one, lanes.golden, lanes.outputs, None) for one in (Top1Change(), NonFinite())]
        changed[lanes.trial] = (wrong[0] | wrong[1]).numpy()
    shown, seen = _shown(safe, data.inputs), 0
    for trial in np.flatnonzero(changed).tolist():
        layer, guard, given, output = shown[space.sites[where.site[trial]].module]
        words = output[inputs[trial]].view(-1).view(torch.int32)
        element, mask = int(where.element[trial]), int(np.uint32(1 << int(where.bit[trial])).view(np.int32))
        words[element] ^= mask
        seen += not guard.agrees(layer, given, output)
        words[element] ^= mask
    return seen, int(changed.sum())


def _shown(safe: nn.Module, inputs: Tensor) -> dict[str, tuple[nn.Module, ChecksumGuard, Tensor, Tensor]]:
    """Return what every guarded layer reads and gives."""
    held: dict[str, tuple[nn.Module, ChecksumGuard, Tensor, Tensor]] = {}
    hooks = []
    for path, layer, guard in guards(safe):
        assert isinstance(guard, ChecksumGuard)

        def keep(module: nn.Module, args: Any, output: Tensor, path: str = path, guard: ChecksumGuard = guard) -> None:
            held[path] = (module, guard, args[0].clone(), output.clone())

        hooks.append(layer.register_forward_hook(keep))
    with torch.no_grad():
        safe(inputs)
    for hook in hooks:
        hook.remove()
    return held


def _batches(clean: int) -> Iterator[Tensor]:
    """Yield so many inputs: test and training images with noise of their own, shifted and mirrored by batches."""
    pixels = []
    for name in ("cifar10_test_1000.npz", "cifar10_train_4000.npz"):
        with np.load(data_folder() / name) as archive:
            pixels.append(torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).float() / 255)
    images = (torch.cat(pixels) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    drawn = torch.Generator().manual_seed(3)
    for start in range(0, clean, _BATCH):
        chosen = torch.randint(0, len(images), (min(_BATCH, clean - start),), generator=drawn)
        down, across = torch.randint(-4, 5, (2,), generator=drawn).tolist()
        batch = images[chosen].roll((down, across), (2, 3))
        batch = batch + _NOISE * torch.randn(batch.shape, generator=drawn)
        yield batch.flip(3) if start // _BATCH % 2 else batch


def _alarms(resting: nn.Module, clean: int) -> int:
    """Return on how many batches of *clean* inputs something looks wrong."""
    alarms, guard = 0, next(guard for path, _, guard in guards(resting) if not path)

    def count(model: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal alarms
        alarms += bool(guard.alarms(model, args, output).any())

    hook = resting.register_forward_hook(count, prepend=True)
    with torch.inference_mode():
        for batch in _batches(clean):
            resting(batch)
    hook.remove()
    return alarms


def _attention(dtype: torch.dtype, clean: int) -> list[float]:
    """Return the alarms of attention over 64 patches of each image, of how many images, and at most what share."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True).eval().requires_grad_(False).to(dtype)
    watched, alarms = detecting(harden(nn.Sequential(model), Checksums("*self_attn"))), 0
    with torch.inference_mode():
        for batch in _batches(clean):
            patches = F.unfold(batch, 4, stride=4).transpose(1, 2).to(dtype)
            alarms += int(watched(patches)["detected"].sum())
    return [alarms, clean, proportion(alarms, clean, method="clopper-pearson", level=0.95).high]
