"""Criteria, metrics and fault models as text: every argument by name, no depth that breaks, the same read twice."""

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfault import criteria
from torchfault.criteria import AllOf, AnyOf, Not, Top1Change, as_criterion, as_metric
from torchfault.criteria.from_text import _CRITERIA, _METRICS
from torchfault.errors import CriterionError
from torchfault.expressions import CRITERIA, FAULTS, METRICS, And, Atom, Or, parse_criterion, parse_fault, written
from torchfault.expressions import Not as Negated

ATOMS = ["top1", "topk:3", "non-finite", "top1:axis=-1,output=logits", "tokens:0.5", "threshold", "my.own:name"]


@given(
    st.recursive(
        st.sampled_from(ATOMS),
        lambda e: st.tuples(st.sampled_from("&|"), e, e) | e.map(lambda x: ("~", x)),
    )
)
def test_expressions_survive_being_written(tree):
    def write(node):
        if isinstance(node, str):
            return node
        return f"~({write(node[1])})" if node[0] == "~" else f"({write(node[1])}) {node[0]} ({write(node[2])})"

    def plain(node):
        if isinstance(node, Atom):
            return node.text
        if isinstance(node, Negated):
            return ("~", plain(node.part))
        return ("&" if isinstance(node, And) else "|", *map(plain, node.parts))

    parsed = parse_criterion(write(tree))
    assert plain(parsed) == tree
    assert parse_criterion(written(parsed)) == parsed


def test_and_binds_closer_than_or():
    parsed = parse_criterion("top1 | misclassified & ~non-finite")
    assert isinstance(parsed, Or)
    assert isinstance(parsed.parts[1], And)
    assert parse_criterion("~~top1") == parse_criterion("top1")
    assert parse_criterion("~~~top1") == Negated(parse_criterion("top1"))


# One value for each reader, written and read.
VALUES = {
    "axis": ("-1", -1), "share": ("0.25", 0.25), "output": ("logits", "logits"), "label": ("y.0", "y.0"),
    "ignore": ("-1", -1), "threshold": ("0.5", 0.5), "norm": ("l2", "l2"), "form": ("cxcywh", "cxcywh"),
    "background": ("-1", -1), "boxes": ("1", 1), "scores": ("pred_logits", "pred_logits"), "labels": ("2", 2),
    "shift": ("1", True), "k": ("5", 5), "iou": ("0.75", 0.75), "ratio": ("1.1", 1.1), "by": ("2", 2.0),
    "time": ("2", 2), "steps": ("3", 3), "classes": ("21", 21),
}  # fmt: skip


@pytest.mark.parametrize("name", CRITERIA)
def test_every_option_of_a_criterion_can_be_said(name):
    check_options(name, CRITERIA[name], as_criterion, _CRITERIA[name])


@pytest.mark.parametrize("name", METRICS)
def test_every_option_of_a_metric_can_be_said(name):
    check_options(name, METRICS[name], as_metric, _METRICS[name])


