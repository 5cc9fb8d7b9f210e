"""Run a model without leaving a trace in it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Run *model* in this scope without gradients and without a trace: buffers, attributes and random state come back.

    Yields a function that tells whether the model has changed its own state since the scope was entered.

    >>> norm = nn.BatchNorm1d(2).train()
    >>> with undisturbed(norm) as changed:
    ...     _ = norm(torch.randn(4, 2))
    ...     changed()
    True
    >>> int(norm.num_batches_tracked)
    0
    """
    attributes = [(module, dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    contents = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    def changed() -> bool:
        moved = any(
            _differ(module.__dict__, before) or _differ(module._buffers, buffers)
            for module, before, buffers in attributes
        )
        return moved or not all(_same_bits(buffer, content) for buffer, content in contents)

    cuda = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            yield changed
    finally:
        for module, before, buffers in attributes:
            _restore(module.__dict__, before)
            _restore(module._buffers, buffers)
        for buffer, content in contents:
            if not _same_bits(buffer, content):
                buffer.data.copy_(content)


def _differ(now: Mapping[str, object], before: Mapping[str, object]) -> bool:
    return now.keys() != before.keys() or any(now[name] is not value for name, value in before.items())


def _restore(now: dict[str, Any], before: Mapping[str, object]) -> None:
    if _differ(now, before):
        now.clear()
        now.update(before)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree; a NaN does not agree with itself here, which only costs a copy."""
    return bool(torch.equal(a, b))
