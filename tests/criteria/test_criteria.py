"""Criteria against plain NumPy loops, their options and combinations, the judge, and the data-set metrics."""

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, jaccard_score, log_loss

from torchfault import criteria
from torchfault.criteria import (
    AllOf,
    AnyOf,
    MarginDrop,
    Misclassified,
    NonFinite,
    Not,
    OutputError,
    Top1Change,
    TopK,
    accuracy,
    judge,
    mean_iou,
    perplexity,
)
from torchfault.errors import CriterionError

NAN, INF = math.nan, math.inf

# Few different values, so that ties are common; and every kind of number that a fault can bring.
SCORE = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1.5, 3.0, 1e30, NAN, INF, -INF])
SHAPE = st.tuples(st.integers(1, 6), st.integers(2, 5))


@st.composite
def pairs(draw):
    """Draw golden and faulty scores of one shape (lanes, classes)."""
    shape = draw(SHAPE)
    return tuple(draw(hnp.arrays(np.float32, shape, elements=SCORE)) for _ in range(2))


def best(row):
    """Return the place of the highest score, the first of several, of a NaN if there is one."""
    for place, value in enumerate(row):
        if math.isnan(value):
            return place
    return max(range(len(row)), key=lambda place: (row[place], -place))


def bad(before, after):
    """Tell whether a value became NaN or infinite."""
    return any(
        (math.isfinite(b) and not math.isfinite(a)) or (math.isnan(a) and not math.isnan(b))
        for b, a in zip(before, after, strict=True)
    )


def ask(criterion, golden, faulty, labels=None):
    """Return the verdict on arrays or tensors as a list."""
    labels = None if labels is None else torch.as_tensor(labels)
    return criterion(torch.as_tensor(golden), torch.as_tensor(faulty), labels).tolist()


@given(pairs())
def test_top1_change_is_a_loop_over_rows(both):
    expected = [bad(b, a) or best(b) != best(a) for b, a in zip(*both, strict=True)]
    assert ask(Top1Change(), *both) == expected


@given(pairs(), st.integers(1, 4))
def test_topk_is_a_stable_sort(both, k):
    if k >= both[0].shape[1]:
        with pytest.raises(CriterionError, match="use a smaller k"):
            ask(TopK(k), *both)
        return
    for before, after, got in zip(*both, ask(TopK(k), *both), strict=True):
        if bad(before, after):
            assert got
        elif not np.isnan(before).any():  # with a NaN before and after there is no order to compare
            ranked = sorted(range(len(after)), key=lambda place: -after[place])
            assert got == (best(before) not in ranked[:k])


@given(pairs())
def test_top_1_of_topk_is_top1_change_where_golden_has_no_nan(both):
    if both[0].shape[1] > 1 and not np.isnan(both[0]).any():
        assert ask(TopK(1), *both) == ask(Top1Change(), *both)


@given(pairs(), st.data())
def test_misclassified_is_a_loop_over_rows(both, data):
    lanes, classes = both[0].shape
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=lanes, max_size=lanes))
    expected = [
        bad(b, a) or any(map(math.isnan, a)) or best(a) != label for b, a, label in zip(*both, labels, strict=True)
    ]
    assert ask(Misclassified(), *both, labels) == expected