def check_options(name, form, made, kind):
    parameters = inspect.signature(kind).parameters
    assert set(form.options) == set(parameters), "the notation and the class have the same options"
    text = name + (":" if form.options else "") + ",".join(f"{key}={VALUES[key][0]}" for key in form.options)
    assert made(text) == kind(**{key: VALUES[key][1] for key in form.options})
    needed = f"{name}:{VALUES[form.first][0]}" if form.first else name
    assert made(needed) == kind(**({form.first: VALUES[form.first][1]} if form.first else {}))
    if not (form.first and form.required):
        assert made(name) == kind()
    for key in form.options:
        alone = needed if key == form.first else f"{needed}{',' if form.first else ':'}{key}={VALUES[key][0]}"
        assert getattr(made(alone), key) == VALUES[key][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top1:1", "'top1' takes axis, share, output by name, got 'top1:1'; write top1:axis=1"),
        ("top1:axs=1", "'top1' has no argument 'axs'; did you mean 'axis'?"),
        ("top1:zzz=1", "'top1' has no argument 'zzz'; it takes axis, share, output"),
        ("top1:axis=x", "'top1' needs the number of an axis, such as 1 or -1 as axis, got 'top1:axis=x'"),
        ("top1:axis=1.5", "needs the number of an axis"),
        ("top1:axis=" + "9" * 5000, "needs the number of an axis"),
        ("top1:axis=1,axis=2", "'top1' is given axis twice in 'top1:axis=1,axis=2'; keep one of them"),
        ("top1:", "'top1' takes axis, share, output by name"),
        ("top1:axis=1,", "by name"),
        ("topk", "'topk' needs a whole number of 1 or more, as in topk:5, got 'topk'"),
        ("topk:axis=1", "'topk' needs a whole number of 1 or more"),
        ("topk:5,3", "'topk' takes k, axis, share, output by name"),
        ("topk:0", "needs a whole number of 1 or more"),
        ("margin:-1", "needs a number of 0 or more"),
        ("margin:nan", "needs a number of 0 or more"),
        ("error:0.1,norm=l1", "'error' needs max or l2 as norm"),
        ("threshold:inf", "'threshold' needs a number"),
        ("tokens:1.5", "needs a share from 0 to 1"),
        ("boxes:0", "an overlap above 0"),
        ("perplexity:0.5", "a ratio of 1 or more"),
        ("perplexity:1.1,shift=2", "'perplexity' needs 1 or 0: whether labels stand one token further on as shift"),
        ("top1:output=", "the name of an output"),
        ("()", "expected a criterion before ')'"),
        ("top1 top1", "expected '&', '|' or the end before 'top1'"),
        ("| top1", r"expected a criterion before '|' in '| top1'"),
        ("", "expected a criterion before the end"),
        ("x" * 10_000, f"no criterion is called '{'x' * 60}...'"),
    ],
)
def test_what_is_wrong_is_told(text, message):
    with pytest.raises(CriterionError, match=re.escape(message)) as told:
        as_criterion(text)
    assert len(str(told.value)) < 600


# Hundreds of parts.


@pytest.mark.parametrize("joint", ["&", "|"])
def test_a_thousand_parts_in_a_row_are_one_level(joint):
    text = f" {joint} ".join(["top1"] * 1000)
    parsed = parse_criterion(text)
    assert len(parsed.parts) == 1000
    made = as_criterion(text)
    assert made.levels == 1
    assert written(parsed) == text
    joined = Top1Change()
    for _ in range(999):
        joined = joined & Top1Change() if joint == "&" else joined | Top1Change()
    assert joined == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(" * 51 + "top1" + ")" * 51, "parentheses nest at most 50 deep"),
        ("(" * 50_000, "at most 1,000 parts"),
        ("~(" * 900 + "top1" + ")" * 900, "parentheses nest at most 50 deep"),
        ("(" * 900 + "top1", "parentheses nest at most 50 deep"),
        (" | ".join(["top1"] * 2500), "a criterion has at most 1,000 parts; write a function"),
    ],
)
def test_more_than_that_is_refused(text, message):
    with pytest.raises(CriterionError, match=message):
        as_criterion(text)


def test_nesting_by_operators_is_bounded_too():
    for combine in (lambda c: AllOf((c,)), lambda c: AnyOf((c, Top1Change())), Not, lambda c: ~c):
        deep = Top1Change()
        for _ in range(50):
            deep = combine(deep)
        assert deep.levels == 50
        with pytest.raises(CriterionError, match="criteria nest at most 50 deep"):
            combine(deep)


@given(st.text(alphabet="top1ksharemng:=,.-&|~() 0123459\x1b\ud800", max_size=80))
def test_any_text_is_read_or_refused(text):
    try:
        made = as_criterion(text)
    except CriterionError:
        return
    assert callable(made)


def test_values_pass_through():
    assert as_criterion(Top1Change()) == Top1Change()
    assert as_metric(criteria.accuracy) is criteria.accuracy
    assert as_criterion("torchfault.criteria:Top1Change") == Top1Change()
    with pytest.raises(CriterionError, match="cannot be called; name a function"):
        as_criterion("math:pi")


def test_faults_have_their_one_argument():
    assert parse_fault("burst:3").arguments == (("length", 3),)
    assert parse_fault("value:-inf").arguments == (("value", float("-inf")),)
    assert all(parse_fault(name).arguments == () for name, form in FAULTS.items() if form.first is None)
