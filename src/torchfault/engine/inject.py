"""Alter a model in a scope, and only there: faults in weights, buffers and activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from torchfault.engine.masks import Mask, Places, edits_by_site
from torchfault.engine.strikes import Strike, address, masks_of, striking
from torchfault.errors import FaultError, SpaceError, did_you_mean
from torchfault.faults import Trials
from torchfault.model.sites import Discovery
from torchfault.space import Fault, FaultSpace, Site
from torchfault.words import encode, word, word_of

__all__ = ["Targets", "edited", "inject", "stored_tensor"]


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
    names one. An activation's batch axis is that of *space* as found by :func:`torchfault.model.sites.find`, else the
    first. An ``:input`` strikes only the copy that its own operation reads. *rng* serves fault models that draw.

    Gradients pass straight through a struck activation. For the gradients of a network with struck weights call
    ``backward`` inside the scope: behind it the weights are whole again. Step the optimiser outside.

    Raises :class:`SpaceError` for an unknown site and, on leaving the scope, :class:`FaultError` for an activation that
    was never computed, since a fault that never struck is an error.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> with torch.no_grad(), inject(layer, Fault("weight", (0, 1), bit=31)):
    ...     layer(torch.tensor([1.0, 3.0]))
    tensor([-2.])
    >>> layer.weight.tolist()
    [[1.0, 1.0]]
    """
    targets = (
        _from_trials(model, faults, space) if isinstance(faults, Trials) else _from_faults(model, faults, space, rng)
    )
    with edited(targets.stored), striking(model, targets.strikes):
        yield model


@dataclass(frozen=True, eq=False)
class Targets:
    """What a trial changes: words of *stored* tensors, and activations."""

    stored: Sequence[tuple[Tensor, Mask]]
    strikes: Sequence[Strike]


def _from_trials(model: nn.Module, trials: Trials, space: FaultSpace | Discovery | None) -> Targets:
    if len(trials) != 1:
        raise FaultError(f"inject strikes one trial at a time, got {len(trials)}; choose one with trials.take")
    sites = {site.name: site for site in trials.sites}
    layouts = space.layouts if isinstance(space, Discovery) else {}
    stored, strikes = [], []
    for name, edits in edits_by_site(trials).items():
        mask = Mask(name, word(sites[name].word), edits)
        if ":" in name:
            strikes.append(Strike(name, address(model, name), [mask], site=sites[name], layout=layouts.get(name)))
        else:
            stored.append((_stored(model, name, mask), mask))
    return Targets(stored, strikes)


def _stored(model: nn.Module, name: str, mask: Mask) -> Tensor:
    tensor = stored_tensor(model, name)
    if word_of(tensor) != mask.fmt:
        raise FaultError(
            f"'{name}' has {mask.fmt.name} words in the fault space, got {word_of(tensor).name}; find the sites again"
        )
    return tensor


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
    generator = rng or np.random.default_rng()
    by_site: dict[str, list[Fault]] = {}
    for fault in listed:
        by_site.setdefault(fault.site, []).append(fault)
    stored: list[tuple[Tensor, Mask]] = []
    strikes = []
    for name, mine in by_site.items():
        site = None if known is None else known.site(name)
        if ":" not in name:
            tensor = stored_tensor(model, name)
            fmt = word_of(tensor)
            site = site or Site(name, tuple(tensor.shape), word=fmt.name, width=fmt.width)
            stored += [(_stored(model, name, mask), mask) for mask in masks_of(site, mine, generator)]
        else:
            masks = [] if site is None else masks_of(site, mine, generator)
            where, layout = address(model, name), layouts.get(name)
            strikes.append(Strike(name, where, masks, site=site, layout=layout, faults=mine, rng=generator))
    return Targets(stored, strikes)


def stored_tensor(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer called *name*, by any of its names where it is tied."""
    path, _, last = name.rpartition(".")
    modules = dict(model.named_modules(remove_duplicate=False))
    owner = modules.get(path)
    found: Tensor | None = None if owner is None else owner._parameters.get(last, owner._buffers.get(last))
    if found is None:
        names = [n for n, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())]
        near = did_you_mean(name, names) or "; activations are called '<module>:input' and '<module>:output'"
        raise SpaceError(f"no parameter or buffer is called '{name}'{near}")
    return found


@contextmanager
def edited(stored: Sequence[tuple[Tensor, Mask]]) -> Iterator[None]:
    """Change words of parameters and buffers in this scope; the touched words come back, in reverse order."""
    undo: list[Callable[[], None]] = []
    try:
        for tensor, mask in stored:
            _change(tensor, mask, undo)
        yield
    finally:
        _undo(undo)


def _change(tensor: Tensor, mask: Mask, undo: list[Callable[[], None]]) -> None:
    inference = tensor.is_inference()

    def write(values: Tensor) -> None:
        with torch.inference_mode(inference):
            places.write(words, values)

    with torch.inference_mode(inference):
        # Through .data: autograd must not take the edit, or its end, for a change of a weight that backward needs.
        words = encode(tensor.data, mask.fmt)
        places = Places.of(words.unsqueeze(0), mask.edits.element)
        saved = places.read(words)
        keep, toggle = mask.masks(tensor.device)
        struck = saved ^ toggle if keep is None else (saved & keep) ^ toggle
    undo.append(lambda: write(saved))
    write(struck)


def _undo(undo: list[Callable[[], None]]) -> None:
    """Call all of *undo*, the last first; an interrupt waits until everything is as it was."""
    interrupt: KeyboardInterrupt | None = None
    while undo:
        try:
            undo[-1]()  # writing saved words twice does no harm
            undo.pop()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
