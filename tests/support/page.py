"""A report's page read back by a few lines: its tables as lists of texts, its text, and what could reach out of it."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

__all__ = ["Page", "read_page"]

_EMPTY = {"meta", "link", "br"}


@dataclass
class Page(HTMLParser):
    """What a page holds: *tables* by the title of their figure, all *tags* with attributes, and its *text*."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    title: str = ""
    open: list[str] = field(default_factory=list)
    cell: list[str] | None = None

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.tags.append((tag, held))
        if tag not in _EMPTY:
            self.open.append(tag)
        if tag == "figure":
            self.title = held.get("aria-label") or ""
        elif tag == "tr":
            self.tables.setdefault(self.title, []).append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_endtag(self, tag):
        if tag not in _EMPTY:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag in ("td", "th"):
            self.tables[self.title][-1].append("".join(self.cell or ()).strip())
            self.cell = None

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.text += data
        if self.cell is not None and "svg" not in self.open:
            self.cell.append(data)


def read_page(text: str) -> Page:
    """Return a page taken apart; every tag must be closed in order."""
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page
