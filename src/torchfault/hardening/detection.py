"""Detection: what guards see while a model runs, as an output, and how much of what fails they see."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.campaign import Campaign, Standing, run
from torchfault.criteria import Criterion, Top1Change
from torchfault.data import Tree, call, leaves, rows
from torchfault.engine import Engine
from torchfault.errors import ModelError
from torchfault.hardening.harden import Guard, guards
from torchfault.model.wrappers import copied
from torchfault.space import FaultSpace
from torchfault.statistics import Estimate, MaxTrials, proportion
from torchfault.store import Store

__all__ = ["Detecting", "Detection", "detecting", "detection"]


class Detecting(nn.Module):
    """A model whose guards tell what they see: a dictionary of its *output*, of *detected*, a boolean for each row, and
    of *first*, how many guards were asked before the first that saw something; all of them where none did.

    It is what :func:`detecting` returns.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []
        for module in {module: None for _, module, _ in guards(model)}:
            before: list[tuple[int, Any]] = list(module._forward_pre_hooks.items())
            for key, hook in before:  # a guard reads what those before it leave, and is asked about that
                if isinstance(hook, Guard):
                    module.register_forward_pre_hook(_Look(self, hook))
                module._forward_pre_hooks[key] = module._forward_pre_hooks.pop(key)
            behind: list[object] = list(module._forward_hooks.values())
            for after in reversed(behind):
                if isinstance(after, Guard):
                    module.register_forward_hook(_Look(self, after), prepend=True)

    def forward(self, *args: Any, **named: Any) -> dict[str, Tree]:
        """Return what the model gives, and where a guard saw something wrong."""
        try:
            output = self.model(*args, **named)
            held, asked = leaves(output)[0], len(self.seen)
            first = torch.full((len(held),), asked, device=held.device)
            for number in reversed(range(asked)):
                first = torch.where(self.seen[number], number, first)
        finally:
            self.seen.clear()
        return {"output": output, "detected": first < asked, "first": first}


@dataclass(frozen=True, eq=False)
class _Look:
    """The hook that asks a guard before it acts."""

    watcher: Detecting
    guard: Guard

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        self.watcher.seen.append(self.guard.alarms(module, args, output))


def detecting(model: nn.Module, *, mend: bool = True) -> Detecting:
    """Return a copy of a hardened *model* that also tells where a guard saw something wrong.

    Its output is a dictionary: *output* is the model's own, *detected* a boolean for each row, which criteria read as
    any output (``Top1Change(output="output")``), *first* the number of the first guard that saw something. Unless
    *mend*, guards look and change nothing. Raises :class:`ModelError` for a model without guards, or one that tells.

    >>> from torchfault.hardening import Ranges, harden, profile
    >>> plain, data = nn.Sequential(nn.Linear(2, 2)), torch.rand(50, 2)
    >>> safe = detecting(harden(plain, Ranges(), profile=profile(plain, data)))
    >>> safe(torch.tensor([[0.5, 0.5], [0.5, 1e9]]))["detected"]
    tensor([False,  True])
    """
    if any(isinstance(module, Detecting) for module in model.modules()):
        raise ModelError("the model tells what its guards see already; give the hardened model as it was before")
    twin = copied(model)
    standing = list(guards(twin))
    if not standing:
        raise ModelError("the model has no guards, so nothing can be detected; harden it first")
    watched = Detecting(twin)
    if not mend:
        for _, module, _ in standing:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                kept: list[tuple[int, object]] = list(hooks.items())
                for key in [key for key, hook in kept if isinstance(hook, Guard)]:
                    del hooks[key]
    return watched.eval()


@dataclass(frozen=True)
class Detection:
    """How well failures are seen: of *failed* trials the share seen (*coverage*), of all seen ones those that failed
    (*precision*), and of clean inputs the share with an alarm (*false_alarms*); each with an exact interval.

    *latency* counts failures that were struck in a layer and seen, by how many further layers had computed until a
    guard saw them: ``latency[0]`` were seen before the next one. A layer has parameters; its first call counts.
    """

    coverage: Estimate
    precision: Estimate
    false_alarms: Estimate
    latency: tuple[int, ...]


@dataclass(frozen=True)
class _Own:
    """A criterion of the model's own output alone."""

    criterion: Criterion

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None) -> Tensor:
        return self.criterion({"output": _part(golden, "output")}, {"output": _part(faulty, "output")}, labels)