@given(pairs(), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_margin_drop_is_a_loop_over_rows(both, threshold):
    def margin(row, top):
        others = [float(value) for place, value in enumerate(row) if place != top]
        runner_up = NAN if any(map(math.isnan, others)) else max(others)
        return float(row[top]) - runner_up

    expected = [bad(b, a) or margin(b, best(b)) - margin(a, best(b)) > threshold for b, a in zip(*both, strict=True)]
    assert ask(MarginDrop(threshold), *both) == expected


@given(pairs(), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from(["max", "l2"]))
def test_output_error_is_a_loop_over_rows(both, threshold, norm):
    def size(values):
        return max(map(abs, values)) if norm == "max" else math.sqrt(math.fsum(v * v for v in values))

    expected = []
    for before, after in zip(*both, strict=True):
        moved = [
            0.0 if b == a or (b != b and a != a) else float(a) - float(b) for b, a in zip(before, after, strict=True)
        ]
        known = [float(b) if math.isfinite(b) else 0.0 for b in before]
        lost = any(not math.isfinite(m) for m in moved)
        expected.append(lost or size(moved) > threshold * size(known))
    assert ask(OutputError(threshold, norm=norm), *both) == expected


@given(pairs())
def test_non_finite_is_a_loop_over_rows(both):
    assert ask(NonFinite(), *both) == [bad(b, a) for b, a in zip(*both, strict=True)]


@given(pairs())
def test_the_judge_fails_every_due_lane(both):
    golden, faulty = map(torch.from_numpy, both)
    due = [bad(b, a) for b, a in zip(*both, strict=True)]
    for criterion in (Top1Change(), ~Top1Change(), lambda *trees: torch.zeros(len(trees[0]), dtype=torch.bool)):
        outcomes = judge(criterion, golden, faulty, None)
        said = criterion(golden, faulty, None).numpy()
        assert outcomes.due.dtype == outcomes.failed.dtype == np.bool_
        assert outcomes.due.tolist() == due
        assert outcomes.failed.tolist() == (said | np.array(due)).tolist()


def test_a_nan_does_not_pass_for_the_golden_class():
    golden = torch.tensor([[0.0, 5.0, 1.0]])
    nan_at_the_top = torch.tensor([[0.0, NAN, 1.0]])
    assert nan_at_the_top.argmax(1).equal(golden.argmax(1))  # what a plain comparison would take for an equal answer
    for criterion in (Top1Change(), TopK(2), MarginDrop(10.0), OutputError(1e9), NonFinite()):
        assert ask(criterion, golden, nan_at_the_top) == [True]
    assert ask(Misclassified(), golden, nan_at_the_top, [1]) == [True]


def test_masked_classes_of_minus_infinity_are_no_fault():
    golden = torch.tensor([[-INF, 2.0, 1.0]])
    faulty = torch.tensor([[-INF, 2.0, 1.5]])
    for criterion in (Top1Change(), TopK(2), MarginDrop(1.0), OutputError(0.3), NonFinite()):
        assert ask(criterion, golden, faulty) == [False]
    outcomes = judge(Top1Change(), golden, faulty, None)
    assert (outcomes.failed.tolist(), outcomes.due.tolist()) == ([False], [False])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.int8])
def test_scores_of_every_type_are_compared(dtype):
    golden, faulty = torch.tensor([[0.0, 3.0, 2.0]] * 3), torch.tensor([[0.0, 3.0, 2.0], [0, 2, 3], [3, 1, 2]])
    both = golden.to(dtype), faulty.to(dtype)
    assert ask(Top1Change(), *both) == [False, True, True]
    assert ask(TopK(2), *both) == [False, False, True]
    assert ask(MarginDrop(2.5), *both) == [False, False, True]
    assert ask(OutputError(0.5), *both) == [False, False, True]
    assert ask(NonFinite(), *both) == [False, False, False]
    assert ask(Misclassified(), *both, [1, 1, 1]) == [False, True, True]


# Positions: segmentation (N, C, H, W) and tokens (N, T, C).


def positions(rng, axis):
    """Return golden and faulty scores, 3 lanes x 4 classes x 10 positions; lane i differs in i positions."""
    golden = rng.normal(size=(3, 10, 4))
    faulty = golden.copy()
    for lane in range(3):
        for place in range(lane):
            row = faulty[lane, place]
            row[[row.argmax(), row.argmin()]] = row.min(), row.max()
    shape = (3, 5, 2, 4)
    return (torch.from_numpy(np.moveaxis(side.reshape(shape), -1, axis).copy()) for side in (golden, faulty))


@pytest.mark.parametrize("axis", [1, -1, 2, -2])
@pytest.mark.parametrize(("share", "failed"), [(0.0, [0, 1, 1]), (0.1, [0, 1, 1]), (0.2, [0, 0, 1]), (0.21, [0, 0, 0])])
@pytest.mark.parametrize("kind", [Top1Change, lambda **o: TopK(3, **o), lambda **o: MarginDrop(0.0, **o)])
def test_any_position_or_a_share_of_them_fails_a_lane(rng, axis, share, failed, kind):
    golden, faulty = positions(rng, axis)
    assert ask(kind(axis=axis, share=share), golden, faulty) == [bool(f) for f in failed]


