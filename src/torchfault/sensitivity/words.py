"""From values to the words that make them: what codes and scales hold, and derivatives by each, by the chain rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.model.memory import homes
from torchfault.model.rounding import rounding
from torchfault.names import site_name
from torchfault.space import FaultSpace, Site
from torchfault.storages import Affine, BlockFloat, InBlocks, Microscaled, Stored
from torchfault.storages.activations import WHOLE

__all__ = ["Source", "sources"]

_POWERS = "exponent"  # the part whose words are no factors of values
_Decode = Callable[[Mapping[str, Tensor], Sequence[int]], Tensor]


@dataclass(frozen=True, eq=False)
class Source:
    """A *parameter*, or an activation without one, called *name*, and its *sites* by the parts of words that make it.

    *kept* says how the words make values; without it values are the words themselves.
    """

    name: str
    sites: Mapping[str, Site]
    parameter: Tensor | None = None
    kept: Stored | InBlocks | None = None

    def columns(self, value: Tensor, slope: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what the words of each site hold and the derivatives by them, given *slope*, those by the values.

        Activations have a row for each input, parameters one: shape (rows, elements) each.
        """
        rows = len(value) if self.parameter is None else 1
        if self.kept is None:
            return {self.name: (value.detach().reshape(rows, -1), slope.reshape(rows, -1))}
        words, shape, decode = _words(self.kept, value.detach())
        leaves = {part: held.float().requires_grad_() for part, held in words.items() if part != _POWERS}
        with torch.enable_grad():
            made = decode({**words, **leaves}, shape)
        found = torch.autograd.grad(made, list(leaves.values()), slope.reshape(made.shape).to(made.dtype))
        slopes = dict(zip(leaves, found, strict=True))
        held = {}
        for part, site in self.sites.items():
            one, two = leaves[part].detach().reshape(rows, -1), slopes[part].reshape(rows, -1)
            held[site.name] = (one[:, :1], two.sum(1, keepdim=True)) if part == WHOLE else (one, two)
        return held


def _words(kept: Stored | InBlocks, value: Tensor) -> tuple[Mapping[str, Tensor], Sequence[int], _Decode]:
    """Return the words that make *value*, its shape in decoding, and what decodes them."""
    if isinstance(kept, Stored):
        return kept.words, kept.shape, kept.storage.decode
    row = kept.row(value.shape)
    rows = row.rows(value)
    words = kept.kept.encode(rows)
    words[""] = row.whole(words[""], value.shape)
    if WHOLE in words:  # one for each row, so that every input has derivatives of its own
        words[WHOLE] = words[WHOLE].expand(len(rows))

    def decode(words: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        return row.whole(kept.kept.decode({**words, "": row.rows(words[""])}, rows.shape), shape)

    return words, value.shape, decode


def sources(model: nn.Module, space: FaultSpace) -> list[Source]:
    """Return what the sites of *space* are words of: parameters, and then activations.

    Raises :class:`ModelError` for words that are no factors of values: exponents, indices, what others pack.

    >>> from torchfault.adapters.represent import represent
    >>> space = FaultSpace((Site("weight:scale", (2, 1), word="float8_e8m0fnu", kind="scale"),))
    >>> [(one.name, list(one.sites)) for one in sources(represent(nn.Linear(4, 2), "mxfp4"), space)]
    [('weight', ['scale'])]
    """
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    composed = {name: home for home in homes(model) if len(home.words) > 1 for name in home.words}
    found: dict[str, tuple[Stored | InBlocks | None, dict[str, Site]]] = {}
    for site in space.sites:
        parts = site_name(site.name)
        whole, part = site.name, ""
        kept: Stored | InBlocks | None = None
        if site.name in composed:
            home = composed[site.name]
            whole, part, kept = home.parameter, parts.role, _factors(home.stored, site)
        elif site.name not in parameters:
            storage = rounding(modules[parts.path], parts.role) if parts.path in modules else None
            if isinstance(storage, InBlocks):
                whole, part, kept = str(parts.whole), parts.block, storage
        if part == _POWERS:
            raise _no_factor(site)
        found.setdefault(whole, (kept, {}))[1][part] = site
    made = [Source(name, sites, parameters.get(name), kept) for name, (kept, sites) in found.items()]
    return sorted(made, key=lambda source: source.parameter is None)


def _factors(stored: Stored | None, site: Site) -> Stored:
    if stored is None or not isinstance(stored.storage, Affine | BlockFloat | Microscaled):
        raise _no_factor(site)
    return stored


def _no_factor(site: Site) -> ModelError:
    return ModelError(
        f"the words of '{site.name}' are no factors of the values that they make; choose other sites, or Uniform()"
    )
