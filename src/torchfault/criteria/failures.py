"""The criteria: top-1 change, top-k, misclassified, margin drop, output error, non-finite."""

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from torchfault.criteria.compose import Composable, bad_lanes
from torchfault.criteria.outputs import check_share, enough, flat, newly_bad, pick, score, sides, target
from torchfault.data import Tree
from torchfault.errors import CriterionError

__all__ = ["MarginDrop", "Misclassified", "NonFinite", "OutputError", "Top1Change", "TopK"]

_NORMS = {"max": math.inf, "l2": 2.0}


@dataclass(frozen=True, kw_only=True)
class Top1Change(Composable):
    """The class with the highest score is another one than in the golden output; ties go to the lowest class.

    *output* names the scores among several outputs and *axis* their classes, where there are more than two axes (1
    for segmentation (N, C, H, W), -1 for tokens (N, T, C)). A lane then fails if any position changed, or at
    least the given *share* of its positions. A position with a new NaN or infinity has changed.

    >>> golden = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    >>> Top1Change()(golden, torch.tensor([[0.2, 0.7], [0.3, 0.4]]), None)
    tensor([False,  True])
    """

    axis: int | None = None
    share: float = 0.0
    output: str | int | None = None

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the top class changed, shape (lanes,)."""
        del labels
        before, after, bad = _pair(golden, faulty, self.output, self.axis)
        return enough(bad | (before.argmax(-1) != after.argmax(-1)), self.share)


@dataclass(frozen=True)
class TopK(Composable):
    """The golden top class is no longer among the *k* best (SDC-k of Li et al., SC 2017, section 4.1).

    *axis*, *share* and *output* are those of :class:`Top1Change`; ``TopK(1)`` is the same criterion. Raises
    :class:`CriterionError` where *k* admits every class.

    >>> TopK(2)(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[2.0, 3.0, 4.0]]), None)
    tensor([True])
    """

    k: int
    _: KW_ONLY
    axis: int | None = None
    share: float = 0.0
    output: str | int | None = None

    def __post_init__(self) -> None:
        check_share(self.share)
        if self.k < 1:
            raise CriterionError(f"the best k classes are at least one, got k = {self.k}")

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the golden class left the best *k*, shape (lanes,)."""
        del labels
        before, after, bad = _pair(golden, faulty, self.output, self.axis)
        if self.k >= after.shape[-1]:
            raise CriterionError(f"the best {self.k} of {after.shape[-1]} classes are all of them; use a smaller k")
        top = before.argmax(-1, keepdim=True)
        own = after.gather(-1, top)
        classes = torch.arange(after.shape[-1], device=after.device)
        ahead = (after > own) | ((after == own) & (classes < top))
        return enough(bad | (ahead.sum(-1) >= self.k), self.share)


@dataclass(frozen=True, kw_only=True)
class Misclassified(Composable):
    """The faulty output has another top class than the label, whatever golden said.

    *axis*, *share* and *output* are those of :class:`Top1Change`; *label* names the class numbers among several labels,
    and positions labelled *ignore* do not count. With a *threshold* the output is one value for each label, 0 or 1,
    and says 1 above it: 0 for logits, 0.5 for probabilities, of one decision or of many labels at once. Raises
    :class:`CriterionError` where there are no such labels.

    >>> Misclassified()(torch.zeros(2, 3), torch.eye(3)[:2], torch.tensor([0, 2]))
    tensor([False,  True])
    """

    axis: int | None = None
    share: float = 0.0
    output: str | int | None = None
    label: str | int | None = None
    ignore: int = -100
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the decision is not the label, shape (lanes,)."""
        if self.threshold is not None:
            before, value = pick(golden, self.output), pick(faulty, self.output)
            wanted, counts = sides(value, labels, label=self.label, ignore=self.ignore)
            bad = flat(newly_bad(before, value) | value.isnan())
            return enough((bad | (flat(value > self.threshold) != wanted)) & counts, self.share, of=counts.sum(1))
        _, after, bad = _pair(golden, faulty, self.output, self.axis)
        scores = score(faulty, output=self.output, axis=self.axis)
        right, counts = target(labels, scores, label=self.label, ignore=self.ignore)
        wrong = bad | after.isnan().any(-1) | (after.argmax(-1) != right)
        return enough(wrong & counts, self.share, of=counts.sum(1))


@dataclass(frozen=True)
class MarginDrop(Composable):
    """The golden class's lead over the best other class shrank by more than *threshold*, in units of the scores.

    A change of the top class need not be a large drop, nor the other way round. *axis*, *share* and *output* are those
    of :class:`Top1Change`; a new NaN or infinity counts as a drop.

    >>> MarginDrop(1.0)(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([[2.5, 0.0], [2.0, 0.5]]), None)
    tensor([False,  True])
    """

    threshold: float
    _: KW_ONLY
    axis: int | None = None
    share: float = 0.0
    output: str | int | None = None

    def __post_init__(self) -> None:
        check_share(self.share)
        _check_threshold(self.threshold)

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the margin fell by more than the threshold, shape (lanes,)."""
        del labels
        before, after, bad = _pair(golden, faulty, self.output, self.axis)
        top = before.argmax(-1, keepdim=True)
        drop = _margin(before, top) - _margin(after, top)
        return enough(bad | (drop > self.threshold), self.share)


