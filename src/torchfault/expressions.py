"""Criteria, metrics and fault models as text, without torch: names, their arguments, and how they are joined."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torchfault.errors import did_you_mean

__all__ = [
    "CRITERIA",
    "FAULTS",
    "IMPORTED",
    "METRICS",
    "And",
    "Atom",
    "Expression",
    "Form",
    "Not",
    "Or",
    "beside_metric",
    "parse_criterion",
    "parse_fault",
    "parse_metric",
    "written",
]

IMPORTED = re.compile(r"^[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*$")
"""``package.module:name``, the way to something of the user's own."""

MOST_PARTS, MOST_LEVELS = 1000, 50
_LONGEST = 60  # characters of a text that a message repeats

Value = str | int | float | bool


@dataclass(frozen=True)
class Atom:
    """A name and its arguments by their names in Python: ``topk:5,axis=1``; *text* is how it was written.

    What is imported has the name ``import`` and its way in *text*.
    """

    name: str
    text: str = field(compare=False)
    arguments: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True)
class Not:
    """The negation of an expression."""

    part: "Expression"


@dataclass(frozen=True)
class And:
    """All of several expressions."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True)
class Or:
    """Any of several expressions."""

    parts: tuple["Expression", ...]


Expression = Atom | Not | And | Or


@dataclass(frozen=True)
class Argument:
    """How a value is read from text, and what is *wanted* in words."""

    read: Callable[[str], Value]
    wanted: str


@dataclass(frozen=True)
class Form:
    """What may stand behind a name: a value called *first*, without its name, and *options* with theirs.

    A *required* first value is not to be left out.
    """

    first: str | None = None
    options: Mapping[str, Argument] = field(default_factory=dict)
    required: bool = True


def _number(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError
    return value


def _between(read: Callable[[str], float | int], low: float, high: float = math.inf) -> Callable[[str], Value]:
    """Return a reader of finite numbers from *low* to *high*."""

    def bounded(text: str) -> Value:
        value = read(text)
        if not low <= value <= high or math.isinf(value):
            raise ValueError
        return value

    return bounded


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError
    return int(text)


def _truth(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def _named(text: str) -> Value:
    """Return the name of a tensor, or its place among all."""
    if not text:
        raise ValueError
    return int(text) if text.isdecimal() and len(text) < 9 else text


def _one_of(*known: str) -> Argument:
    def chosen(text: str) -> Value:
        if text not in known:
            raise ValueError
        return text

    return Argument(chosen, " or ".join(known))


_AT_LEAST_ZERO = _between(_number, 0)
_AXIS = {"axis": Argument(_whole, "the number of an axis, such as 1 or -1")}
_SHARE = {"share": Argument(_between(_number, 0, 1), "a share from 0 to 1")}
_OUTPUT = {"output": Argument(_named, "the name of an output or its place, from 0")}
_LABEL = {
    "label": Argument(_named, "the name of a label or its place, from 0"),
    "ignore": Argument(_whole, "the label to ignore, such as -100"),
}
_SHIFT = {"shift": Argument(_truth, "1 or 0: whether labels stand one token further on")}
_THRESHOLD = {"threshold": Argument(_between(_number, -math.inf), "a number")}
_TIME = {"time": Argument(_whole, "the axis of time steps")}
_POSITIONS = {**_AXIS, **_SHARE, **_OUTPUT}
_IOU = {"iou": Argument(_between(_number, math.nextafter(0, 1), 1), "an overlap above 0 and up to 1, such as 0.5")}

FAULTS: Mapping[str, Form] = {
    "flip": Form(),
    "stuck-at-0": Form(),
    "stuck-at-1": Form(),
    "random-word": Form(),
    "burst": Form(
        "length", {"length": Argument(_between(_whole, 1, 64), "a number of bits from 1 to 64, as in burst:3")}
    ),
    "value": Form("value", {"value": Argument(_number, "a number, as in value:0")}),
    "dead": Form(),
    "saturated": Form(),
}
CRITERIA: Mapping[str, Form] = {
    "top1": Form(None, _POSITIONS),
    "topk": Form("k", {"k": Argument(_between(_whole, 1), "a whole number of 1 or more, as in topk:5"), **_POSITIONS}),
    "misclassified": Form(None, {**_POSITIONS, **_LABEL, **_THRESHOLD}),
    "margin": Form(
        "threshold", {"threshold": Argument(_AT_LEAST_ZERO, "a number of 0 or more, as in margin:0.5"), **_POSITIONS}
    ),
    "error": Form(
        "threshold",
        {
            "threshold": Argument(_AT_LEAST_ZERO, "a number of 0 or more, as in error:0.01"),
            "norm": _one_of("max", "l2"),
            **_OUTPUT,
        },
    ),
    "threshold": Form("threshold", {**_THRESHOLD, **_SHARE, **_OUTPUT}, required=False),
    "tokens": Form("share", {**_SHARE, **_OUTPUT}, required=False),
    "non-finite": Form(None, _OUTPUT),
    "boxes": Form(
        "iou",
        {
            **_IOU,
            **_THRESHOLD,
            "form": _one_of("xyxy", "xywh", "cxcywh"),
            "background": Argument(_whole, "the number of a class"),
            **{name: Argument(_named, "the name of an output or its place") for name in ("boxes", "scores", "labels")},
        },
    ),
    "masks": Form("iou", {**_IOU, **_AXIS, **_OUTPUT}),
    "perplexity": Form(
        "ratio",
        {
            "ratio": Argument(_between(_number, 1), "a ratio of 1 or more, as in perplexity:1.1"),
            **_SHIFT,
            **_OUTPUT,
            **_LABEL,
        },
    ),
    "spike-count": Form(
        "by", {"by": Argument(_AT_LEAST_ZERO, "a number of spikes"), **_TIME, **_OUTPUT}, required=False
    ),
    "first-spike": Form(
        "steps", {"steps": Argument(_between(_whole, 0), "a number of time steps"), **_TIME, **_OUTPUT}, required=False
    ),
}
METRICS: Mapping[str, Form] = {
    "accuracy": Form(None, {**_AXIS, **_OUTPUT, **_LABEL, **_THRESHOLD}),
    "perplexity": Form(None, {**_SHIFT, **_OUTPUT, **_LABEL}),
    "mean-iou": Form(
        "classes",
        {
            "classes": Argument(_between(_whole, 1), "a number of classes, as in mean-iou:21"),
            **_AXIS,
            **_OUTPUT,
            **_LABEL,
        },
    ),
}


def parse_fault(text: str) -> Atom:
    """Return the fault model that *text* names, or raise :class:`ValueError`.

    >>> parse_fault("burst:3").arguments
    (('length', 3),)
    """
    return _atom(text.strip(), FAULTS, "fault model")


def parse_metric(text: str) -> Atom:
    """Return the metric that *text* names, or raise :class:`ValueError`.

    >>> parse_metric("mean-iou:21,output=mask").arguments
    (('classes', 21), ('output', 'mask'))
    """
    return _atom(text.strip(), METRICS, "metric")


def parse_criterion(text: str) -> Expression:
    """Return the expression that *text* writes with ``~``, ``&``, ``|`` and parentheses, or raise :class:`ValueError`.

    >>> parse_criterion("~topk:3,axis=-1")
    Not(part=Atom(name='topk', text='topk:3,axis=-1', arguments=(('k', 3), ('axis', -1))))
    """
    return _Parser(text).whole()


def beside_metric(*, criterion: bool, verdicts: bool, inputs_per_fault: bool) -> str:
    """Return why a metric cannot go with what is given beside it, empty where nothing is."""
    extra = [name for name, given in locals().items() if given]
    why = f"a metric measures every trial on the whole data set, and {' and '.join(extra)} beside it would have no say"
    return f"{why}; leave out the metric or that" if extra else ""


def written(expression: Expression) -> str:
    """Return *expression* as text, which is parsed to the same again.

    >>> written(parse_criterion("(top1:axis=1)|~ ( tokens & margin:1 )"))
    'top1:axis=1 | ~(tokens & margin:1)'
    """
    match expression:
        case Atom():
            return expression.text
        case Not(part):
            return f"~{written(part)}" if isinstance(part, Atom) else f"~({written(part)})"
        case And(parts):
            return " & ".join(_wrapped(part) for part in parts)
        case Or(parts):
            return " | ".join(_wrapped(part) if isinstance(part, Or) else written(part) for part in parts)


def _wrapped(part: Expression) -> str:
    return f"({written(part)})" if isinstance(part, And | Or) else written(part)


class _Parser:
    """Reads one expression from left to right; only parentheses nest."""

    def __init__(self, text: str) -> None:
        self.tokens, self.at, self.levels = re.findall(r"[()&|~]|[^\s()&|~]+", text), 0, 0
        self.text = _shown(text)
        if len(self.tokens) > 4 * MOST_PARTS:
            raise ValueError(f"a criterion has at most {MOST_PARTS:,} parts; write a function of your own for more")

    def next(self) -> str:
        """Return the token at hand, an empty text at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def takes(self, token: str) -> bool:
        """Go on behind *token* if it is at hand."""
        found = self.next() == token
        self.at += found
        return found

    def whole(self) -> Expression:
        """Return the expression, to the end of the text."""
        expression = self.either()
        if self.next():
            raise ValueError(f"expected '&', '|' or the end before {_shown(self.next())} in {self.text}")
        return expression

    def either(self) -> Expression:
        """Return one or more expressions joined by ``|``."""
        parts = [self.both()]
        while self.takes("|"):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def both(self) -> Expression:
        """Return one or more expressions joined by ``&``."""
        parts = [self.single()]
        while self.takes("&"):
            parts.append(self.single())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def single(self) -> Expression:
        """Return a name with its arguments, or what stands in parentheses, negated or not."""
        negated = False
        while self.takes("~"):
            negated = not negated
        token = self.next()
        if token in ("", ")", "&", "|"):
            found = f"'{token}'" if token else "the end"
            raise ValueError(f"expected a criterion before {found} in {self.text}; use {', '.join(CRITERIA)}")
        part = self.inside() if self.takes("(") else self.named()
        return Not(part) if negated else part

    def inside(self) -> Expression:
        """Return what stands in parentheses."""
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise ValueError(f"parentheses nest at most {MOST_LEVELS} deep in a criterion")
        part = self.either()
        if not self.takes(")"):
            raise ValueError(f"a parenthesis is not closed in {self.text}")
        self.levels -= 1
        return part

    def named(self) -> Atom:
        """Return a name with its arguments."""
        self.at += 1
        return _atom(self.tokens[self.at - 1], CRITERIA, "criterion")


