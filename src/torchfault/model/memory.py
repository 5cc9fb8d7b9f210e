"""Where a model keeps its words when a parameter is more than a plain tensor: codes, scales, indices, packed ones."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.model.foreign import foreign
from torchfault.model.home import Home, overwritten, site_names
from torchfault.names import site_name
from torchfault.storages import Bsr, Coo, Csr, Part, Storage, Stored
from torchfault.words import WORDS

__all__ = ["STORED", "homes"]

STORED = "torchfault_stored"
"""The attribute in which a module keeps the words of its parameters, by their names, once it is represented anew."""

_CODES = ("qdata", "int_data", "data")
_ELEMENTS = {"torch.float4_e2m1fn_x2": "float4_e2m1fn_x2", "fp6_e3m2": "e3m2fn", "fp6_e2m3": "e2m3fn"}
_SPARSE: Mapping[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("values", "indices"),
    torch.sparse_csr: ("values", "crow_indices", "col_indices"),
    torch.sparse_bsr: ("values", "crow_indices", "col_indices"),
}


def homes(model: nn.Module) -> list[Home]:
    """Return the homes of all parameters of *model* that are no plain tensors, in the order of the modules.

    These are parameters that :func:`torchfault.adapters.represent.represent` has given a storage, tensors made of
    several (torchao's), sparse ones, and what other libraries pack or round to codes (:mod:`torchfault.model.foreign`).

    >>> from torchfault.adapters.represent import represent
    >>> [list(home.words) for home in homes(represent(nn.Linear(3, 2), "int8"))]
    [['weight', 'weight:scale']]
    """
    found: list[Home] = []
    seen: set[int] = set()
    parts = frozenset(id(part) for module in model.modules() for room in foreign() for part in room.parts(module))
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        found += [home for room in foreign() for home in room.homes(module, path, prefix, parts)]
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            home = _home(module, path, prefix + name, name, parameter)
            if home is not None:
                found.append(home)
    return found


def _home(module: nn.Module, path: str, full: str, name: str, parameter: nn.Parameter) -> Home | None:
    stored = module.__dict__.get(STORED, {}).get(name)
    if stored is not None:
        return _emulated(stored, path, full, parameter)
    if hasattr(parameter, "__tensor_flatten__"):
        return _composed(path, full, parameter)
    if parameter.layout in _SPARSE:
        return _sparse(module, path, full, parameter)
    return next((found for room in foreign() if (found := room.home(module, path, full, parameter))), None)


# Parameters in a storage of ours.


def _emulated(stored: Stored, path: str, full: str, parameter: Tensor) -> Home:
    if stored.words and next(iter(stored.words.values())).device != parameter.device:
        stored = stored.to(parameter.device)
    site_of = {part: f"{full}:{part}" if part else full for part in stored.words}

    def install(changed: Mapping[str, Tensor]) -> Callable[[], None]:
        if not torch.equal(stored.value(), parameter.data):
            raise ModelError(f"'{full}' is not what its stored words stand for; represent the model anew after changes")
        value = stored.value({part: changed[site] for part, site in site_of.items() if site in changed})
        return overwritten(parameter, value)

    return Home(site_names(full, stored.words), site_names(full, stored.parts), full, path, install, stored)


# Parameters that are made of several tensors.


def _composed(path: str, full: str, parameter: Tensor) -> Home:
    """Return the home of a tensor subclass: its inner tensors are memory that the kernels read."""
    words = dict(_inner(parameter))
    words = {"" if part in _CODES else part: tensor for part, tensor in words.items()}
    lacking = {str(t.dtype) for t in words.values()} - {f"torch.{name}" for name in WORDS}
    if lacking:
        raise ModelError(f"'{full}' ({type(parameter).__name__}) holds {', '.join(lacking)}, which has no word format")
    swizzled = getattr(parameter, "is_swizzled_scales", False)  # in tiles, not row by row
    parts = {
        part: Part(_word(tensor), _kind(part), 0 if tensor.ndim and not (part and swizzled) else None)
        for part, tensor in words.items()
    }
    if "" in parts and (element := _element(parameter)):
        parts[""] = replace(parts[""], word=element)
    return Home(site_names(full, words), site_names(full, parts), full, path)


def _element(tensor: Tensor) -> str:
    """Return the format of codes that a tensor of several keeps in bytes of another type, empty for others."""
    if type(tensor).__name__ == "NVFP4Tensor":
        return "float4_e2m1fn_x2"
    return _ELEMENTS.get(str(getattr(tensor, "elem_dtype", "")), "")


def _inner(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for name in names:
        part = getattr(tensor, name)
        if hasattr(part, "__tensor_flatten__"):
            yield from _inner(part)
        else:
            yield name, part


def _kind(part: str) -> str:
    if part.endswith("scale"):
        return "scale"
    return part if part in ("zero_point", "exponent") else "index" if part.endswith("indices") else ""


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sparse(module: nn.Module, path: str, full: str, parameter: nn.Parameter) -> Home | None:
    """Return the home of a sparse matrix of torch's own."""
    if parameter.ndim != 2 or not parameter.is_floating_point():
        return None
    name = site_name(full).last
    plain = parameter.detach()
    hidden = "_" if plain.layout == torch.sparse_coo else ""  # the plain ones need coalesced tensors
    words: dict[str, Tensor] = {part: getattr(plain, hidden + part)() for part in _SPARSE[plain.layout]}
    index = _word(words.get("col_indices", words.get("indices", words["values"])))
    kept: Storage = Coo(index) if plain.layout == torch.sparse_coo else Csr(index)
    if plain.layout == torch.sparse_bsr:
        kept = Bsr(words["values"].shape[1], words["values"].shape[2], index)
    stored = Stored(kept, tuple(plain.shape), plain.dtype, words)
    parts = {**stored.parts, "values": replace(stored.parts["values"], word=_word(words["values"]))}

    def install(changed: Mapping[str, Tensor]) -> Callable[[], None]:
        mine = {part: changed[site] for part in words if (site := f"{full}:{part}") in changed}
        if mine.keys() == {"values"}:
            return overwritten(words["values"], mine["values"])
        # Torch's kernels take indices as sound and sorted: they get a matrix that holds what a plain reader would read.
        dense = stored.value(mine)
        size = words["values"].shape[1:] or None
        moved = dense.to_sparse(layout=plain.layout, blocksize=size)
        module._parameters[name] = nn.Parameter(moved, requires_grad=False)  # whose .data would not take new indices

        def back() -> None:
            module._parameters[name] = parameter

        return back

    return Home(site_names(full, words), site_names(full, parts), full, path, install)