def test_a_share_is_met_exactly():
    golden = torch.tensor([[1.0, 0.0]]).repeat(100, 1)[None]
    for changed in range(101):
        faulty = golden.clone()
        faulty[0, :changed] = torch.tensor([0.0, 1.0])
        for percent in range(101):
            # 0.07 * 100 is more than 7 in floating point; 7 of 100 positions are a share of 0.07 all the same.
            expected = changed > 0 and changed >= percent
            if abs(changed - percent) < 2:
                assert ask(Top1Change(axis=-1, share=percent / 100), golden, faulty) == [expected]


def test_misclassified_leaves_out_ignored_positions(rng):
    faulty = torch.from_numpy(rng.normal(size=(2, 3, 4, 5)))
    labels = faulty.argmax(1)
    wrong = (labels + 1) % 3
    labels[1, 0, :2] = wrong[1, 0, :2]
    assert ask(Misclassified(axis=1), faulty, faulty, labels) == [False, True]
    assert ask(Misclassified(axis=1, share=0.1), faulty, faulty, labels) == [False, True]
    assert ask(Misclassified(axis=1, share=0.11), faulty, faulty, labels) == [False, False]
    labels[1, 1:] = 255
    assert ask(Misclassified(axis=1, share=0.4, ignore=255), faulty, faulty, labels) == [False, True]
    labels[1, 0, :2] = 255
    assert ask(Misclassified(axis=1, ignore=255), faulty, faulty, labels) == [False, False]
    labels[:] = 255
    assert ask(Misclassified(axis=1, ignore=255), faulty, faulty, labels) == [False, False]


def test_output_error_takes_any_shape():
    golden = torch.tensor([2.0, 0.0, 0.0])
    assert ask(OutputError(0.5), golden, torch.tensor([3.1, 0.0, 1e-30])) == [True, False, True]
    cube = torch.ones(2, 2, 2, 2)
    moved = cube.clone()
    moved[1] += 0.25
    assert ask(OutputError(0.25, norm="l2"), cube, moved) == [False, False]
    assert ask(OutputError(0.24, norm="l2"), cube, moved) == [False, True]
    huge = torch.full((1, 4), 1e30)  # whose squares overflow single precision
    assert ask(OutputError(0.5, norm="l2"), huge, huge * 1.1) == [False]


def test_no_lanes_give_no_verdicts():
    none = torch.zeros(0, 3)
    for criterion in (Top1Change(), TopK(1), MarginDrop(0), OutputError(0), NonFinite()):
        assert ask(criterion, none, none) == []
        assert judge(criterion, none, none, None).failed.shape == (0,)
    assert ask(Misclassified(), none, none, torch.zeros(0, dtype=torch.long)) == []


# Which output.


Pair = namedtuple("Pair", ["boxes", "logits"])


@dataclass
class Detection:
    """An output class that is no mapping."""

    boxes: torch.Tensor
    logits: torch.Tensor


def trees(logits):
    """Return trees that hold *logits* beside another tensor."""
    other = torch.zeros(len(logits), 2, 2)
    return [
        {"boxes": other, "logits": logits},
        OrderedDict(boxes=other, logits=logits, nothing=None),
        Pair(other, logits),
        Detection(other, logits),
    ]


def test_logits_are_found_in_trees_of_every_kind():
    golden, faulty = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for before, after in zip(trees(golden), trees(faulty), strict=True):
        for criterion in (Top1Change(), Top1Change(output="logits"), Top1Change(output=1), TopK(1), OutputError(0.5)):
            assert criterion(before, after, None).tolist() == [False, True]
        assert judge(Top1Change(), before, after, None).failed.tolist() == [False, True]
    nested = [{"head": [torch.zeros(2, 1), side], "aux": torch.zeros(2)} for side in (golden, faulty)]
    assert Top1Change(output="head.1")(*nested, None).tolist() == [False, True]
    assert Top1Change()((golden,), (faulty,), None).tolist() == [False, True]


