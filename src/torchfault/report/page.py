"""The report: one HTML file that needs nothing else, made of what the store holds, without torch."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torchfault
from torchfault.errors import StoreError
from torchfault.files import check_target, written
from torchfault.report.accelerator import accelerated
from torchfault.report.answers import answers
from torchfault.report.compared import compared
from torchfault.report.factors import factored
from torchfault.report.findings import converging, ending, found, has_classes, travelling
from torchfault.report.method import method
from torchfault.report.repeat import repeat
from torchfault.report.searched import searched
from torchfault.report.section import Section
from torchfault.report.words import listed
from torchfault.results import Results, outcomes
from torchfault.results.upset_sample import lacking
from torchfault.results.vulnerability import of_factors
from torchfault.text import count, visible

__all__ = ["render", "sections", "write_report"]

_HERE = Path(__file__).parent
_MOST = 6  # campaigns on one page


@dataclass(frozen=True)
class _Group:
    """Sections under one heading (none for a page about one campaign), and the level of their intervals."""

    anchor: str
    name: str
    level: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class _Entry:
    anchor: str
    title: str


def write_report(results: Results | Sequence[Results], path: str | Path, *, force: bool = False) -> int:
    """Write the report of one campaign, or of several side by side, to *path*; return the size of the file in bytes.

    The first of several is what the others are compared with. A file that exists is written over with *force* alone.
    Raises :class:`StoreError` for a place that cannot be written to, and for no or more than six campaigns.

    >>> import tempfile
    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(run(example_campaign(trials=200)), f"{folder}/report.html") < 100_000
    True
    """
    target = Path(path)
    if why := check_target(target, force=force):
        raise StoreError(f"the report '{target}' {why}")
    text = render([results] if isinstance(results, Results) else results).encode()
    try:
        with written(target, force=force) as part:
            part.write_bytes(text)
    except OSError as error:
        raise StoreError(f"the report {target} cannot be written ({error.strerror or error})") from None
    return len(text)


def sections(results: Results) -> list[Section]:
    """Return the parts of the report of one campaign, in order: which there are follows from its design.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> [part.title for part in sections(run(example_campaign(trials=200)))][:3]
    ['Answers', 'Where faults do harm', 'How trials ended']
    """
    if not len(results):
        return [Section("Answers", ["This campaign has no trials yet."]), repeat(results)]
    upsets, search = not lacking(results.record), results.design.sample is not None
    parts = [accelerated(results)] if upsets else [searched(results)] if search else []
    classes = outcomes(results) if has_classes(results) else None
    parts.append(answers(results, classes))
    parts += [factored(results)] if of_factors(results) else []
    parts.append(found(results))
    parts += [] if classes is None else [ending(results, classes)]
    seen = [part for part in (travelling(results), converging(results)) if part is not None]
    return [*parts, *seen, method(results), repeat(results)]


def render(results: Sequence[Results]) -> str:
    """Return the report of campaigns as one HTML page; raises :class:`StoreError` for none, or more than six."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not 0 < len(results) <= _MOST:
        raise StoreError(f"a report is of 1 to {_MOST} campaigns, got {len(results)}; name some of them")
    several = len(results) > 1
    level = {one.name: f"{100 * one.level:g} %" for one in results}
    groups = [_Group("compared", "", level[results[0].name], [compared(results)])] if several else []
    groups += [
        _Group(f"campaign-{number}", visible(one.name) if several else "", level[one.name], sections(one))
        for number, one in enumerate(results, 1)
    ]
    style, script = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["as_uri"] = lambda text: f"data:text/plain;charset=utf-8,{quote(text)}"
    heading = listed([visible(one.name) for one in results])
    return environment.get_template("page.html").render(
        title=f"{heading}: fault-injection report",
        heading=heading,
        about=_about(results),
        contents=_contents(groups),
        groups=groups,
        version=torchfault.__version__,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _about(results: Sequence[Results]) -> str:
    days = sorted({one.record.created[:10] for one in results if one.record.created})
    when = f", begun {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}" if days else ""
    return f"{count(sum(map(len, results)))} trials{when}"


def _contents(groups: Sequence[_Group]) -> list[_Entry]:
    """Return the entries of the contents: campaigns where there are several, else the parts."""
    if len(groups) == 1:
        return [_Entry(f"{groups[0].anchor}-{n}", part.title) for n, part in enumerate(groups[0].sections, 1)]
    named = [_Entry(one.anchor, one.name) for one in groups if one.name]
    return [_Entry("compared-1", "Compared"), *named]


def _hash(text: str) -> str:
    """Return what a content security policy knows a script or a style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
