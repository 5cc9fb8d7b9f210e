"""The criteria of outputs that are no class scores: values on one side of a threshold, generated tokens."""

import math
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from torchfault.criteria.compose import Composable
from torchfault.criteria.outputs import check_share, enough, flat, newly_bad, pick
from torchfault.data import Tree
from torchfault.errors import CriterionError

__all__ = ["ThresholdChange", "TokenChange"]


@dataclass(frozen=True)
class ThresholdChange(Composable):
    """Some value lies on the other side of *threshold* than in the golden output.

    For one logit the threshold is 0, for one probability 0.5; of several values, such as the logits of many labels, a
    lane fails if any changed sides, or at least the given *share* of them. *output* names one of several outputs. A
    new NaN or infinity has changed.

    >>> import torch
    >>> ThresholdChange()(torch.tensor([[0.3], [-1.0]]), torch.tensor([[0.1], [2.0]]), None)
    tensor([False,  True])
    """

    threshold: float = 0.0
    _: KW_ONLY
    share: float = 0.0
    output: str | int | None = None

    def __post_init__(self) -> None:
        check_share(self.share)
        if not math.isfinite(self.threshold):
            raise CriterionError(f"a threshold to lie above is a finite number, got {self.threshold}; use 0 for logits")

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where a value changed sides, shape (lanes,)."""
        del labels
        before, after = (pick(tree, self.output) for tree in (golden, faulty))
        if not before.is_floating_point():
            raise CriterionError(
                f"a threshold is for floating-point values, got {before.dtype}; compare whole numbers with TokenChange"
            )
        bad = newly_bad(before, after)
        return enough(flat(bad | ((before > self.threshold) != (after > self.threshold))), self.share)


@dataclass(frozen=True)
class TokenChange(Composable):
    """Some token is another one than in the golden output: the generated sequences are no exact match.

    With *share*, at least that share of the lane's tokens. *output* names one of several outputs, of whole numbers.

    >>> import torch
    >>> TokenChange()(torch.tensor([[5, 7], [5, 7]]), torch.tensor([[5, 7], [5, 8]]), None)
    tensor([False,  True])
    """

    share: float = 0.0
    _: KW_ONLY
    output: str | int | None = None

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where a token changed, shape (lanes,)."""
        del labels
        before, after = (pick(tree, self.output, usual="sequences") for tree in (golden, faulty))
        if before.is_floating_point() or before.is_complex():
            raise CriterionError(
                f"tokens are whole numbers, got {before.dtype} of shape {tuple(before.shape)}; compare values with "
                "OutputError, and the tokens that scores choose with Top1Change(axis=-1)"
            )
        return enough(flat(newly_bad(before, after) | (before != after)), self.share)
