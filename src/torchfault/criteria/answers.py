"""What outputs say, for tables of trials: the class that they name, and by how much they moved."""

import torch
from torch import Tensor

from torchfault.criteria.compose import AllOf, AnyOf, Criterion, Not
from torchfault.criteria.failures import MarginDrop, Misclassified, Top1Change, TopK
from torchfault.criteria.outputs import count, flat, named, pick
from torchfault.data import Tree

__all__ = ["BY_CLASS", "answers", "changes", "parts_of"]

BY_CLASS = (Top1Change, TopK, MarginDrop, Misclassified)
"""The criteria that look at scores of classes."""


def parts_of(criterion: Criterion) -> list[Criterion]:
    """Return the criteria that *criterion* is composed of, from the last to the first.

    >>> len(parts_of(Top1Change() | ~Misclassified()))
    2
    """
    todo, parts = [criterion], list[Criterion]()
    while todo:
        part = todo.pop()
        if isinstance(part, AllOf | AnyOf):
            todo += part.parts
        elif isinstance(part, Not):
            todo.append(part.part)
        else:
            parts.append(part)
    return parts


def answers(criterion: Criterion, outputs: Tree) -> Tensor | None:
    """Return the class that *outputs* name in the scores that *criterion* looks at, int32 of shape (lanes,).

    It is ``None`` where a criterion looks at no scores, or at several positions in each lane.

    >>> answers(Top1Change(), torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
    tensor([1, 0], dtype=torch.int32)
    """
    for part in parts_of(criterion):
        if isinstance(part, BY_CLASS) and getattr(part, "threshold", None) is None:
            scores = pick(outputs, part.output)
            if scores.ndim == 2:
                return scores.nan_to_num(-torch.inf, torch.inf, -torch.inf).argmax(1).to(torch.int32)
    return None


def changes(golden: Tree, faulty: Tree) -> Tensor:
    """Return the largest absolute difference of any value of *faulty* from *golden*, float32 of shape (lanes,).

    It is infinite where a value became NaN.

    >>> changes(torch.zeros(2, 2), torch.tensor([[0.0, -3.0], [torch.nan, 0.0]]))
    tensor([3., inf])
    """
    largest = torch.zeros(count(golden))
    for (_, one), (_, two) in zip(named(golden), named(faulty), strict=True):
        if one[:1].numel():
            apart = (flat(two).to(torch.float64) - flat(one).to(torch.float64)).abs()
            apart = apart.where(flat(one) != flat(two), 0.0).nan_to_num(torch.inf, torch.inf)
            largest = torch.maximum(largest, apart.amax(1).to(torch.float32).cpu())
    return largest
