"""Faults in what training keeps beside the model: the optimiser's state, such as momentum and second moments."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from torchfault.engine.changes import Change, Target
from torchfault.engine.hooks.strikes import edits_of
from torchfault.errors import SpaceError, did_you_mean
from torchfault.space import Fault, FaultSpace, Site
from torchfault.words import WORDS, word_of

__all__ = ["optimizer_space", "upset_optimizer"]


def optimizer_space(model: nn.Module, optimizer: Optimizer) -> FaultSpace:
    """Return a site for every tensor of the state of *optimizer*, named after the parameter it belongs to.

    The state is there after the first step. Raises :class:`SpaceError` before, or where the optimiser keeps none.

    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> adam = torch.optim.Adam(layer.parameters())
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> adam.step()
    >>> optimizer_space(layer, adam).names[:3]
    ('weight:optimizer.step', 'weight:optimizer.exp_avg', 'weight:optimizer.exp_avg_sq')
    """
    sites = tuple(
        Site(name, tuple(tensor.shape), word=word_of(tensor).name, width=word_of(tensor).width, kind="optimizer")
        for name, tensor in _state(model, optimizer)
    )
    if not sites:
        raise SpaceError("the optimiser keeps no state yet, or none at all; call optimizer.step() once, or use another")
    return FaultSpace(sites)


def upset_optimizer(
    model: nn.Module,
    optimizer: Optimizer,
    faults: Fault | Sequence[Fault],
    *,
    rng: np.random.Generator | None = None,
) -> Callable[[], None]:
    """Strike words of the state of *optimizer* as an upset in memory would: for good, until they are overwritten.

    Training goes on from the struck state, so this is no scope; the function returned writes the old words back. *rng*
    serves fault models that draw. Raises :class:`SpaceError` for a site that the state does not have.

    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> sgd.step()
    >>> undo = upset_optimizer(layer, sgd, Fault("bias:optimizer.momentum_buffer", 0, bit=31))
    >>> sgd.state[layer.bias]["momentum_buffer"]
    tensor([-1.])
    """
    stored = dict(_state(model, optimizer))
    known = {site.name: site for site in optimizer_space(model, optimizer).sites}
    generator = rng or np.random.default_rng()
    by_site: dict[str, list[Fault]] = {}
    for fault in [faults] if isinstance(faults, Fault) else faults:
        if fault.site not in known:
            raise SpaceError(f"the optimiser keeps no '{fault.site}'{did_you_mean(fault.site, known)}")
        by_site.setdefault(fault.site, []).append(fault)
    named = [(name, one) for name, mine in by_site.items() for one in edits_of(known[name], mine, generator)]
    change = Change([Target(name, stored[name], edits.to(stored[name].device)) for name, edits in named])
    change.write()
    return change.take


def _state(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and str(value.dtype).removeprefix("torch.") in WORDS:
                yield f"{name}:optimizer.{key}", value