@dataclass(frozen=True)
class _Seen:
    """A criterion: a guard saw something."""

    observes: ClassVar[bool] = True

    def __call__(self, _golden: Tree, faulty: Tree, _labels: Tree | None) -> Tensor:
        seen: Tensor = _part(faulty, "detected")
        return seen


@dataclass(frozen=True)
class _First:
    """A criterion: this bit is set in the number of the first guard that saw something. Verdicts are yes or no."""

    bit: int
    observes: ClassVar[bool] = True

    def __call__(self, _golden: Tree, faulty: Tree, _labels: Tree | None) -> Tensor:
        first: Tensor = _part(faulty, "first")
        return (first >> self.bit & 1).bool()


def _part(outputs: Any, name: str) -> Any:
    return outputs[name]


def detection(
    engine: Engine,
    *,
    space: FaultSpace | None = None,
    trials: int = 1000,
    criterion: Criterion | None = None,
    seed: int = 0,
    level: float = 0.95,
    store: Store | str | Path | None = None,
    name: str = "detection",
    progress: Callable[[Standing], None] | None = None,
) -> Detection:
    """Return how many of the failures by random bit flips in *space* the model of *engine*, a :class:`Detecting`, sees.

    A trial fails by *criterion* on the model's own output (another top class unless told), or by a number that is not
    finite. False alarms are counted over all inputs of the engine, and have an upper bound where there is none. The
    trials are a campaign, which *store* keeps under *name* and goes on with where it was interrupted; its verdict
    ``detected`` is what guards saw, so that ``show --flag detected --by layer`` tells where. Raises
    :class:`ModelError` for an engine of another model.

    >>> from torchfault import Data
    >>> from torchfault.hardening import InvariantBits, harden
    >>> _ = torch.manual_seed(0)
    >>> model = detecting(harden(nn.Sequential(nn.Linear(4, 3)).eval(), InvariantBits()), mend=False)
    >>> engine = Engine(model, Data(torch.randn(20, 4)))
    >>> found = detection(engine, space=engine.space.select("*.weight", bits=[30]), trials=100)
    >>> found.coverage.value, found.false_alarms.value
    (1.0, 0.0)
    """
    if not isinstance(engine.model, Detecting):
        kind = type(engine.model).__name__
        raise ModelError(f"detection needs an engine of what detecting() returns, got one of a {kind}; give that")
    space, golden = engine.space if space is None else space, engine.golden()
    bits = [f"first.{bit}" for bit in range(int(golden["first"].max()).bit_length())]
    campaign = Campaign(
        engine,
        space,
        criterion=_Own(criterion or Top1Change(output="output")),
        verdicts={"detected": _Seen(), **{flag: _First(bit) for bit, flag in enumerate(bits)}},
        seed=seed,
        stop=MaxTrials(trials),
        level=level,
    )
    results = run(campaign, store=store, name=name, progress=progress)
    columns = results.columns.take(0, trials)  # the store may hold more
    failed, seen = (columns.flag(flag).astype(bool) for flag in ("failed", "detected"))
    first = sum(columns.flag(flag).astype(np.int64) << bit for bit, flag in enumerate(bits))
    struck = space.locate(columns.faults).site
    layers = [space.sites[site].module for site in struck[failed & seen].tolist()]
    passed = _passed(engine.model, rows(engine.data.inputs, slice(0, 1)), layers, np.atleast_1d(first)[failed & seen])
    both = int((failed & seen).sum())
    counts = ((both, int(failed.sum())), (both, int(seen.sum())), (int(golden["detected"].sum()), len(engine.data)))
    coverage, precision, alarms = (proportion(*pair, method="clopper-pearson", level=level) for pair in counts)
    return Detection(coverage, precision, alarms, tuple(np.bincount(passed).tolist()))


def _passed(model: Detecting, given: Tree, layers: list[str], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many layers computed between each of *layers* and the guard of that number; others are left out."""
    asked: dict[str, int] = {}  # when a layer has computed, so many guards have been asked

    def note(name: str, *_: Any) -> None:
        asked.setdefault(name, len(model.seen))

    hooks = [
        module.register_forward_hook(partial(note, name), prepend=True)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    with torch.no_grad():
        call(model, given)
    for hook in hooks:
        hook.remove()
    order, done = list(asked), np.array(list(asked.values()), dtype=np.int64)
    pairs = [
        (order.index(layer), number) for layer, number in zip(layers, first.tolist(), strict=True) if layer in asked
    ]
    return np.array([int((done[at + 1 :] <= number).sum()) for at, number in pairs], dtype=np.int64)