@dataclass(frozen=True)
class OutputError(Composable):
    """The output moved by more than *threshold* relative to its golden size: ||faulty - golden|| / ||golden||.

    *norm* is ``max`` (largest absolute value) or ``l2``, over all values of the lane; *output* names one of several
    outputs, of any shape. A change from an all-zero output counts as infinite, a new NaN or infinity too.

    >>> OutputError(0.1)(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[1.1, 2.1], [1.5, 2.0]]), None)
    tensor([False,  True])
    """

    threshold: float
    norm: str = "max"
    _: KW_ONLY
    output: str | int | None = None

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)
        if self.norm not in _NORMS:
            raise CriterionError(f"the norm of an output error is one of {list(_NORMS)}, got {self.norm!r}")

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the relative error exceeds the threshold, shape (lanes,)."""
        del labels
        before, after = pick(golden, self.output), pick(faulty, self.output)
        bad = flat(newly_bad(before, after)).any(1)
        wide = torch.complex128 if before.is_complex() else torch.float64
        before, after = flat(before.to(wide)), flat(after.to(wide))
        same = (before == after) | (before.isnan() & after.isnan())
        # What is not finite in both is no difference, and no part of the golden size either.
        moved = torch.where(same, 0.0, (after - before).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
        size = torch.where(before.isfinite(), before.abs(), 0.0)
        error: Tensor = torch.linalg.vector_norm(moved, _NORMS[self.norm], dim=1)
        scale: Tensor = torch.linalg.vector_norm(size, _NORMS[self.norm], dim=1)
        return bad | (error > self.threshold * scale)


@dataclass(frozen=True, kw_only=True)
class NonFinite(Composable):
    """Some output value is NaN or infinite where golden is not: a failure that can be detected without a reference.

    All outputs are looked at, or the one called *output*.

    >>> NonFinite()(torch.zeros(2, 2), torch.tensor([[0.0, torch.inf], [5.0, 5.0]]), None)
    tensor([ True, False])
    """

    output: str | int | None = None

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where a NaN or an infinity appeared, shape (lanes,)."""
        del labels
        if self.output is None:
            return bad_lanes(golden, faulty)
        return bad_lanes(pick(golden, self.output), pick(faulty, self.output))


def _pair(golden: Tree, faulty: Tree, output: str | int | None, axis: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return golden and faulty scores, (lanes, positions, classes), and the positions gone bad, (lanes, positions).

    Where those are, no comparison of scores means anything: the maximum of a row with a NaN is that NaN.
    """
    before, after = (score(tree, output=output, axis=axis).values for tree in (golden, faulty))
    return before, after, newly_bad(before, after).any(-1)


def _margin(scores: Tensor, top: Tensor) -> Tensor:
    own = scores.gather(-1, top).squeeze(-1).double()
    lowest = -math.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).min
    return own - scores.scatter(-1, top, lowest).amax(-1).double()


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < math.inf:
        raise CriterionError(f"a threshold is a finite number from 0 up, got {threshold}")
