"""A hardened model in a file: its state, and the golden ranges that it was made with."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError, brief
from torchfault.files import unreadable
from torchfault.hardening.harden import Method, guards, harden
from torchfault.hardening.profile import Profile, Range

__all__ = ["load_hardened", "save_hardened"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PREFIX = "profile/"
_TENSORS = tuple(field.name for field in fields(Range) if field.name != "axis")
_LATER = ("whole", "steady")  # earlier files lack them: not known to be so, and not looked at


def save_hardened(model: nn.Module, path: str | Path, *, profile: Profile | None = None) -> None:
    """Write the state of a hardened *model* and the *profile* that it was hardened with, if any, to a safetensors file.

    Raises :class:`ModelError` where the file cannot be written.

    >>> import tempfile, torch
    >>> from torchfault.hardening import Ranges, profile
    >>> plain, data = nn.Sequential(nn.Linear(2, 2)), torch.rand(9, 2)
    >>> golden = profile(plain, data)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "safe.safetensors"
    ...     save_hardened(harden(plain, Ranges(), profile=golden), file, profile=golden)
    ...     again = load_hardened(nn.Sequential(nn.Linear(2, 2)), file, Ranges())
    >>> torch.equal(again(data), plain(data))
    True
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    profile = profile or Profile({})
    held = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    for name, found in profile.ranges.items():
        held |= {f"{_PREFIX}{name}/{part}": getattr(found, part).clone().contiguous() for part in _TENSORS}
    axes = {name: found.axis for name, found in profile.ranges.items()}
    told = {"axes": axes, "outer": dict(profile.outer), "inputs": profile.inputs, "reads": dict(profile.reads)}
    try:
        save_file(held, path, metadata={"torchfault_profile": json.dumps(told), "torchfault_guards": _guards(model)})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"'{path}' cannot be written: {brief(error)}; choose another place") from None


def load_hardened(model: nn.Module, path: str | Path, *methods: Method) -> nn.Module:
    """Return *model*, with whatever weights, hardened by *methods* as it was when :func:`save_hardened` wrote *path*.

    Raises :class:`ModelError` for a file that is none of those, or that is of another model or of other methods.
    """
    from safetensors import SafetensorError, safe_open

    if why := unreadable(path):
        raise ModelError(f"'{path}' {why}; give a file that save_hardened wrote")
    try:
        with safe_open(path, framework="pt") as opened:
            kept = opened.metadata() or {}
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"'{path}' is not a readable safetensors file: {brief(error)}") from None
    if "torchfault_profile" not in kept:
        raise ModelError(f"'{path}' holds no golden ranges; give a file that save_hardened wrote")
    try:
        golden = _profile(json.loads(kept["torchfault_profile"]), held)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"'{path}' holds golden ranges in part only ({brief(error)}); save it anew") from None
    safe = harden(model, *methods, profile=golden)
    state = {name: tensor for name, tensor in held.items() if not name.startswith(_PREFIX)}
    try:
        safe.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"'{path}' is of another model or of other methods: {brief(error)}") from None
    if kept.get("torchfault_guards", _guards(safe)) != _guards(safe):  # earlier files do not tell
        raise ModelError(f"'{path}' is of methods with other options than {', '.join(map(repr, methods))}; give those")
    return safe


def _guards(model: nn.Module) -> str:
    """Return what stands where in a hardened *model*, as text; in what order methods came is no difference."""
    return "\n".join(sorted(f"{path} {_ADDRESS.sub('', repr(guard))}" for path, _, guard in guards(model)))


def _profile(told: Mapping[str, Mapping[str, Any]], held: Mapping[str, Tensor]) -> Profile:
    def part(name: str, of: str) -> Tensor:
        key = f"{_PREFIX}{name}/{of}"
        return torch.tensor(False) if of in _LATER and key not in held else held[key]

    ranges = {name: Range(int(str(axis)), *(part(name, of) for of in _TENSORS)) for name, axis in told["axes"].items()}
    outer = {name: str(around) for name, around in told["outer"].items()}
    reads = {name: tuple(map(str, paths)) for name, paths in told.get("reads", {}).items()}
    return Profile(ranges, outer, int(str(told["inputs"])), reads)
