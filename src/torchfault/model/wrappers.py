"""The module that can be struck: the one behind a compiled one, none that runs as a TorchScript program; its copy."""

import copy
import re

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError

__all__ = ["copied", "unwrapped"]

_ROLE = re.compile(r":|@(?=\d)")  # what begins a role (conv1:input), or the number of a call (relu@1)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return *model*, or the module behind it where ``torch.compile`` made it.

    Raises :class:`ModelError` for what is no module, for what runs past its modules (a ScriptModule, or a compiled
    module inside another one), and for names that no site can have.

    >>> unwrapped(nn.ReLU)
    Traceback (most recent call last):
    torchfault.errors.ModelError: a model is a torch.nn.Module, got an object of type type; wrap a function in one
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a model is a torch.nn.Module, got an object of type {type(model).__name__}; wrap a function in one"
        )
    while isinstance(behind := getattr(model, "_orig_mod", None), nn.Module):
        model = behind
    for path, module in model.named_modules():
        what = f"'{path}'" if path else type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{what} is a ScriptModule, a program that cannot be struck while it runs; give the module that it "
                "was scripted or traced from, with its state_dict()"
            )
        if module._compiled_call_impl is not None or (path and "_orig_mod" in module._modules):
            raise ModelError(
                f"{what} is compiled, and what runs is no longer its modules; give the model as it was before compile()"
            )
    for path in dict.fromkeys((*dict(model.named_modules()), *dict(model.named_parameters()))):
        if found := _ROLE.search(path):
            raise ModelError(f"'{path}' has '{found[0]}' in its name, which parts the names of sites; rename it")
    return model


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of *model*, also where it holds tensors that were computed, as pruning and neurons leave them.

    >>> layer = nn.Linear(2, 2)
    >>> layer.register_buffer("kept", layer(torch.ones(2)))
    >>> torch.equal(copied(layer).kept, layer.kept)
    True
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for held in (*module.__dict__.values(), *module._buffers.values()):
            if isinstance(held, Tensor) and held.grad_fn is not None:
                memo[id(held)] = held.detach().clone()
    return copy.deepcopy(model, memo)