def test_labels_are_found_in_trees():
    scores, labels = torch.eye(3), torch.tensor([0, 1, 1])
    assert Misclassified()(scores, scores, {"labels": labels, "id": torch.arange(3)}).tolist() == [0, 0, 1]
    assert Misclassified(label="y")(scores, scores, {"x": labels, "y": torch.arange(3)}).tolist() == [0, 0, 0]
    assert Misclassified(label=0)(scores, scores, (labels, labels)).tolist() == [0, 0, 1]


def test_non_finite_looks_at_all_outputs_or_at_one():
    golden = {"a": torch.zeros(3, 2), "b": torch.zeros(3), "n": torch.zeros(3, dtype=torch.long)}
    faulty = {"a": torch.zeros(3, 2), "b": torch.tensor([0.0, NAN, 0.0]), "n": torch.ones(3, dtype=torch.long)}
    assert NonFinite()(golden, faulty, None).tolist() == [False, True, False]
    assert NonFinite(output="b")(golden, faulty, None).tolist() == [False, True, False]
    assert NonFinite(output="a")(golden, faulty, None).tolist() == [False, False, False]
    outcomes = judge(NonFinite(output="a"), golden, faulty, None)
    assert outcomes.due.tolist() == outcomes.failed.tolist() == [False, True, False]


# Combining.


def first(golden, faulty, labels):
    """Fail the first lane."""
    del faulty, labels
    return torch.arange(len(golden)) == 0


@given(pairs())
def test_combinations_are_the_bitwise_ones(both):
    golden, faulty = map(torch.from_numpy, both)
    a, b = Top1Change(), OutputError(0.5)
    va, vb, vf = (criterion(golden, faulty, None) for criterion in (a, b, first))
    for combined, expected in (
        (a & b, va & vb),
        (a | b, va | vb),
        (~a, ~va),
        (a & first, va & vf),
        (first & a, va & vf),
        (a | first, va | vf),
        (first | a, va | vf),
        (~(a | first) & b, ~(va | vf) & vb),
        (AllOf((a, first, b)), va & vf & vb),
        (AnyOf((first,)), vf),
        (~Not(first), vf),
    ):
        assert combined(golden, faulty, None).equal(expected)


def test_combinations_are_values():
    assert Top1Change() & TopK(5) == Top1Change() & TopK(5)
    assert len({Top1Change() | TopK(5), Top1Change() | TopK(5), Top1Change() | TopK(4), ~TopK(4)}) == 3
    assert repr(~TopK(5)) == "Not(part=TopK(k=5, axis=None, share=0.0, output=None))"


# Refusals.


def scores(*shape):
    """Return scores of zeros."""
    return torch.zeros(shape)


S23, S12 = scores(2, 3), scores(1, 2)
SEGMENTS = scores(2, 3, 4, 5)
TURNED = scores(2, 5, 4).long()


def twice(criterion, tree, labels=None):
    """Ask *criterion* about the change from *tree* to itself."""
    return criterion(tree, tree, labels)


