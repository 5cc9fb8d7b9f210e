"""Give the weights of a model another representation, in a copy: quantised, in blocks, in another format, sparse."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from torchfault.errors import SpaceError, StorageError
from torchfault.model.memory import STORED
from torchfault.model.sites import parameter_sites
from torchfault.space import FaultSpace
from torchfault.storages import Storage, keep, storage

__all__ = ["represent"]


def represent(model: nn.Module, how: str | Storage | Mapping[str, str | Storage]) -> nn.Module:
    """Return a copy of *model* whose weights are kept as *how* says; *model* stays as it is.

    *how* is a storage or its name (``int8``, ``csr``, ``q3.4``, see :func:`torchfault.storages.storage`), for all
    weights of two or more axes that are not normalisation, or a mapping of globs to storages, of which the first that
    matches a parameter counts. In the copy every weight has the value that its words stand for; the words are sites,
    which engines and :func:`torchfault.inject` strike. Masks of ``torch.nn.utils.prune`` are applied for good first, so
    that a sparse storage keeps what is left of the weights.

    Raises :class:`SpaceError` for a glob that matches no parameter and :class:`StorageError` for a weight that cannot
    be kept.

    >>> twin = represent(nn.Linear(3, 2), {"weight": "uint8", "bias": "q3.4"})
    >>> from torchfault.model.sites import parameter_sites
    >>> [(site.name, site.word) for site in parameter_sites(twin)]
    [('weight', 'uint8'), ('weight:scale', 'float32'), ('weight:zero_point', 'uint8'), ('bias', 'q3.4')]
    """
    twin = _copied(model)
    _prune_for_good(twin)
    chosen = _chosen(twin, how)
    modules = dict(twin.named_modules())
    for name, kept_by in chosen.items():
        path, _, last = name.rpartition(".")
        parameter = modules[path]._parameters[last]
        assert parameter is not None
        try:
            stored = keep(parameter, kept_by)
        except StorageError as error:
            raise StorageError(f"'{name}': {error}") from None
        modules[path].__dict__.setdefault(STORED, {})[last] = stored
        with torch.no_grad():
            parameter.data.copy_(stored.value())
    return twin


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, also where a module holds tensors that were computed, as pruning leaves them."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for held in module.__dict__.values():
            if isinstance(held, Tensor) and held.grad_fn is not None:
                memo[id(held)] = held.detach().clone()
    return copy.deepcopy(model, memo)


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


def _storage(how: str | Storage) -> Storage:
    return storage(how) if isinstance(how, str) else how
