"""Text for people: names from elsewhere, in which nothing is obeyed or hidden, and numbers and times that read well."""

import math
import re
from collections.abc import Iterable
from html import escape

__all__ = ["HIDDEN", "count", "duration", "facts_html", "file_name", "markdown", "masked", "visible"]

HIDDEN = "***"
_PASSWORDS = (  # of users in URLs, whatever they hold, and in the query of URLs
    re.compile(r"(?P<before>\b[a-zA-Z][\w+.-]*://[^\s:/@]*:)\S+(?=@)"),
    re.compile(r"(?P<before>[?&;]\w*(?:pass|pwd|secret|token)\w*=)[^\s&;'\"]+", re.IGNORECASE),
)

_MARKS = re.compile(r"([\\|`*\[\]<>~])")  # what Markdown would take for its own in a cell
_KEPT = frozenset("\xa0\u3000")  # wide spaces, which show as what they are


def visible(text: object) -> str:
    r"""Return *text* with everything in it that does not print written out, as Python writes it.

    That is control characters (escape sequences of terminals begin with one), line ends, marks that turn the direction
    of writing, invisible characters and lone surrogates. Text of torchfault's own holds none of them.

    >>> visible("conv1.weight"), visible("\x1b[2Jconv\u202e1\n"), visible("\ud800")
    ('conv1.weight', '\\x1b[2Jconv\\u202e1\\n', '\\ud800')
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() or c in _KEPT else c.encode("unicode_escape").decode() for c in plain)


def masked(text: str) -> str:
    """Return *text* with the passwords of URLs masked.

    >>> masked("postgresql+psycopg://me:secret@host/name?sslpassword=secret&connect_timeout=3")
    'postgresql+psycopg://me:***@host/name?sslpassword=***&connect_timeout=3'
    """
    for password in _PASSWORDS:
        text = password.sub(rf"\g<before>{HIDDEN}", text)
    return text


def file_name(name: str) -> str:
    """Return a campaign's name as a part of a file name.

    >>> file_name("../my campaign"), file_name("..")
    ('my-campaign', 'campaign')
    """
    return re.sub(r"[^\w.+-]", "-", name).lstrip(".+-")[:100] or "campaign"


def markdown(text: str) -> str:
    """Return a text as a cell of a Markdown table shows it.

    >>> markdown("a|b")
    'a\\\\|b'
    """
    return _MARKS.sub(r"\\\1", text)


def count(number: float) -> str:
    """Return a whole number with its thousands apart, and very large ones in powers of ten.

    >>> count(20000), count(3 * 10**13)
    ('20,000', '3.00e+13')
    """
    return f"{number:,.0f}" if abs(number) < 10**12 else f"{number:.2e}"


def duration(seconds: float) -> str:
    """Return a time in the two largest units that matter.

    >>> duration(4.26), duration(75), duration(7260)
    ('4.3 s', '1 min 15 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{count(whole // 3600)} h {whole % 3600 // 60} min"


def facts_html(title: object, facts: Iterable[tuple[str, object]]) -> str:
    """Return a title and a table of names and what they are, for notebooks; what is empty is left out.

    >>> facts_html("Engine", [("executor", "graph"), ("fallback", "")])
    '<p>Engine</p><table><tr><th>executor</th><td>graph</td></tr></table>'
    """
    shown = [(escape(visible(name)), escape(visible(value))) for name, value in facts if str(value)]
    rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in shown)
    return f"<p>{escape(visible(title))}</p><table>{rows}</table>"
