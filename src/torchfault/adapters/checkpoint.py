"""Checkpoints: trained weights read without running code, matched to a model, and every misfit told in one line."""

import argparse
import codecs
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchfault.errors import ModelError, brief, did_you_mean
from torchfault.files import read_start, unreadable
from torchfault.model.watch import memory_address

__all__ = ["load_checkpoint", "read_checkpoint"]

_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
_NAMED = 3
_CHUNK = 1 << 20  # bytes read at once
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save before 1.6 begin


def load_checkpoint(model: nn.Module, path: str | Path, *, key: str | None = None, prefix: str | None = None) -> None:
    """Copy the weights in the file at *path* into *model*; every name and every shape must fit.

    *key* says where the weights stand in the file (parts separated by dots) and *prefix* what their names begin with;
    names without the prefix belong to something else. Both are found without help where they are common ones and one
    prefix alone fits. What the modules' own hooks translate fits too, and so does the one of several tied names. Raises
    :class:`ModelError` with the first names that misfit, and leaves *model* as it was.

    >>> import tempfile
    >>> model = nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weights = {"module.weight": torch.ones(1, 2), "module.bias": torch.zeros(1)}
    ...     torch.save({"state_dict": weights}, f"{folder}/a.pt")
    ...     load_checkpoint(model, f"{folder}/a.pt")
    >>> model.weight.tolist()
    [[1.0, 1.0]]
    """
    file = Path(path)
    wanted = model.state_dict(keep_vars=True)
    state = _stripped(_inner(_held(file), key, file), wanted, prefix, file)
    for name in [name for name, held in state.items() if not isinstance(held, Tensor) and name not in wanted]:
        del state[name]  # beside the weights, such as an epoch; a module's own state is among the wanted
    for names in _tied(wanted):
        if there := [state[name] for name in names if name in state]:
            for name in names:
                state.setdefault(name, there[0])
    if types := _other_types(state, wanted):
        raise ModelError(f"'{file.name}' does not fit the model: {types}")
    misfits = _misfits(state, wanted)
    before = {name: held.clone() for name, held in model.state_dict().items() if isinstance(held, Tensor) and misfits}
    try:
        model.load_state_dict(state)  # torch decides, since modules may translate names by hooks of their own
    except Exception as error:
        for name, held in before.items():
            wanted[name].detach().copy_(held)
        raise ModelError(f"'{file.name}' does not fit the model: {misfits or brief(error)}") from None


def read_checkpoint(path: str | Path, *, key: str | None = None) -> dict[str, Tensor]:
    """Return the named tensors in the file at *path*, a ``.safetensors`` file or one that ``torch.save`` wrote.

    Raises :class:`ModelError` for a file that is missing, broken, or holds Python objects that could run code.
    """
    file = Path(path)
    state = _inner(_held(file), key, file)
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _held(file: Path) -> Any:
    """Return what the file holds."""
    if (why := unreadable(file)) is not None:
        raise ModelError(f"the checkpoint '{file}' {why}; give a .pt, .pth or .safetensors file")
    return _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"'{file.name}' is not a readable safetensors file: {brief(error)}") from None


