"""Which criterion fits which outputs, and what is refused: token ids, values and marks have no top class."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.functional import one_hot

from torchfault import criteria
from torchfault.criteria import (
    Accuracy,
    MeanIou,
    Misclassified,
    OutputError,
    Perplexity,
    ThresholdChange,
    TokenChange,
    Top1Change,
    TopK,
    accuracy,
    check_fit,
    fitting,
    golden_metric,
    judge,
    judged,
    unusable_inputs,
)
from torchfault.errors import CriterionError

NAN, INF = math.nan, math.inf
RNG = torch.Generator().manual_seed(0)
SCORES, FLAT, ONE = (
    torch.randn(6, 10, generator=RNG),
    torch.randn(6, 64, generator=RNG),
    torch.randn(6, 1, generator=RNG),
)
TOKENS, LOGITS = torch.randint(0, 9, (6, 5), generator=RNG), torch.randn(6, 5, 9, generator=RNG)
MAPS, IMAGES = torch.randn(6, 3, 4, 4, generator=RNG), torch.rand(6, 3, 8, 8, generator=RNG)
CLASSES, BINARY = torch.tensor([3, 0, 9, 1, 1, 7]), torch.tensor([0, 1, 1, 0, 1, 0])
MARKS = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 1]] * 2)
BOXES = {"boxes": torch.rand(6, 4, 4), "scores": torch.rand(6, 4)}

# Outputs, labels and inputs, and what fits them.
CASES = {
    "scores": (SCORES, None, None, "top1"),
    "scores and classes": (SCORES, CLASSES, None, "top1"),
    "scores and one-hot labels": (SCORES, one_hot(CLASSES, 10), None, "top1"),
    "scores and float classes": (SCORES, CLASSES.float(), None, "top1"),
    "scores of whole numbers": (SCORES.mul(50).to(torch.int8), CLASSES, None, "top1"),
    "scores from as many features": (SCORES, CLASSES, torch.randn(6, 10), "top1"),
    "a dictionary": ({"logits": SCORES, "hidden": FLAT}, None, None, "top1:output=logits"),
    "a tuple": ((LOGITS, SCORES), None, None, "top1:output=1"),
    "names that cannot be written": ({"a b": SCORES, "c|d": LOGITS}, None, None, "top1:output=0"),
    "one logit": (ONE, None, None, "threshold:0"),
    "one logit and labels": (ONE, BINARY, None, "threshold:0"),
    "one logit without an axis": (ONE[:, 0], BINARY, None, "threshold:0"),
    "one probability": (ONE.sigmoid(), BINARY.float()[:, None], None, "threshold:0.5"),
    "one value and targets": (ONE, torch.randn(6), None, "error:0.1"),
    "many labels": (MARKS - 0.3, MARKS, None, "threshold:0"),
    "many labels as probabilities": (MARKS * 0.9, MARKS.long(), None, "threshold:0.5"),
    "targets": (SCORES, torch.randn(6, 10), None, "error:0.1"),
    "generated tokens": (TOKENS, None, None, "tokens"),
    "generated sequences": ({"sequences": TOKENS, "scores": LOGITS}, None, None, "tokens:output=sequences"),
    "an autoencoder": (IMAGES, None, IMAGES, "error:0.1"),
    "a flat autoencoder": (FLAT, None, FLAT, "error:0.1"),
    "a flat autoencoder of images": (FLAT, None, torch.rand(6, 1, 8, 8), "error:0.1"),
    "images": (IMAGES, None, None, "error:0.1"),
    "segments": (MAPS, torch.zeros(6, 4, 4, dtype=torch.long), None, "masks:0.5"),
    "tokens and labels": (LOGITS, TOKENS, None, "top1:axis=-1"),
    "tokens of a language model": ({"logits": LOGITS}, None, None, "top1:axis=-1"),
    "classes along the first axis": (LOGITS, torch.zeros(6, 9, dtype=torch.long), None, "top1:axis=1"),
    "boxes": (BOXES, None, None, "boxes:0.5"),
    "labelled boxes": ({**BOXES, "labels": torch.ones(6, 4, dtype=torch.long)}, None, None, "boxes:0.5,labels=labels"),
    "spikes": ((torch.rand(6, 8, 4) > 0.5).float(), CLASSES, None, "spike-count"),
    "complex values": (torch.randn(6, 4, dtype=torch.complex64), None, None, "error:0.1"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_criterion_that_fits_is_found_and_fits(name):
    outputs, labels, inputs, expected = CASES[name]
    found = fitting(outputs, labels, inputs)
    assert found.text == expected
    check_fit(found.criterion, outputs, labels, inputs)
    assert not judge(found.criterion, outputs, outputs, labels).failed.any()
    assert found.why
    if isinstance(outputs, dict | tuple) and len(outputs) > 1 and "boxes" not in outputs:
        assert f"of {len(outputs)} outputs" in found.why


def test_what_is_judged_is_said():
    assert fitting(SCORES).why == "the class with the highest of 10 scores"
    assert fitting({"logits": LOGITS, "hidden": FLAT}).why == (
        "of 2 outputs 'logits' is judged: the class with the highest of 9 scores along axis -1, in any position"
    )
    assert fitting(MARKS, MARKS).why == "the side of 0.5 on which each of the values of shape (3,) lies"
    assert judged(Top1Change(output=1) & ~OutputError(0.1, output="b"), {"a": FLAT, "b": SCORES}) == ("output 'b' of 2")
    assert judged(TopK(2, axis=1), LOGITS) == "5 classes along axis 1"
    assert judged(OutputError(0.1), SCORES) == ""
    with pytest.raises(CriterionError, match="outputs need at least one tensor to judge, got none"):
        fitting({"note": "nothing"})


MISFITS = {
    "token ids": (Top1Change(), TOKENS, None, None, r"torch.int64 of shape \(6, 5\); for tokens use TokenChange"),
    "token ids of top k": (TopK(2), TOKENS, None, None, "for tokens use TokenChange"),
    "many labels": (Top1Change(), MARKS - 0.3, MARKS, None, "decide about several labels at once; use threshold:0"),
    "many labels, composed": (
        ~(Top1Change() & OutputError(0.1)),
        MARKS - 0.3,
        MARKS.bool(),
        None,
        "Top1Change judges by class scores.* several labels at once",
    ),
    "targets": (criteria.MarginDrop(1.0), SCORES, torch.randn(6, 10), None, "are values like the labels or the inputs"),
    "flat autoencoder": (Top1Change(), FLAT, None, FLAT, "are values like the labels or the inputs; use error:0.1"),
    "autoencoder": (Top1Change(), IMAGES, None, IMAGES, "name the axis of the classes"),
    "one logit": (Top1Change(), ONE, None, None, r"for one logit use ThresholdChange\(0\) or Misclassified"),
    "one logit and labels": (Misclassified(), ONE, BINARY, None, "for one logit use ThresholdChange"),
    "one-hot labels": (Misclassified(), SCORES, one_hot(CLASSES, 10), None, r"one-hot labels as labels.argmax\(-1\)"),
    "float labels": (Misclassified(), SCORES, CLASSES.float(), None, r"give class numbers as labels.long\(\)"),
    "marks": (Misclassified(), MARKS, MARKS, None, "labels of several classes at once go with ThresholdChange"),
    "values as tokens": (TokenChange(), SCORES, None, None, "tokens are whole numbers, got torch.float32"),
    "tokens by a threshold": (ThresholdChange(), TOKENS, None, None, "a threshold is for floating-point values"),
    "classes by a threshold": (Misclassified(threshold=0.0), ONE, CLASSES, None, "beside a threshold are 0 and 1"),
    "scores by a threshold": (Misclassified(threshold=0.0), SCORES, CLASSES, None, "one label for each floating-point"),
    "an error": (lambda *_: 1 / 0, SCORES, None, None, "the criterion fails on the golden outputs: ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused(name):
    criterion, outputs, labels, inputs, message = MISFITS[name]
    with pytest.raises(CriterionError, match=message):
        check_fit(criterion, outputs, labels, inputs)


def test_naming_the_axis_overrules():
    check_fit(Top1Change(axis=1), FLAT, None, FLAT)
    check_fit(Top1Change(axis=1), MARKS, MARKS)
    check_fit(Misclassified(threshold=0.0), MARKS - 0.5, MARKS)


# Thresholds and tokens.

VALUE = st.sampled_from([-2.0, -0.0, 0.0, 0.25, 0.5, 3.0, NAN, INF, -INF])


@st.composite
def pairs(draw, elements=VALUE, dtype=np.float32):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    return tuple(draw(hnp.arrays(dtype, shape, elements=elements)) for _ in range(2))


def bad(before, after):
    """Tell whether a value became NaN or infinite."""
    return (math.isfinite(before) and not math.isfinite(after)) or (math.isnan(after) and not math.isnan(before))


@given(pairs(), st.sampled_from([0.0, 0.5, -1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_threshold_change_is_a_loop(both, threshold, share):
    got = ThresholdChange(threshold, share=share)(*map(torch.from_numpy, both), None).tolist()
    for before, after, failed in zip(*both, got, strict=True):
        changed = [bad(b, a) or (b > threshold) != (a > threshold) for b, a in zip(before, after, strict=True)]
        assert failed == (any(changed) and sum(changed) / len(changed) >= share)


@given(pairs(st.integers(0, 3), np.int64), st.sampled_from([0.0, 0.5, 1.0]))
def test_token_change_is_a_loop(both, share):
    got = TokenChange(share)(*map(torch.from_numpy, both), None).tolist()
    for before, after, failed in zip(*both, got, strict=True):
        assert failed == ((before != after).any() and (before != after).mean() >= share)


@given(pairs(), st.data())
def test_misclassified_by_a_threshold_is_a_loop(both, data):
    labels = data.draw(hnp.arrays(np.int64, both[0].shape, elements=st.sampled_from([0, 1, -100])))
    got = Misclassified(threshold=0.25)(*map(torch.from_numpy, both), torch.from_numpy(labels)).tolist()
    for before, after, wanted, failed in zip(*both, labels, got, strict=True):
        wrong = [
            label != -100 and (math.isnan(a) or bad(b, a) or (a > 0.25) != (label == 1))
            for b, a, label in zip(before, after, wanted, strict=True)
        ]
        assert failed == any(wrong)


def test_one_logit_may_come_without_its_axis():
    for values in (torch.tensor([[0.3], [-1.0], [2.0]]), torch.tensor([0.3, -1.0, 2.0])):
        for labels in (torch.tensor([1, 1, 0]), torch.tensor([[1], [1], [0]]), torch.tensor([1.0, 1.0, 0.0])):
            assert Misclassified(threshold=0.0)(values, values, labels).tolist() == [False, True, True]
            assert accuracy(values, labels, threshold=0.0) == pytest.approx(1 / 3)
    many = torch.tensor([[0.9, 0.2], [0.4, NAN]])
    assert accuracy(many, torch.tensor([[1, 1], [0, 0]]), threshold=0.5) == 0.5
    assert accuracy(many, torch.tensor([[1, -100], [0, -100]]), threshold=0.5) == 1.0


@pytest.mark.parametrize(("norm", "expected"), [("max", [False, True, True]), ("l2", [False, False, True])])
def test_the_error_of_complex_values_has_both_parts(norm, expected):
    golden = torch.tensor([[4 + 3j, 0], [4 + 3j, 12], [4 + 3j, 12]])
    faulty = golden + torch.tensor([[0.4j, 0], [1.25j, 0], [3, -4j]])
    assert OutputError(0.1, norm)(golden, faulty, None).tolist() == expected


def test_labels_in_a_column_are_class_numbers():
    assert Misclassified()(torch.eye(3), torch.eye(3), torch.tensor([[0], [1], [1]])).tolist() == [False, False, True]


# Crashes, and golden outputs that nothing can be said against.


def test_a_crash_is_a_failure_of_its_own_kind():
    golden = torch.eye(4)
    faulty = torch.stack([golden[1], golden[1], golden[2], torch.full((4,), NAN)])
    outcomes = judge(Top1Change(), golden, faulty, None, crashed=np.array([False, True, False, True]))
    assert outcomes.failed.tolist() == [True, True, False, True]
    assert outcomes.due.tolist() == [False, True, False, True]
    assert outcomes.crash.tolist() == [False, True, False, True]
    assert not judge(Top1Change(), golden, faulty, None).crash.any()
    assert judge(~Top1Change(), golden, faulty, None, crashed=np.ones(4, bool)).failed.all()
    with pytest.raises(CriterionError, match=r"one flag for each of 4 lanes, got shape \(3,\)"):
        judge(Top1Change(), golden, faulty, None, crashed=np.ones(3, bool))


@pytest.mark.parametrize(
    ("golden", "expected"),
    [
        (torch.tensor([[1.0, NAN], [INF, 0.0], [-INF, 0.0], [-INF, -INF], [1.0, 2.0]]), [1, 1, 0, 1, 0]),
        ({"a": torch.zeros(2, 3), "b": torch.tensor([NAN, 0.0]), "n": torch.ones(2, dtype=torch.long)}, [1, 0]),
        (torch.tensor([[1j], [complex(NAN, 1)]]), [0, 1]),
        (torch.tensor([[NAN], [448.0]]).to(torch.float8_e4m3fn), [1, 0]),
        (torch.ones(3, 2, dtype=torch.long), [0, 0, 0]),
        (torch.ones(3, 0), [0, 0, 0]),
    ],
)
def test_inputs_whose_golden_outputs_are_not_finite_are_found(golden, expected):
    assert unusable_inputs(golden).tolist() == expected


# Metrics as values.


@pytest.mark.parametrize(
    ("value", "function", "outputs", "labels"),
    [
        (Accuracy(), accuracy, SCORES, CLASSES),
        (Accuracy(axis=1, ignore=3), lambda o, y: accuracy(o, y, axis=1, ignore=3), SCORES, CLASSES),
        (MeanIou(3), lambda o, y: criteria.mean_iou(o, y, classes=3), MAPS, torch.ones(6, 4, 4, dtype=torch.long)),
        (Perplexity(shift=True), lambda o, y: criteria.perplexity(o, y, shift=True), LOGITS, TOKENS),
    ],
)
def test_a_metric_as_a_value_is_the_function(value, function, outputs, labels):
    assert value(outputs, labels) == function(outputs, labels) == golden_metric(value, outputs, labels)
    low, high = criteria.bounds(value)
    assert low <= value(outputs, labels) <= high
    assert criteria.higher_is_better(value) is not isinstance(value, Perplexity)


def test_functions_have_the_bounds_of_their_values_or_none():
    from functools import partial

    assert criteria.bounds(partial(criteria.mean_iou, classes=3)) == (0, 1)
    assert criteria.bounds(partial(criteria.perplexity, shift=True)) == (1, INF)
    assert not criteria.higher_is_better(criteria.perplexity)
    assert criteria.bounds(lambda *_: 0.0) == (-INF, INF)
    assert criteria.higher_is_better(lambda *_: 0.0)

    class Mine:
        bounds, higher_is_better = (0, 100), False
        __hash__ = None

    assert criteria.bounds(Mine()) == (0, 100)
    assert not criteria.higher_is_better(Mine())


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Accuracy(), "expected labels"),
        (lambda *_: "good", "a metric returns one number, got str; reduce it to one"),
        (lambda *_: NAN, "the metric of the golden outputs is a finite number, got nan"),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_metric_that_gives_no_number_is_refused(metric, message):
    with pytest.raises(CriterionError, match=message):
        golden_metric(metric, SCORES, None)


def test_the_message_of_a_misfit_is_one_line():
    for criterion, outputs, labels, inputs, _ in MISFITS.values():
        with pytest.raises(CriterionError) as told:
            check_fit(criterion, outputs, labels, inputs)
        assert not re.search(r"\n", str(told.value))
