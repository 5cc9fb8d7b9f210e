"""Give a model another representation, in a copy: weights and activations quantised, in blocks, in another format."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import prune

from torchfault.adapters.calibration import ranges_of
from torchfault.data import Data, Tree
from torchfault.errors import SpaceError, StorageError
from torchfault.model.discover import parameter_sites
from torchfault.model.memory import STORED
from torchfault.model.rounding import set_rounding
from torchfault.model.traits import computes_nothing, leaf_paths
from torchfault.model.wrappers import copied, unwrapped
from torchfault.names import site_name
from torchfault.space import FaultSpace, Site
from torchfault.storages import ActivationStorage, Storage, activation_storage, keep, needs_range, storage

__all__ = ["represent"]

_ROLES = ("input", "output")


Activations = str | ActivationStorage | Mapping[str, str | ActivationStorage]


def represent(
    model: nn.Module,
    how: str | Storage | Mapping[str, str | Storage] | None = None,
    *,
    activations: Activations | None = None,
    data: Data | Tree | None = None,
) -> nn.Module:
    """Return a copy of *model* whose weights are kept as *how* says, and whose *activations* are; *model* stays.

    *how* is a storage or its name (``int8``, ``csr``, ``q3.4``, see :func:`torchfault.storages.storage`), for all
    weights of two or more axes that are not normalisation, or a mapping of globs to storages, of which the first that
    matches a parameter counts. In the copy every weight has the value that its words stand for; the words are sites,
    which engines and :func:`torchfault.inject` strike. Masks of ``torch.nn.utils.prune`` are applied for good first, so
    that a sparse storage keeps what is left of the weights.

    *activations* is a storage of activations or its name (``q7.8``, ``e4m3``, ``bfp8:16``, see
    :func:`torchfault.storages.activation_storage`), for the inputs and outputs of all layers with weights of two or
    more axes that are not normalisation, or a mapping of globs to storages, of which the first that matches
    ``conv1:input`` or ``conv1:output`` counts, of any module without children. Their values are rounded wherever the
    copy computes them. ``int8`` and the like take their range from the copy's exact activations on *data*.

    Raises :class:`SpaceError` for a glob that matches nothing and :class:`StorageError` for what cannot be kept so.

    >>> twin = represent(nn.Linear(3, 2), {"weight": "uint8", "bias": "q3.4"})
    >>> from torchfault.model.discover import parameter_sites
    >>> [(site.name, site.word) for site in parameter_sites(twin)]
    [('weight', 'uint8'), ('weight:scale', 'float32'), ('weight:zero_point', 'uint8'), ('bias', 'q3.4')]
    >>> twin = represent(nn.Sequential(nn.Linear(3, 2)), activations={"*:output": "q3.4"})
    >>> twin(torch.ones(1, 3)).mul(16).frac().abs().max()
    tensor(0., grad_fn=<MaxBackward1>)
    """
    if how is None and activations is None:
        raise StorageError("a model is represented anew in its weights, its activations or both, got neither")
    twin = copied(unwrapped(model))
    _prune_for_good(twin)
    if how is not None:
        _keep_weights(twin, _chosen(twin, how))
    if activations is not None:
        for (path, role), storage in _chosen_activations(twin, activations, data).items():
            set_rounding(twin.get_submodule(path), role, storage)
    return twin


def _keep_weights(twin: nn.Module, chosen: Mapping[str, Storage]) -> None:
    modules = dict(twin.named_modules())
    for name, kept_by in chosen.items():
        path, last = site_name(name).owner, site_name(name).last
        parameter = modules[path]._parameters[last]
        assert parameter is not None
        try:
            stored = keep(parameter, kept_by)
        except StorageError as error:
            raise StorageError(f"'{name}': {error}") from None
        modules[path].__dict__.setdefault(STORED, {})[last] = stored
        with torch.no_grad():
            parameter.data.copy_(stored.value())


def _prune_for_good(model: nn.Module) -> None:
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)


def _chosen(model: nn.Module, how: str | Storage | Mapping[str, str | Storage]) -> dict[str, Storage]:
    sites = [site for site in parameter_sites(model) if ":" not in site.name]
    if not isinstance(how, Mapping):
        found = _storage(how)
        weights = {site.name: found for site in sites if site.kind == "weight" and len(site.shape) > 1}
        if not weights:
            raise SpaceError(f"{type(model).__name__} has no weights of two or more axes to keep as {found.name}")
        return weights
    chosen: dict[str, Storage] = {}
    for pattern, named in how.items():
        for name in FaultSpace(tuple(sites)).select(pattern).names:
            chosen.setdefault(name, _storage(named))
    return chosen


def _chosen_activations(
    twin: nn.Module, how: Activations, data: Data | Tree | None
) -> dict[tuple[str, str], ActivationStorage]:
    """Return how the inputs and outputs of modules are to be kept, by the module's path and the role."""
    named: dict[str, str | ActivationStorage] = {}
    if isinstance(how, Mapping):
        space = FaultSpace(tuple(Site(f"{path}:{role}", ()) for path in _computing(twin) for role in _ROLES))
        for pattern, storage in how.items():
            named |= dict.fromkeys(set(space.select(pattern).names) - named.keys(), storage)
    else:
        weights = [s for s in parameter_sites(twin) if s.kind == "weight" and len(s.shape) > 1 and ":" not in s.name]
        layers = dict.fromkeys(site.module for site in weights if site.module in _computing(twin))
        if not layers:
            raise SpaceError(f"{type(twin).__name__} has no layers with weights; choose modules, as in {{'*': 'q7.8'}}")
        named |= {f"{path}:{role}": how for path in layers for role in _ROLES}
    ranged = {name for name, storage in named.items() if isinstance(storage, str) and needs_range(storage)}
    if ranged and data is None:
        activation_storage(str(named[min(ranged)]))  # which says what is needed
    ranges = ranges_of(twin, ranged, data) if ranged else {}
    return {
        (site_name(name).base, site_name(name).role): (
            activation_storage(storage, *ranges.get(name, ())) if isinstance(storage, str) else storage
        )
        for name, storage in named.items()
    }


def _computing(model: nn.Module) -> list[str]:
    """Return the paths of the modules without children that compute something."""
    return [path for path in leaf_paths(model) if not computes_nothing(model.get_submodule(path))]


def _storage(how: str | Storage) -> Storage:
    return storage(how) if isinstance(how, str) else how
