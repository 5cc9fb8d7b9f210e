"""Checkpoints: trained weights read without running code, matched to a model, and every misfit told in one line."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError, did_you_mean

__all__ = ["load_checkpoint", "read_checkpoint"]

_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_NAMED = 3
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save before 1.6 begin


def load_checkpoint(model: nn.Module, path: str | Path, *, key: str | None = None, prefix: str | None = None) -> None:
    """Copy the weights in the file at *path* into *model*; every name and every shape must fit.

    *key* says where the weights stand in the file (parts separated by dots) and *prefix* what their names begin with;
    both are found without help where they are common ones. Raises :class:`ModelError` with the first names that misfit.

    >>> import tempfile
    >>> model = nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weights = {"module.weight": torch.ones(1, 2), "module.bias": torch.zeros(1)}
    ...     torch.save({"state_dict": weights}, f"{folder}/a.pt")
    ...     load_checkpoint(model, f"{folder}/a.pt")
    >>> model.weight.tolist()
    [[1.0, 1.0]]
    """
    state = _stripped(read_checkpoint(path, key=key), model, prefix, path)
    _check(state, model.state_dict(), path)
    model.load_state_dict(state)


def read_checkpoint(path: str | Path, *, key: str | None = None) -> dict[str, Tensor]:
    """Return the named tensors in the file at *path*, a ``.safetensors`` file or one that ``torch.save`` wrote.

    Raises :class:`ModelError` for a file that is missing, broken, or holds Python objects that could run code.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ModelError(f"the checkpoint '{path}' {what}; give a .pt, .pth or .safetensors file")
    held = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
    state = _inner(held, key, file)
    wrong = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise ModelError(f"'{file.name}' holds {_type(state[wrong])} under '{wrong}', where a tensor should be")
    return {str(name): value for name, value in state.items()}


def _safetensors(file: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"'{file.name}' is not a readable safetensors file: {str(error).splitlines()[0]}") from None


def _pickled(file: Path) -> Any:
    with file.open("rb") as opened:
        start = opened.read(len(_LEGACY))
    if start.startswith(b"\x80") and start != _LEGACY:
        raise ModelError(
            f"'{file.name}' is a plain pickle, and loading it could run code; save model.state_dict() with torch.save"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if "TorchScript" in str(error):
            raise ModelError(f"'{file.name}' is a TorchScript program; save the model's state_dict() instead") from None
        if isinstance(error, pickle.UnpicklingError) and (start == _LEGACY or start.startswith(b"PK")):
            raise ModelError(
                f"'{file.name}' holds more than tensors, such as a pickled model, and loading it could run code; "
                f"save model.state_dict() with torch.save instead"
            ) from None
        raise ModelError(f"'{file.name}' is not a checkpoint that torch.save wrote, or it is cut short") from None


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


def _stripped(state: dict[str, Tensor], model: nn.Module, prefix: str | None, path: str | Path) -> dict[str, Tensor]:
    """Take away what every name begins with and the model's names do not."""
    if prefix:
        if not any(name.startswith(prefix) for name in state):
            names = _list(list(state))
            raise ModelError(f"no name in '{Path(path).name}' begins with '{prefix}'; they look like {names}")
        return {name.removeprefix(prefix): value for name, value in state.items()}
    wanted = model.state_dict().keys()
    while prefix is None and (common := _shared_prefix(state, wanted)):
        state = {name.removeprefix(common): value for name, value in state.items()}
    return state


def _shared_prefix(state: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Return the usual prefix that all names of *state* have and none of *wanted*."""
    names = list(state)
    foreign = [common for common in _PREFIXES if not any(name.startswith(common) for name in wanted)]
    return next((common for common in foreign if names and all(name.startswith(common) for name in names)), None)


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path) -> None:
    # Files from before torch 0.4.1 lack this counter; batch norm then starts it at 0, and inference never reads it.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    both = [name for name in wanted if name in state]
    shapes = [
        f"{name} {_size(state[name])} instead of {_size(wanted[name])}"
        for name in both
        if state[name].shape != wanted[name].shape
    ]
    types = [
        f"{name} {state[name].dtype} instead of {wanted[name].dtype}"
        for name in both
        if state[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes), ("of another type", types))
    misfits = "; ".join(f"{len(names)} {what}: {_list(names)}" for what, names in lists if names)
    if misfits:
        raise ModelError(f"'{Path(path).name}' does not fit the model: {misfits}")


def _type(value: object) -> str:
    return f"an object of type {type(value).__name__}"


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _list(names: list[Any]) -> str:
    return ", ".join(map(str, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "") or "nothing"
