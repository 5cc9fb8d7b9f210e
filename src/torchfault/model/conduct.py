"""How a model conducts itself when it runs: on how many inputs, by their values or not, changing itself or not."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchfault.data import Tree, call, rows
from torchfault.errors import ModelError, first_line
from torchfault.model.decisions import Decisions
from torchfault.model.disturb import plain_kernels, reset_states, undisturbed
from torchfault.model.foreign import of_tensor
from torchfault.model.traits import word_name

__all__ = ["Conduct", "conduct_of"]


@dataclass(frozen=True)
class Conduct:
    """Whether a model runs on one input *alone*, and by what it *decides* what to compute, empty where it does not."""

    alone: bool = False
    decides: str = ""


def conduct_of(model: nn.Module, inputs: Tree) -> Conduct:
    """Return how *model* conducts itself on a few *inputs*; it is left as it was.

    Raises :class:`ModelError` where it fails even on one of them, or changes weights of its own by running: a fault in
    them would not last, and golden would depend on how often the model has run.

    >>> conduct_of(nn.Linear(3, 2), torch.zeros(3, 3))
    Conduct(alone=False, decides='')
    """
    before = {name: _digest(tensor) for name, tensor in model.named_parameters()}
    found = _run(model, inputs)
    changed = [name for name, tensor in model.named_parameters() if _digest(tensor) != before[name]]
    if changed:
        raise ModelError(
            f"{type(model).__name__} changes its own '{changed[0]}' whenever it runs; compute the changed weight into "
            "another tensor, or freeze it before faults are injected"
        )
    return found


def _run(model: nn.Module, inputs: Tree) -> Conduct:
    failed: Exception | None = None
    for some, alone in ((inputs, False), (rows(inputs, slice(0, 1)), True)):
        with undisturbed(model), plain_kernels(), Decisions() as decisions:
            reset_states(model)
            try:
                call(model, some)
            except ModelError:
                raise
            except Exception as error:
                failed = failed or error
                continue
        return Conduct(alone, decisions.seen)
    assert failed is not None
    raise ModelError(
        f"{type(model).__name__} must run on batches of 3 and fewer of the inputs, got "
        f"{type(failed).__name__}: {first_line(failed)}; check the inputs"
    ) from failed


def _digest(tensor: Tensor) -> int:
    """Return a number that changes, but for chance, with any word of *tensor*."""
    if type(tensor) not in (Tensor, nn.Parameter) or not word_name(tensor) or of_tensor(tensor) is not None:
        return 0
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().reshape(-1).view(whole).sum(dtype=torch.int64))
