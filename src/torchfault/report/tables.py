"""Tables for papers, in Markdown and in LaTeX (booktabs, siunitx): each estimate with its interval."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torchfault.report.numbers import PERCENT, Unit
from torchfault.report.rows import bounds_in
from torchfault.text import markdown, visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["latex_table", "markdown_table"]

_PLAIN = Unit(1.0, "")
_ESCAPES: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def markdown_table(frame: "pd.DataFrame", *, level: float = 0.95, percent: bool = True) -> str:
    """Return *frame*, a table of results, in Markdown: estimates with their intervals, as many digits as these bear.

    Estimates are columns such as *value*, *low* and *high*, or *ra*, *ra_low* and *ra_high*; *percent* multiplies them,
    and other shares, by 100. *level* is that of the intervals, for the heading.

    >>> import pandas as pd
    >>> table = {"key": ["fc"], "trials": [100], "value": [0.1], "low": [0.05], "high": [0.2]}
    >>> print(markdown_table(pd.DataFrame(table)))
    | key | trials | value % | 95 % interval |
    | :-- | --: | --: | --: |
    | fc | 100 | 10.00 | [5.00, 20.00] |
    """
    heads, rows, sides = list[str](), [list[str]() for _ in range(len(frame))], list[str]()
    for name, bounds in _columns(frame):
        unit = PERCENT if percent and _is_share(frame, name, bounds) else _PLAIN
        heads.append(markdown(visible(f"{name} {unit.sign}".strip())))
        digits = _digits(frame, name, bounds, unit)
        numbers = frame[name].dtype.kind in "fiu"
        sides.append("--:" if numbers else ":--")
        for row, value in zip(rows, frame[name].tolist(), strict=True):
            row.append(_ascii(unit.text(float(value), digits)) if numbers else markdown(visible(value)))
        if bounds:
            heads.append(f"{100 * level:g} % interval")
            sides.append("--:")
            for row, low, high in zip(rows, *(frame[end].tolist() for end in bounds), strict=True):
                row.append(_ascii(unit.interval(low, high, digits)))
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, sides, *rows))


def latex_table(frame: "pd.DataFrame", *, level: float = 0.95, percent: bool = True) -> str:
    r"""Return *frame*, a table of results, as a LaTeX tabular: columns aligned at the point, bounds in brackets.

    It needs the packages booktabs and siunitx. Parameters are those of :func:`markdown_table`.

    >>> import pandas as pd
    >>> print(latex_table(pd.DataFrame({"key": ["a_b"], "value": [0.1], "low": [0.05], "high": [0.2]})))
    % needs \usepackage{booktabs,siunitx}
    \begin{tabular}{lS[table-format=2.2]@{\quad[}S[table-format=1.2]@{,\;}S[table-format=2.2]@{]}}
    \toprule
    key & {value / \%} & \multicolumn{2}{c}{95\,\% interval} \\
    \midrule
    a\_b & 10.00 & 5.00 & 20.00 \\
    \bottomrule
    \end{tabular}
    """
    places, heads, rows = "", list[str](), [list[str]() for _ in range(len(frame))]
    for name, bounds in _columns(frame):
        if frame[name].dtype.kind not in "fiu":
            places, heads = f"{places}l", [*heads, _escaped(name)]
            for row, value in zip(rows, frame[name].tolist(), strict=True):
                row.append(_escaped(value))
            continue
        unit = PERCENT if percent and _is_share(frame, name, bounds) else _PLAIN
        digits = _digits(frame, name, bounds, unit)
        cells = [[_number(value, unit, digits) for value in frame[column].tolist()] for column in (name, *bounds)]
        formats = [f"S[table-format={_format(column)}]" for column in cells]
        places += formats[0] if not bounds else rf"{formats[0]}@{{\quad[}}{formats[1]}@{{,\;}}{formats[2]}@{{]}}"
        sign = r" / \%" if unit.sign else ""
        heads.append(f"{{{_escaped(name)}{sign}}}")
        if bounds:
            heads.append(rf"\multicolumn{{2}}{{c}}{{{100 * level:g}\,\% interval}}")
        for column in cells:
            for row, cell in zip(rows, column, strict=True):
                row.append(cell)
    lines = [r"% needs \usepackage{booktabs,siunitx}", rf"\begin{{tabular}}{{{places}}}", r"\toprule"]
    lines += [rf"{' & '.join(heads)} \\", r"\midrule", *(rf"{' & '.join(row)} \\" for row in rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _columns(frame: "pd.DataFrame") -> list[tuple[str, tuple[str, ...]]]:
    """Return the columns of *frame* in order, each with those of its bounds, if there are."""
    known, taken, found = [str(name) for name in frame.columns], set[str](), []
    for name in known:
        ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
        bounds = ends if set(ends) <= set(known) else ()
        taken |= set(bounds)
        found.append((name, bounds))
    return [(name, bounds) for name, bounds in found if name not in taken]


_SHARES = ("due", "precision", "share", "variance", "detected", "first", "second", "injected", "error")
_OTHERS = ("_fit", "_fit_change")  # ends of names of what has bounds and is no share


def _is_share(frame: "pd.DataFrame", name: str, bounds: tuple[str, ...]) -> bool:
    """Whether a column holds shares: estimates, and those that tables of results call by such a name."""
    real = frame[name].dtype.kind == "f" and not name.endswith(_OTHERS)
    return real and (bool(bounds) or name in _SHARES)


def _digits(frame: "pd.DataFrame", name: str, bounds: tuple[str, ...], unit: Unit) -> int:
    """Return how many decimals a column is shown with."""
    if frame[name].dtype.kind in "iu":
        return 0
    if not bounds:
        return 2 if unit.sign else 4
    return unit.digits(bounds_in(frame, (name, *bounds)))


def _ascii(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")


def _number(value: float, unit: Unit, digits: int) -> str:
    if math.isnan(value):
        return "{--}"
    if math.isinf(value):
        return r"{$\infty$}" if value > 0 else r"{$-\infty$}"
    return _ascii(unit.text(value, digits)).replace(",", "")


def _format(cells: list[str]) -> str:
    """Return how many digits siunitx is to reserve before and behind the point."""
    plain = [cell for cell in cells if not cell.startswith("{")] or ["0"]
    parts = [cell.removeprefix("-").partition(".") for cell in plain]
    sign = "-" if any(cell.startswith("-") for cell in plain) else ""
    return f"{sign}{max(len(part[0]) for part in parts)}.{max(len(part[2]) for part in parts)}"


def _escaped(value: object) -> str:
    """Return a name as LaTeX prints it."""
    return "".join(_ESCAPES.get(letter, letter) for letter in visible(value))
