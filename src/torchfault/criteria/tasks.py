"""The criteria of language models, detectors and segmenters: perplexity rise, box change, mask change."""

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from torchfault.criteria.compose import Composable
from torchfault.criteria.metrics import surprise
from torchfault.criteria.outputs import newly_bad, pick, score, target
from torchfault.data import Tree
from torchfault.errors import CriterionError

__all__ = ["BoxChange", "MaskChange", "PerplexityRise"]

_FORMS = ("xyxy", "xywh", "cxcywh")


@dataclass(frozen=True)
class PerplexityRise(Composable):
    """The perplexity of the lane's labelled tokens is more than *ratio* times the golden one.

    Scores are (N, T, tokens), labels (N, T); *shift*, *output*, *label* and *ignore* are those of
    :func:`torchfault.criteria.perplexity`. A NaN or an infinity among the scores of a labelled token is an infinite
    perplexity; a lane without labelled tokens never fails.

    >>> golden = torch.tensor([[[0.0, 2.0]], [[0.0, 2.0]]])
    >>> PerplexityRise(1.5)(golden, torch.tensor([[[0.0, 1.9]], [[3.0, 2.0]]]), torch.tensor([[1], [1]]))
    tensor([False,  True])
    """

    ratio: float
    _: KW_ONLY
    shift: bool = False
    output: str | int | None = None
    label: str | int | None = None
    ignore: int = -100

    def __post_init__(self) -> None:
        if not 1 <= self.ratio < math.inf:
            raise CriterionError(f"a rise of the perplexity is a ratio of 1 or more, got {self.ratio}")

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the perplexity rose beyond the ratio, shape (lanes,)."""
        before, after = (self._surprise(tree, labels) for tree in (golden, faulty))
        return (after > before + math.log(self.ratio)) | after.isnan() & ~before.isnan()

    def _surprise(self, tree: Tree, labels: Tree | None) -> Tensor:
        scores = score(tree, output=self.output, axis=-1)
        right, counts = target(labels, scores, label=self.label, ignore=self.ignore)
        values = scores.values
        if self.shift:
            values, right, counts = values[:, :-1], right[:, 1:], counts[:, 1:]
        each = torch.where(counts, surprise(values, right.where(counts, 0)), 0.0)
        return each.sum(1) / counts.sum(1).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class BoxChange(Composable):
    """The detections changed: one has no partner of its class, overlapping by at least *iou*, on the other side.

    So a missed, a new, a moved and a relabelled box all fail. *boxes* names the output (N, K, 4) of boxes in the *form*
    ``xyxy``, ``xywh`` or ``cxcywh``, and *scores* that of their scores: (N, K, classes), where a detection is a box
    whose best class is not *background* and has a score of at least *threshold*; or (N, K), with the classes in the
    output *labels* (all the same without one). A detection with a new NaN or infinity has changed. Intersection over
    union is that of Everingham et al., "The PASCAL VOC Challenge", IJCV 2010, section 4.2, which asks for one half.

    >>> golden = {"boxes": torch.tensor([[[0.0, 0.0, 4.0, 4.0]]] * 2), "scores": torch.tensor([[0.9]] * 2)}
    >>> moved = {"boxes": torch.tensor([[[0.0, 0.0, 4.0, 3.0]], [[3.0, 0.0, 7.0, 4.0]]]), "scores": golden["scores"]}
    >>> BoxChange(threshold=0.5)(golden, moved, None)
    tensor([False,  True])
    """

    iou: float = 0.5
    threshold: float = -math.inf
    form: str = "xyxy"
    background: int | None = None
    boxes: str | int = "boxes"
    scores: str | int = "scores"
    labels: str | int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise CriterionError(f"boxes overlap by a share above 0 and up to 1, got iou = {self.iou}")
        if self.form not in _FORMS:
            raise CriterionError(f"the form of boxes is one of {', '.join(_FORMS)}, got {self.form!r}")

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where some detection has no partner, shape (lanes,)."""
        del labels
        (one, kind, there), (two, sort, here) = self._detections(golden), self._detections(faulty)
        partner = (_overlap(one, two) >= self.iou) & (kind[:, :, None] == sort[:, None, :])
        partner &= there[:, :, None] & here[:, None, :]
        alone = (there & ~partner.any(2)).any(1) | (here & ~partner.any(1)).any(1)
        # A score that turned NaN detects nothing, and its box is missed only if golden had one there.
        bad = [newly_bad(pick(golden, name), pick(faulty, name)) for name in (self.boxes, self.scores)]
        lost = bad[0].any(-1) | (bad[1] if bad[1].ndim == 2 else bad[1].any(-1))
        return alone | (lost & (there | here)).any(1)

    def _detections(self, tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Return corners (N, K, 4), classes (N, K), and which are detections (N, K)."""
        boxes, scores = pick(tree, self.boxes).double(), pick(tree, self.scores)
        if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.ndim not in (2, 3) or scores.shape[:2] != boxes.shape[:2]:
            raise CriterionError(
                "expected boxes of shape (N, K, 4) and scores of shape (N, K) or (N, K, classes), got "
                f"{tuple(boxes.shape)} and {tuple(scores.shape)}; name the outputs with boxes= and scores="
            )
        if scores.ndim == 2:
            kind = torch.zeros_like(scores, dtype=torch.int64) if self.labels is None else pick(tree, self.labels)
            return _corners(boxes, self.form), kind, scores >= self.threshold
        best, kind = scores.max(-1)
        found = best >= self.threshold
        if self.background is not None:
            found &= kind != self.background % scores.shape[2]
        return _corners(boxes, self.form), kind, found


@dataclass(frozen=True, kw_only=True)
class MaskChange(Composable):
    """The predicted masks overlap the golden ones by less than *iou*, on average over the classes.

    Scores have their classes along *axis* (N, C, H, W). The average is over the classes that either side predicts in
    the lane: Long et al., "Fully Convolutional Networks", CVPR 2015, section 5 (mean IU), with the golden masks in the
    place of the labels. A position with a new NaN or infinity is predicted as no class.

    >>> golden = torch.tensor([[[0.9, 0.2, 0.3], [0.1, 0.8, 0.7]]]).repeat(2, 1, 1)
    >>> faulty = golden.clone()
    >>> faulty[1, 0, 1] = 1.0
    >>> MaskChange(iou=0.75)(golden, faulty, None)
    tensor([False,  True])
    """

    iou: float = 0.5
    axis: int = 1
    output: str | int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise CriterionError(f"masks overlap by a share above 0 and up to 1, got iou = {self.iou}")

    def __call__(self, golden: Tree, faulty: Tree, labels: Tree | None, /) -> Tensor:
        """Return where the mean overlap fell below the bound, shape (lanes,)."""
        del labels
        before, after = (score(tree, output=self.output, axis=self.axis).values for tree in (golden, faulty))
        classes = before.shape[-1]
        one, two = before.argmax(-1), after.argmax(-1).where(~newly_bad(before, after).any(-1), classes)
        sizes = [_sizes(mask, classes + 1)[:, :classes] for mask in (one, two, one.where(one == two, classes))]
        union = sizes[0] + sizes[1] - sizes[2]
        shares = torch.where(union > 0, sizes[2].double() / union.clamp(min=1), 0.0)
        return shares.sum(1) / (union > 0).sum(1).clamp(min=1) < self.iou


def _sizes(mask: Tensor, classes: int) -> Tensor:
    """Return how many positions of each lane have each class, shape (lanes, classes)."""
    return torch.zeros(len(mask), classes, dtype=torch.int64, device=mask.device).scatter_add_(
        1, mask, torch.ones_like(mask)
    )


def _corners(boxes: Tensor, form: str) -> Tensor:
    """Return the corners x1, y1, x2, y2 of *boxes* in the given form."""
    if form == "xyxy":
        return boxes
    place, size = boxes[..., :2], boxes[..., 2:]
    first = place if form == "xywh" else place - size / 2
    return torch.cat((first, first + size), -1)


def _overlap(one: Tensor, two: Tensor) -> Tensor:
    """Return the intersection over union of all pairs of boxes in a lane, (lanes, boxes, boxes); NaN is no overlap."""
    first, second = one[:, :, None], two[:, None, :]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    common = sides.clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    union = areas[0] + areas[1] - common
    # Two boxes of no area are one only if they are the same.
    same = (first == second).all(-1)
    return torch.where(same, 1.0, common / union.where(union > 0, 1.0)).nan_to_num(nan=0.0)
