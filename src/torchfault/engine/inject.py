"""Alter a model in a scope, and only there: faults in weights, buffers and activations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from torchfault.engine.changes import Target
from torchfault.engine.hooks.strikes import Strike, edits_of, on_sample, strike_of, striking, together
from torchfault.engine.stored import Memory, edited
from torchfault.errors import FaultError
from torchfault.model.discover import Discovery
from torchfault.model.states import Cell, module_slots
from torchfault.model.undo import Undo
from torchfault.model.watch import memory_address
from torchfault.model.wrappers import unwrapped
from torchfault.space import Fault, FaultSpace, Site
from torchfault.trials import Trials, edits_by_site, pack
from torchfault.words import bits_of

__all__ = ["Targets", "inject"]


@contextmanager
def inject(
    model: nn.Module,
    faults: Fault | Sequence[Fault] | Trials,
    *,
    space: FaultSpace | Discovery | None = None,
    rng: np.random.Generator | None = None,
) -> Iterator[nn.Module]:
    """Run *model* with *faults*, all together, in this scope; afterwards it is as it was, bit for bit.

    *faults* is one fault, several, or :class:`Trials` with a single trial. Weights and buffers change in place when the
    scope is entered, activations whenever they are computed, in every element of the batch unless ``fault.sample``
    names one. An activation's batch axis is that of *space* as found by :func:`torchfault.model.discover.find`, else
    the first. An ``:input`` strikes only the copy that its own operation reads. *rng* serves fault models that draw. Of
    a model that ``torch.compile`` made, the one behind it is struck and returned.

    Scopes on one model may overlap and end in any order, as those of tasks and generators do: what remains is what the
    scopes that still last have struck. Ctrl-C comes before or behind a change, never in between. A model that threads
    share is struck for all of them, and so are its hooks; a thread that wants faults of its own needs a copy of the
    model. Convert or move the model outside the scope.

    Gradients pass straight through a struck activation. For the gradients of a network with struck weights call
    ``backward`` inside the scope: behind it the weights are whole again. Step the optimiser outside.

    Raises :class:`SpaceError` for an unknown site, :class:`StorageError` where an index of a sparse parameter would
    point to nowhere (a detected error: nobody can run such a network) and, on leaving the scope, :class:`FaultError`
    for an activation that was never computed, since a fault that never struck is an error, and for words that are no
    longer the model's, since they cannot come back.

    >>> import torch
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> with torch.no_grad(), inject(layer, Fault("weight", (0, 1), bit=31)):
    ...     layer(torch.tensor([1.0, 3.0]))
    tensor([-2.])
    >>> layer.weight.tolist()
    [[1.0, 1.0]]
    """
    model = unwrapped(model)
    targets = (
        _from_trials(model, faults, space) if isinstance(faults, Trials) else _from_faults(model, faults, space, rng)
    )
    cells = space.cells if isinstance(space, Discovery) else ()
    with as_it_was(model, cells), edited(targets.stored, guarded=True), striking(model, targets.strikes, cells):
        yield model
    _check_memory(model, targets.stored)


def _check_memory(model: nn.Module, targets: Sequence[Target]) -> None:
    """Raise :class:`FaultError` where words that came back are no longer those of *model*: it was converted or moved.

    Values that the model took over from struck words come back as far as its new type holds them.
    """
    memory, lost = Memory(model), []
    for target in targets:
        if target.home is not None:
            continue
        now = memory.words(target.name)
        if now.dtype == target.words.dtype and memory_address(now) == memory_address(target.words):
            continue
        lost.append(f"'{target.name}' ({target.words.dtype} on {target.words.device}, now {now.dtype} on {now.device})")
        if now.shape == target.words.shape:
            first, plain = now.data.unsqueeze(0), target.words.data.unsqueeze(0)
            golden = target.edits.read(plain)
            struck = target.edits.changed(golden).to(now)
            mine = target.edits.read(first)
            target.edits.put(first, torch.where(bits_of(mine) == bits_of(struck), golden.to(now), mine))
    if lost:
        raise FaultError(
            f"the model was converted or moved inside the scope: {', '.join(lost[:3])}; its words came back as far as "
            "the new ones hold them, so load the model again, and convert it before the scope"
        )


_NEEDS_CELLS = "'{}' has time steps, which only the model shows; use inject(..., space=find(model, data))"


@contextmanager
def as_it_was(model: nn.Module, cells: Sequence[Cell]) -> Iterator[None]:
    """Let *cells* hold again, at the end of this scope, the states that they held at its beginning."""
    modules = dict(model.named_modules())
    with Undo() as undo:
        for cell in cells:
            module = modules[cell.path]
            for slot in dict.fromkeys((*module_slots(module), *cell.held)):
                if not callable(slot.read(module)):  # nor what other scopes have put in the place of a method
                    undo.add(slot.kept(module))
        yield


@dataclass(frozen=True, eq=False)
class Targets:
    """What a trial changes: *stored* words, and activations."""

    stored: Sequence[Target]
    strikes: Sequence[Strike]


def _from_trials(model: nn.Module, trials: Trials, space: FaultSpace | Discovery | None) -> Targets:
    if len(trials) != 1:
        raise FaultError(f"inject strikes one trial at a time, got {len(trials)}; choose one with trials.take")
    if isinstance(space, Discovery):
        trials = space.fold.unfold(trials)
    sites = {site.name: site for site in trials.sites}
    layouts = space.layouts if isinstance(space, Discovery) else {}
    memory = Memory(model)
    stored, strikes = [], []
    for name, edits in edits_by_site(trials).items():
        if sites[name].steps is not None:
            raise FaultError(_NEEDS_CELLS.format(name))
        if name in memory:
            stored.append(memory.target(name, edits))
        else:
            strikes.append(strike_of(model, name, edits=[edits], site=sites[name], layout=layouts.get(name)))
    return Targets(stored, together(strikes))


def _from_faults(
    model: nn.Module,
    faults: Fault | Sequence[Fault],
    space: FaultSpace | Discovery | None,
    rng: np.random.Generator | None,
) -> Targets:
    listed = [faults] if isinstance(faults, Fault) else list(faults)
    if not listed:
        raise FaultError(
            "inject needs at least one fault, got none; run the model outside the scope for golden outputs"
        )
    known, layouts = (space.space, space.layouts) if isinstance(space, Discovery) else (space, {})
    generator, memory = rng or np.random.default_rng(), Memory(model)
    if isinstance(space, Discovery) and any(fault.site in space.fold.parts for fault in listed):
        return _with_steps(model, listed, space, generator)
    by_site: dict[str, list[Fault]] = {}
    for fault in listed:
        if fault.step is not None:
            raise FaultError(_NEEDS_CELLS.format(fault.site))
        by_site.setdefault(fault.site, []).append(fault)
    stored: list[Target] = []
    strikes = []
    for name, mine in by_site.items():
        site = None if known is None else known.site(name)
        if name in memory:
            if site is None:
                fmt = memory.format(name)
                site = Site(name, tuple(memory.words(name).shape), word=fmt.name, width=fmt.width)
            stored += [memory.target(name, edits) for edits in edits_of(site, mine, generator)]
        else:
            edits = [] if site is None else edits_of(site, mine, generator)
            layout = layouts.get(name)
            strikes.append(strike_of(model, name, edits=edits, site=site, layout=layout, faults=mine, rng=generator))
    return Targets(stored, together(strikes))


def _with_steps(model: nn.Module, faults: Sequence[Fault], found: Discovery, rng: np.random.Generator) -> Targets:
    """Return the targets of faults of which some strike at time steps, sample by sample."""
    stored: list[Target] = []
    strikes: list[Strike] = []
    for sample in dict.fromkeys(fault.sample for fault in faults):
        mine = [fault for fault in faults if fault.sample == sample]
        targets = _from_trials(model, pack(found.space, mine, rng=rng), found)
        if sample is not None and (targets.stored or sample < 0):
            raise FaultError(
                f"a sample counts from 0 in the batch of an activation, got {sample} for '{mine[0].site}'; leave it out"
            )
        stored += targets.stored
        strikes += [replace(one, edits=[on_sample(e, sample) for e in one.edits]) for one in targets.strikes]
    return Targets(stored, strikes)