def _pickled(file: Path) -> Any:
    start = read_start(file, len(_LEGACY))
    if start.startswith(b"\x80") and start != _LEGACY:
        raise ModelError(
            f"'{file.name}' is a plain pickle, and loading it could run code; save model.state_dict() with torch.save"
        )
    try:
        if archive := start.startswith(b"PK"):
            _check_sums(file)
        with torch.serialization.safe_globals(_inert()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if "TorchScript" in str(error):
            raise ModelError(f"'{file.name}' is a TorchScript program; save the model's state_dict() instead") from None
        named = re.search(r"(?:nsupported (?:global: )?GLOBAL |but got <class ')([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and (archive or named):
            what = f"'{named[1]}'" if named else "a pickled model"
            raise ModelError(
                f"'{file.name}' holds more than tensors, such as {what}, and loading it could run code; "
                f"save model.state_dict() with torch.save instead"
            ) from None
        raise ModelError(
            f"'{file.name}' is not a checkpoint that torch.save wrote, or it is cut short or damaged"
        ) from None


def _inert() -> list[Any]:
    """Return what else may stand in a checkpoint and runs no code: NumPy's numbers and arrays, parsed arguments."""
    made: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    # NumPy wrote the same under another name before version 2.
    named = [(one, f"numpy.{core}.multiarray.{one.__name__}") for one in made for core in ("core", "_core")]
    types = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    return [*named, np.dtype, np.ndarray, *types, codecs.encode, argparse.Namespace]


def _check_sums(file: Path) -> None:
    """Raise an error where a byte is not what was written, which torch would not notice; 0 stands for no checksum."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.CRC:
                with archive.open(member) as opened:
                    while opened.read(_CHUNK):
                        pass


def _inner(held: Any, key: str | None, file: Path) -> Mapping[Any, Any]:
    """Return the mapping of weights inside what the file holds."""
    if not isinstance(held, Mapping):
        raise ModelError(f"'{file.name}' holds {_type(held)}, where names with tensors should be")
    if key is not None:
        for part in key.split("."):
            if not isinstance(held, Mapping) or part not in held:
                known = [str(name) for name in held] if isinstance(held, Mapping) else []
                hint = did_you_mean(part, known) or f"; it holds {_list(known)}"
                raise ModelError(f"'{file.name}' has nothing under '{key}'{hint}")
            held = held[part]
        if not isinstance(held, Mapping):
            raise ModelError(f"'{file.name}' holds {_type(held)} under '{key}', where weights should be")
        return held
    if any(isinstance(value, Tensor) for value in held.values()):
        return held
    for name in _KEYS:
        if isinstance(held.get(name), Mapping):
            return _inner(held[name], None, file)
    raise ModelError(f"no weights are found in '{file.name}'; say under which key they stand: {_list(list(held))}")


def _stripped(state: Mapping[Any, Any], wanted: Mapping[str, Any], prefix: str | None, file: Path) -> dict[str, Any]:
    """Return *state* with the names that the model has: without what they begin with, or what belongs to others."""
    names = [str(name) for name in state]
    if prefix is not None:
        if not any(name.startswith(prefix) for name in names):
            raise ModelError(f"no name in '{file.name}' begins with '{prefix}'; they look like {_list(names)}")
        return _below(state, prefix)
    found = _below(state, "")
    while common := _shared_prefix(found, wanted):
        found = _below(found, common)
    if wanted.keys() <= found.keys():
        return found
    parts = [part for part in _PREFIXES if wanted.keys() <= _below(found, part).keys()]
    if len(parts) > 1:
        raise ModelError(f"in '{file.name}' the weights after {_list(parts)} all fit; choose them by their prefix")
    return _below(found, parts[0]) if parts else found


def _below(state: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """Return the entries whose names begin with *prefix*, without it.

    With them go the versions of the modules that wrote them, by which torch reads what older ones wrote.
    """
    below = OrderedDict((str(k).removeprefix(prefix), v) for k, v in state.items() if str(k).startswith(prefix))
    if isinstance(versions := getattr(state, "_metadata", None), Mapping):
        paths = {f"{path}.": held for path, held in versions.items()}
        kept = {path.removeprefix(prefix).rstrip("."): v for path, v in paths.items() if path.startswith(prefix)}
        below._metadata = kept  # type: ignore[attr-defined]
    return below


def _shared_prefix(state: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Return the usual prefix that all names of *state* have and none of *wanted*."""
    names = list(state)
    foreign = [common for common in _PREFIXES if not any(name.startswith(common) for name in wanted)]
    return next((common for common in foreign if names and all(name.startswith(common) for name in names)), None)


def _tied(wanted: Mapping[str, Any]) -> list[list[str]]:
    """Return the names that tensors have together; a file may have only one of them."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, held in wanted.items():
        if isinstance(held, Tensor) and (address := memory_address(held)):
            groups.setdefault((address, held.storage_offset(), held.shape, held.stride()), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _misfits(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return which names and shapes are not those of the model."""
    # Files from before torch 0.4.1 lack this counter; batch norm then starts it at 0, and inference never reads it.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {_size(held)} instead of {_size(own)}"
        for name, held, own in _both(state, wanted)
        if held.shape != own.shape
    ]
    return _told(("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))


def _other_types(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return what torch would load although its numbers are of another kind."""
    both = _both(state, wanted)
    types = [
        f"{n} {v.dtype} instead of {o.dtype}" for n, v, o in both if v.is_floating_point() != o.is_floating_point()
    ]
    return _told(("of another type", types))


def _both(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, Tensor, Tensor]]:
    pairs = [(name, state.get(name), own) for name, own in wanted.items()]
    return [(name, held, own) for name, held, own in pairs if isinstance(held, Tensor) and isinstance(own, Tensor)]


def _told(*lists: tuple[str, list[str]]) -> str:
    return "; ".join(f"{len(names)} {what}: {_list(names)}" for what, names in lists if names)


def _type(value: object) -> str:
    return f"an object of type {type(value).__name__}"


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _list(names: list[Any]) -> str:
    return ", ".join(map(str, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "") or "nothing"