REFUSALS = {
    "no class axis": (lambda: twice(Top1Change(), scores(2, 3, 4)), r"axis=1 for images"),
    "one class": (lambda: twice(Top1Change(), scores(2, 1)), r"two or more classes.*OutputError"),
    "one axis": (lambda: twice(Top1Change(), scores(2)), r"two or more classes along axis 1"),
    "the lane axis": (lambda: twice(Top1Change(axis=0), S23), r"along axis 0"),
    "axis beyond": (lambda: twice(Top1Change(axis=-3), S23), r"along axis -1"),
    "bools": (lambda: twice(Top1Change(), S23.bool()), r"real scores.*torch.bool"),
    "shapes": (lambda: Top1Change()(S23, scores(1, 3), None), r"one shape, got \(2, 1, 3\) and \(1, 1, 3\)"),
    "k of all": (lambda: twice(TopK(3), S23), r"best 3 of 3 classes are all of them"),
    "k of none": (lambda: TopK(0), r"at least one, got k = 0"),
    "share": (lambda: Top1Change(share=1.5), r"between 0 and 1, got 1.5"),
    "share of top k": (lambda: TopK(2, share=-0.1), r"between 0 and 1"),
    "share of labels": (lambda: Misclassified(share=NAN), r"between 0 and 1, got nan"),
    "share of margins": (lambda: MarginDrop(1, share=2), r"between 0 and 1"),
    "threshold": (lambda: MarginDrop(-1.0), r"finite number from 0 up, got -1.0"),
    "infinite threshold": (lambda: OutputError(INF), r"finite number from 0 up, got inf"),
    "norm": (lambda: OutputError(1.0, norm="l1"), r"one of \['max', 'l2'\], got 'l1'"),
    "no labels": (lambda: twice(Misclassified(), S23), r"expected labels.*got none"),
    "float labels": (lambda: twice(Misclassified(), S23, scores(2)), r"class numbers of shape \(2,\)"),
    "label shape": (
        lambda: twice(Misclassified(axis=1), SEGMENTS, TURNED),
        r"\(2, 4, 5\) as labels.* \(2, 5, 4\)",
    ),
    "label range": (lambda: twice(Misclassified(), S12, torch.tensor([2])), r"from 0 to 1, got 2.*ignore="),
    "misspelt output": (lambda: twice(Top1Change(output="logit"), {"logits": S12}), r"did you mean 'logits'"),
    "many outputs": (
        lambda: twice(Top1Change(), (S12, S12)),
        r"called 'logits', got \['0', '1'\]; name one",
    ),
    "place beyond": (lambda: twice(Top1Change(output=2), S12), r"the output 2, got \['a single tensor'\]"),
    "no output": (lambda: twice(Top1Change(), None), r"got no tensor"),
    "many labels": (lambda: twice(Misclassified(), S12, {"a": S12, "b": S12}), r"name one with label="),
    "nothing to combine": (lambda: AllOf(()), r"expected one or more criteria"),
    "no criterion": (lambda: Top1Change() & 3, r"expected one or more criteria to combine"),
    "no criterion to negate": (lambda: Not("x"), r"expected one or more criteria"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_why(name):
    attempt, message = REFUSALS[name]
    with pytest.raises(CriterionError, match=message):
        attempt()


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda n: torch.zeros(n), r"torch.float32 of shape \(2,\)"),
        (lambda n: torch.zeros(n, 1, dtype=torch.bool), r"torch.bool of shape \(2, 1\)"),
        (lambda n: torch.zeros(n + 1, dtype=torch.bool), r"torch.bool of shape \(3,\)"),
        (lambda n: torch.tensor(True), r"torch.bool of shape \(\)"),  # noqa: ARG005
        (lambda n: np.zeros(n, dtype=bool), "ndarray"),
        (lambda n: [False] * n, "list"),
        (lambda n: None, "NoneType"),  # noqa: ARG005
    ],
)
def test_a_users_function_must_return_a_bool_per_lane(answer, got):
    def mine(golden, faulty, labels):
        del faulty, labels
        return answer(len(golden))

    for criterion in (mine, Top1Change() | mine, Not(mine)):
        with pytest.raises(CriterionError, match=rf"expected a bool tensor of shape \(2,\) from mine, got {got}"):
            judge(criterion, scores(2, 3), scores(2, 3), None)


def test_the_judge_refuses_outputs_that_do_not_match():
    with pytest.raises(CriterionError, match="need the same tensors"):
        judge(first, {"a": scores(2, 3)}, {"b": scores(2, 3)}, None)
    with pytest.raises(CriterionError, match="need the same tensors"):
        judge(first, scores(2, 3), scores(3, 3), None)
    with pytest.raises(CriterionError, match="one row per lane"):
        judge(first, {"a": scores(2, 3), "loss": scores()}, {"a": scores(2, 3), "loss": scores()}, None)


def test_errors_of_a_users_function_are_not_swallowed():
    def broken(*trees):
        raise ZeroDivisionError(f"{len(trees)} trees")

    with pytest.raises(ZeroDivisionError):
        judge(broken, scores(1, 2), scores(1, 2), None)


# Metrics of a whole data set.


