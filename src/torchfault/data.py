"""Inputs and labels: any tree of tensors whose first axis counts the inputs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchfault.errors import DataError

__all__ = ["Data", "Tree", "call", "concatenate", "leaves", "map_tensors", "rows"]

Tree = Any
"""A tensor, or tuples, lists, dictionaries and model-output classes of trees."""


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Return *tree* with *function* applied to every tensor; other leaves stay.

    >>> map_tensors(lambda t: t + 1, {"x": torch.zeros(2), "flag": True})
    {'x': tensor([1., 1.]), 'flag': True}
    """
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def leaves(tree: Tree) -> list[Tensor]:
    """Return the tensors of *tree*, in a fixed order.

    >>> [t.shape[0] for t in leaves((torch.zeros(3), {"a": torch.zeros(4)}, None))]
    [3, 4]
    """
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def rows(tree: Tree, index: Tensor | slice) -> Tree:
    """Return the rows *index* of every tensor of *tree*.

    >>> rows((torch.arange(4), "same"), slice(1, 3))
    (tensor([1, 2]), 'same')
    """
    return map_tensors(lambda leaf: leaf[index], tree)


def concatenate(trees: Sequence[Tree]) -> Tree:
    """Return the rows of several trees of one structure, one after the other.

    >>> concatenate([{"y": torch.zeros(1)}, {"y": torch.ones(1)}])
    {'y': tensor([0., 1.])}
    """
    if len(trees) == 1:
        return trees[0]
    flat = [pytree.tree_flatten(tree) for tree in trees]
    columns = zip(*(leaf for leaf, _ in flat), strict=True)
    joined = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    return pytree.tree_unflatten(joined, flat[0][1])


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs of a model, and labels where there are any.

    *inputs* is a tensor, a tuple (positional arguments) or a dictionary (keyword arguments); the first axis of every
    tensor in it counts the inputs. Other mappings, such as what tokenizers give, become dictionaries. *labels* is a
    tensor or a tree with the same first axis. Raises :class:`DataError` where the counts disagree or there is no input.

    >>> data = Data(torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))
    >>> len(data), len(data.take(slice(0, 2)))
    (5, 2)
    """

    inputs: Tree
    labels: Tree | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", _in_dictionaries(self.inputs))
        object.__setattr__(self, "labels", _in_dictionaries(self.labels))
        tensors = leaves(self.inputs)
        if not tensors or any(t.ndim == 0 for t in tensors):
            raise DataError("inputs need at least one tensor, each with a first axis that counts the inputs")
        counts = {int(t.shape[0]) for t in (*tensors, *leaves(self.labels))}
        if len(counts) != 1 or not counts.pop():
            shapes = [tuple(t.shape) for t in (*tensors, *leaves(self.labels))]
            raise DataError(f"inputs and labels need the same first axis, of 1 or more, got shapes {shapes}")

    def __len__(self) -> int:
        return int(leaves(self.inputs)[0].shape[0])

    def take(self, index: Tensor | slice) -> "Data":
        """Return the inputs and labels at *index*."""
        return Data(rows(self.inputs, index), rows(self.labels, index))

    def to(self, device: torch.device | str) -> "Data":
        """Return the same data on *device*."""
        move = lambda leaf: leaf.to(device)  # noqa: E731
        return Data(map_tensors(move, self.inputs), map_tensors(move, self.labels))

    def digest(self) -> str:
        """Return a SHA-256 over types, shapes and bytes of all tensors."""
        digest = hashlib.sha256()
        for leaf in (*leaves(self.inputs), *leaves(self.labels)):
            plain = leaf.detach().cpu().contiguous()
            digest.update(repr((str(plain.dtype), tuple(plain.shape))).encode())
            digest.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
        return digest.hexdigest()


def _in_dictionaries(tree: Tree) -> Tree:
    """Return *tree* with plain dictionaries for mappings whose parts torch does not know."""

    def plain(leaf: object) -> object:
        if not isinstance(leaf, Mapping):
            return leaf
        return {str(name): _in_dictionaries(part) for name, part in leaf.items()}

    return pytree.tree_map(plain, tree)


def call(model: nn.Module | Callable[..., Tree], inputs: Tree, *, copied: bool = True) -> Tree:
    """Return ``model(inputs)``, with a tuple given as positional and a dictionary as keyword arguments.

    The model gets copies of the tensors unless told: it may write into what it is given. What is no
    :class:`Exception`, as ``sys.exit`` raises it, becomes a :class:`RuntimeError`: it is an error of the model's.

    >>> ones = torch.ones(1)
    >>> call(torch.Tensor.add_, (ones, ones)), ones
    (tensor([2.]), tensor([1.]))
    """
    inputs = map_tensors(torch.clone, inputs) if copied else inputs
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    except BaseException as ended:
        if isinstance(ended, Exception | KeyboardInterrupt):
            raise
        raise RuntimeError(f"the model raised {ended!r}, which would end the process") from ended