def _atom(text: str, known: Mapping[str, Form], what: str) -> Atom:
    name, colon, rest = text.partition(":")
    if name not in known:
        if IMPORTED.match(text):
            return Atom("import", text, (("path", text),))
        choices = ", ".join(f"{key}:..." if form.first and form.required else key for key, form in known.items())
        hint = did_you_mean(name[:_LONGEST], known) or f"; use {choices} or package.module:name"
        raise ValueError(f"no {what} is called {_shown(text)}{hint}")
    form, given = known[name], dict[str, Value]()
    if not form.options and colon:
        raise ValueError(f"'{name}' takes no argument, got {_shown(text)}; write {name}")
    for place, item in enumerate(rest.split(",") if colon else ()):
        key, value = _item(name, item, form, text, first=not place)
        if key in given:
            raise ValueError(f"'{name}' is given {key} twice in {_shown(text)}; keep one of them")
        given[key] = value
    if form.first and form.required and form.first not in given:
        raise ValueError(f"'{name}' needs {form.options[form.first].wanted}, got {_shown(text)}")
    return Atom(name, text, tuple(given.items()))


def _item(name: str, item: str, form: Form, text: str, *, first: bool) -> tuple[str, Value]:
    """Return one argument by its name: ``axis=1``, or the first value without one."""
    key, equals, value = item.partition("=")
    if not equals:
        if not first or form.first is None:
            raise ValueError(
                f"'{name}' takes {_options(form)} by name, got {_shown(text)}; write {name}:{_example(form)}"
            )
        key, value = form.first, item
    if key not in form.options:
        hint = did_you_mean(key[:_LONGEST], form.options) or f"; it takes {_options(form)}"
        raise ValueError(f"'{name}' has no argument {_shown(key)}{hint}")
    argument = form.options[key]
    try:
        return key, argument.read(value)
    except (ValueError, KeyError, OverflowError):
        what = f" as {key}" if equals else ""
        raise ValueError(f"'{name}' needs {argument.wanted}{what}, got {_shown(text)}") from None


def _options(form: Form) -> str:
    return ", ".join(form.options)


def _example(form: Form) -> str:
    return "axis=1" if "axis" in form.options else f"{next(iter(form.options))}=..."


def _shown(text: str) -> str:
    return f"'{text}'" if len(text) <= _LONGEST else f"'{text[:_LONGEST]}...'"