def test_accuracy_is_that_of_scikit_learn(rng):
    outputs, labels = rng.normal(size=(500, 7)), rng.integers(0, 7, 500)
    ours = accuracy(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert ours == pytest.approx(accuracy_score(labels, outputs.argmax(1)), abs=1e-12)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_rows_that_are_not_finite_count_as_wrong(value):
    outputs, labels = torch.eye(4), torch.arange(4)
    outputs[2, 2] = value
    outputs[3, 0] = value
    assert accuracy(outputs, labels) == 0.5
    assert mean_iou(outputs, labels, classes=4) == 0.5
    assert perplexity(outputs, labels) == INF


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.booleans())
def test_mean_iou_is_that_of_scikit_learn(seed, classes, ignoring):
    rng = np.random.default_rng(seed)
    used = rng.integers(1, classes + 1)  # the classes above occur nowhere
    outputs = rng.normal(size=(2, classes, 3, 4))
    outputs[:, used:] -= 99
    labels = rng.integers(0, used, (2, 3, 4))
    predicted = outputs.argmax(1)
    counted = rng.random(labels.shape) < 0.7 if ignoring else np.ones(labels.shape, bool)
    counted[0, 0, 0] = True
    given_labels = np.where(counted, labels, 255)
    truth, guess = labels[counted], predicted[counted]
    present = np.union1d(truth, guess)
    expected = jaccard_score(truth, guess, labels=present, average="macro")
    ours = mean_iou(torch.from_numpy(outputs), torch.from_numpy(given_labels), classes=classes, ignore=255)
    assert ours == pytest.approx(expected, abs=1e-12)


def test_a_position_that_is_not_finite_belongs_to_no_class():
    outputs = torch.tensor([[[2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]]])
    labels = torch.tensor([[0, 0, 1, 1]])
    assert mean_iou(outputs, labels, classes=2) == 1.0
    outputs[0, 1, 0] = NAN
    assert mean_iou(outputs, labels, classes=2) == pytest.approx((1 / 2 + 1) / 2)


def test_perplexity_is_that_of_scikit_learns_log_loss(rng):
    outputs, labels = rng.normal(size=(4, 6, 9)) * 3, rng.integers(0, 9, (4, 6))
    chances = np.exp(outputs - outputs.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    expected = math.exp(log_loss(labels.ravel(), chances.reshape(-1, 9), labels=range(9)))
    got = perplexity(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert got == pytest.approx(expected, rel=1e-9)
    single = perplexity(torch.from_numpy(outputs).float(), torch.from_numpy(labels))
    assert single == pytest.approx(expected, rel=1e-5)


def test_perplexity_shifts_and_ignores_as_cross_entropy_does(rng):
    outputs, labels = torch.from_numpy(rng.normal(size=(3, 5, 7))), torch.from_numpy(rng.integers(0, 7, (3, 5)))
    labels[0, 2:] = -100
    loss = torch.nn.functional.cross_entropy(outputs[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))
    assert perplexity(outputs, labels, shift=True) == pytest.approx(math.exp(loss), rel=1e-9)
    outputs[0, 3] = NAN  # scored against an ignored label
    assert perplexity(outputs, labels, shift=True) == pytest.approx(math.exp(loss), rel=1e-9)


def test_an_enormous_perplexity_is_infinite_and_no_overflow():
    assert perplexity(torch.tensor([[[0.0, 1e4]]]), torch.tensor([[0]])) == INF


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "message"),
    [
        (accuracy, scores(2, 3), None, "expected labels"),
        (accuracy, scores(2, 3), torch.tensor([-100, -100]), "labels that count"),
        (accuracy, scores(2, 3), torch.tensor([0, 5]), "from 0 to 2, got 5"),
        (accuracy, scores(2, 3, 4), torch.tensor([0, 1]), "name the axis of the classes"),
        (perplexity, scores(2, 3, 4), torch.tensor([0, 1]), r"class numbers of shape \(2, 3\)"),
        (lambda o, y: mean_iou(o, y, classes=4), scores(2, 3, 4), scores(2, 4).long(), "scores of 4 classes"),
        (lambda o, y: perplexity(o, y, shift=True), scores(2, 1, 4), scores(2, 1).long(), "labels that count"),
    ],
)
def test_a_metric_that_does_not_fit_says_why(metric, outputs, labels, message):
    with pytest.raises(CriterionError, match=message):
        metric(outputs, labels)


def test_the_package_exports_what_it_lists():
    assert all(hasattr(criteria, name) for name in criteria.__all__)
