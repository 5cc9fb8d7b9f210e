"""Criteria of language models, detectors and segmenters, against plain loops and other libraries."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch.nn import functional as F

from torchfault.criteria import BoxChange, MaskChange, PerplexityRise, perplexity
from torchfault.errors import CriterionError


def overlap(a: list[float], b: list[float]) -> float:
    """Return the intersection over union of two boxes by counting, for whole-numbered corners."""
    cells = [{(x, y) for x in range(int(c[0]), int(c[2])) for y in range(int(c[1]), int(c[3]))} for c in (a, b)]
    return len(cells[0] & cells[1]) / max(len(cells[0] | cells[1]), 1)


def turn(corners: torch.Tensor, form: str) -> torch.Tensor:
    first, last = corners[..., :2], corners[..., 2:]
    return torch.cat((first if form == "xywh" else (first + last) / 2, last - first), -1)


def paired(one: list, two: list, iou: float) -> bool:
    return all(any(k == j and overlap(a, b) >= iou for b, j in two) for a, k in one)


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.9])
def test_boxes_change_as_counting_cells_says(iou: float, rng: np.random.Generator) -> None:
    corner = rng.integers(0, 8, (300, 3, 2))
    golden = np.concatenate((corner, corner + rng.integers(1, 8, (300, 3, 2))), 2)
    shift = rng.integers(-1, 2, (300, 3, 4)) * (rng.random((300, 1, 1)) < 0.7)
    faulty = np.maximum(golden + shift, 0)
    faulty[..., 2:] = np.maximum(faulty[..., 2:], faulty[..., :2] + 1)
    kinds = rng.integers(0, 2, (300, 3)), rng.integers(0, 2, (300, 3))
    kinds = kinds[0], np.where(rng.random((300, 3)) < 0.9, *kinds)
    scores = rng.random((2, 300, 3))
    scores[1] = np.where(rng.random((300, 3)) < 0.9, *scores)
    sides, trees = [], []
    for boxes, kind, score in zip((golden, faulty), kinds, scores, strict=True):
        found = [
            [(b, k) for b, k, s in zip(*lane, strict=True) if s >= 0.2]
            for lane in zip(boxes.tolist(), kind.tolist(), score.tolist(), strict=True)
        ]
        sides.append(found)
        tree = {"boxes": boxes.astype(float), "labels": kind, "scores": score}
        trees.append({name: torch.from_numpy(value) for name, value in tree.items()})
    expected = [not (paired(a, b, iou) and paired(b, a, iou)) for a, b in zip(*sides, strict=True)]
    assert BoxChange(iou=iou, threshold=0.2, labels="labels")(*trees, None).tolist() == expected
    assert 20 < sum(expected) < 290
    for form in ("xywh", "cxcywh"):
        turned = [tree | {"boxes": turn(tree["boxes"], form)} for tree in trees]
        assert BoxChange(iou=iou, threshold=0.2, labels="labels", form=form)(*turned, None).tolist() == expected


def test_boxes_of_the_background_are_none() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 6.0, 6.0]]] * 3)
    scores = torch.tensor([[[5.0, 0.0, 1.0], [0.0, 0.0, 9.0]]] * 3)  # the second box shows the last class: nothing
    moved, changed = boxes.clone(), scores.clone()
    moved[0, 1] += 100  # nobody sees it
    changed[1, 1] = torch.tensor([0.0, 9.0, 0.0])  # a new box
    moved[2, 0, 0] = torch.nan
    golden, faulty = {"b": boxes, "s": scores}, {"b": moved, "s": changed}
    assert BoxChange(boxes="b", scores="s", background=-1)(golden, faulty, None).tolist() == [False, True, True]


def test_perplexity_rises_as_cross_entropy_does(rng: np.random.Generator) -> None:
    golden = torch.from_numpy(rng.normal(size=(40, 5, 7)))
    faulty = golden + 0.3 * torch.from_numpy(rng.normal(size=golden.shape))
    labels = torch.from_numpy(rng.integers(0, 7, (40, 5)))
    labels[:, 2] = -100
    labels[3] = -100
    for shift in (False, True):
        cut = (slice(None), slice(1, None)) if shift else (slice(None), slice(None))
        kept = (slice(None), slice(None, -1)) if shift else (slice(None), slice(None))
        expected = []
        for before, after, right in zip(golden[kept], faulty[kept], labels[cut], strict=True):
            one, two = (F.cross_entropy(x, right).exp() for x in (before, after))
            expected.append(bool(two > 1.05 * one))
        assert PerplexityRise(1.05, shift=shift)(golden, faulty, labels).tolist() == expected
    assert math.isclose(perplexity(golden[:1], labels[:1]), float(F.cross_entropy(golden[0], labels[0]).exp()))
    faulty[0, 0, 0], faulty[1, 2, 0] = torch.nan, torch.inf
    said = PerplexityRise(1e300)(golden, faulty, labels)
    assert said[0]
    assert not said[1:].any()  # the infinity stands where no label is


def test_masks_change_as_the_jaccard_score_says(rng: np.random.Generator) -> None:
    golden = torch.from_numpy(rng.normal(size=(60, 4, 3, 3)))
    faulty = golden + torch.from_numpy(rng.normal(size=golden.shape)) * 0.4
    shares = [
        jaccard_score(a.argmax(0).flatten(), b.argmax(0).flatten(), average=None, labels=np.unique(
            torch.cat((a.argmax(0).flatten(), b.argmax(0).flatten())))).mean()
        for a, b in zip(golden, faulty, strict=True)
    ]  # fmt: skip
    assert MaskChange(iou=0.6)(golden, faulty, None).tolist() == [bool(share < 0.6) for share in shares]
    faulty = golden.clone()
    faulty[0, :, :2] = torch.nan
    assert MaskChange(iou=0.5)(golden, faulty, None).nonzero().tolist() == [[0]]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: PerplexityRise(0.5), "ratio of 1 or more, got 0.5"),
        (lambda: BoxChange(iou=0), "share above 0"),
        (lambda: BoxChange(form="yxyx"), "one of xyxy, xywh, cxcywh"),
        (lambda: MaskChange(iou=2.0), "share above 0"),
        (lambda: BoxChange()(*[{"boxes": torch.zeros(2, 4), "scores": torch.zeros(2)}] * 2, None), r"\(N, K, 4\)"),
        (lambda: BoxChange()(*[{"b": torch.zeros(2, 4), "s": torch.zeros(2)}] * 2, None), "boxes"),
        (lambda: PerplexityRise(2)(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), None), "labels"),
    ],
)
def test_what_does_not_fit_is_told(act, message: str) -> None:
    with pytest.raises(CriterionError, match=message):
        act()
