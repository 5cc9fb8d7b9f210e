"""What the checks of other libraries' models share: torchvision beside a CPU torch, and the slow reference."""

import torch
from torch import nn

from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.reference import reference
from torchfault.data import Data, leaves
from torchfault.engine.engine import Engine
from torchfault.engine.hooks.executor import HooksExecutor

# The registry's torchvision is a CUDA build: beside a CPU torch it has no operators, and its import wants their names.
_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _SCHEMAS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@torch.library.impl(_SCHEMAS, "nms", "CPU")
def _suppressed(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return which boxes are kept, the best first: non-maximum suppression as torchvision documents its own."""
    order, kept = scores.argsort(descending=True, stable=True), []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        low, high = torch.maximum(boxes[first, :2], boxes[rest, :2]), torch.minimum(boxes[first, 2:], boxes[rest, 2:])
        common = (high - low).clamp(min=0).prod(1)
        order = rest[~(common / (area[first] + area[rest] - common) > iou_threshold)]
    return torch.stack(kept) if kept else order


def agrees(model: nn.Module, data: Data, *, trials: int = 30, executor: str = "graph") -> Engine:
    """Run trials over all sites of *model* on *executor*, and hold every outcome against in-place edits."""
    engine = Engine(model.eval(), data)
    assert (engine.executor, engine.fallback) == (executor, None)
    assert HooksExecutor(model, data).space.digest() == engine.space.digest()
    drawn = random_trials(engine.space, len(data), trials)
    assert_agree(collect(engine, drawn), leaves(reference(model, data, drawn)))
    return engine


def tokens(rows: int, length: int, *, words: int = 50) -> torch.Tensor:
    """Return random token numbers, shape (rows, length)."""
    return torch.randint(0, words, (rows, length), generator=torch.Generator().manual_seed(1))


def images(rows: int, size: int) -> torch.Tensor:
    """Return random images, shape (rows, 3, size, size)."""
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(2))
