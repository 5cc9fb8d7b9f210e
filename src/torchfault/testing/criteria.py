"""The suite for criteria."""

import math

import torch
from torch import Tensor

from torchfault.criteria import Criterion
from torchfault.criteria.compose import verdict
from torchfault.criteria.outputs import count
from torchfault.data import Tree, leaves, map_tensors, rows
from torchfault.testing.rules import equal, hold, rule

__all__ = ["check_criterion"]


def check_criterion(
    criterion: Criterion, *, golden: Tree | None = None, faulty: Tree | None = None, labels: Tree | None = None
) -> None:
    """Raise AssertionError, naming the rule, where *criterion* is none; on the trees given, or on five-class scores.

    The rules: one bool per lane, also for no lanes; on the lanes given some fail and some do not; the verdict on a lane
    depends on that lane alone, not on its place or on the others; and no argument is altered.

    >>> from torchfault.criteria import MarginDrop
    >>> check_criterion(MarginDrop(0.5))
    """
    if golden is None or faulty is None:
        golden, faulty, labels = _examples()
    trees = golden, faulty, labels
    kept = [map_tensors(torch.clone, tree) for tree in trees]
    with rule(criterion, "it returns one bool per lane, also for no lanes"):
        said = verdict(criterion, *trees)
        _ask(criterion, trees, slice(0, 0))
    with rule(criterion, "it leaves its arguments as they are"):
        hold(all(map(equal, leaves(list(trees)), leaves(kept))), "a tensor was altered")
    with rule(criterion, "of the lanes given, some fail and some do not"):
        hold(said.any() and not said.all(), f"got {said.tolist()}")
    with rule(criterion, "the verdict on a lane depends on that lane alone"):
        alone = torch.cat([_ask(criterion, trees, slice(lane, lane + 1)) for lane in range(count(golden))])
        hold(torch.equal(alone, said), f"all together {said.tolist()}, one by one {alone.tolist()}")


def _ask(criterion: Criterion, trees: tuple[Tree, Tree, Tree], lanes: slice) -> Tensor:
    golden, faulty, labels = (rows(tree, lanes) for tree in trees)
    return verdict(criterion, golden, faulty, labels)


def _examples() -> tuple[Tensor, Tensor, Tensor]:
    """Return scores of eight lanes and five classes: masked, touched, swapped, reversed, tied and not finite ones."""
    golden = torch.tensor([[0.0, 1.0, 2.0, 3.0, 5.0]]).repeat(8, 1)
    faulty = golden.clone()
    faulty[1] += 1e-3
    faulty[2] = torch.tensor([0.0, 1.0, 2.0, 5.0, 3.0])
    faulty[3] = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.0])
    faulty[4] = 1.0
    faulty[5, 4], faulty[6, 0], faulty[7, 1] = math.nan, math.inf, -math.inf
    return golden, faulty, torch.tensor([4, 4, 3, 4, 0, 4, 4, 2])
