"""What a model keeps in a form that torchfault does not know: no fault can land there, and the user should know."""

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from torchfault.model.foreign import foreign, of_tensor
from torchfault.model.memory import homes
from torchfault.model.traits import word_name

__all__ = ["unseen"]


def unseen(model: nn.Module) -> dict[str, str]:
    """Return what in *model* has words that are no sites, and why, by the name of the parameter or attribute.

    These are parameters of a type or in a layout without a word format, and packed objects and quantised tensors that a
    module holds outside of its parameters and buffers.

    >>> unseen(nn.Linear(2, 1)), unseen(nn.ParameterList([torch.ones(2, dtype=torch.complex64)]))
    ({}, {'0': 'torch.complex64 (torch.strided) has no word format'})
    """
    kept = homes(model)
    replaced = {home.parameter for home in kept}
    found = {
        name: f"{parameter.dtype} ({parameter.layout}) has no word format"
        for name, parameter in model.named_parameters()
        if name not in replaced and not isinstance(parameter, UninitializedParameter) and not word_name(parameter)
    }
    owners, words = {home.module for home in kept if not home.parameter}, [name for home in kept for name in home.words]
    for path, module in model.named_modules():
        part = any(room.is_part(module) for room in foreign())
        part_of_known = part and any(path.startswith(f"{owner}.") or not owner for owner in owners)
        if part_of_known or (path in owners and not isinstance(module, fx.GraphModule)):
            continue
        for name, value in module.__dict__.items():
            full = f"{path}.{name}" if path else name
            if isinstance(value, torch.ScriptObject) and not any(word.startswith(f"{full}.") for word in words):
                found[full] = f"{type(module).__name__} holds a packed {str(value._type()).rpartition('.')[2]}"
            elif isinstance(value, Tensor) and of_tensor(value) is not None:
                found[full] = f"{type(module).__name__} holds a tensor of codes outside of parameters and buffers"
    return found
