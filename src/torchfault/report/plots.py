"""Plots for papers and slides, by Matplotlib: estimates as dots, their intervals as lines."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfault.errors import StoreError
from torchfault.files import check_target, written
from torchfault.names.word_names import FIELDS
from torchfault.space import FaultSpace
from torchfault.text import visible

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchfault.results import Recall, Results

__all__ = ["check_plot", "one_word", "plot", "plot_recall", "plot_tables", "quiet", "save", "text"]

_INK, _WEAK, _DOT, _BAND = "#1f2933", "#7b8794", "#c2410c", "#f3f4f6"
_MOST_ROWS = 60
_MANY_SITES = 24
_LONGEST = 60  # letters of a name


def plot(
    results: "Results",
    by: str | None = None,
    *,
    flag: str = "failed",
    level: float | None = None,
    method: str = "wilson",
) -> "Figure":
    """Return a figure of what *results* found: the groups of *by*, or else sites (of many, layers) and bits.

    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> results = run(example_campaign(trials=200))
    >>> len(plot(results).axes), plot(results, by="bit").axes[0].get_xlabel()
    (2, 'bit')
    """
    groups = [name for name in ("site", "layer") if name in results.space.groupings]
    if by is None:
        many = len(groups) > 1 and len(results.space.axis("site")) > _MANY_SITES
        chosen = [groups[-1] if many else groups[0]] + (["bit"] if "bit" in results.space.groupings else [])
    else:
        chosen = [by]
    tables = {name: results.table(name, flag, level=level, method=method) for name in chosen}
    metric = results.columns.values is not None
    return plot_tables(
        tables,
        title=results.name,
        level=results.level if level is None else level,
        unit=results.measured if metric else "failing trials (%)" if flag == "failed" else f"{flag} trials (%)",
        scale=1.0 if metric else 100.0,
        word=one_word(results),
    )


def one_word(results: "Results") -> str | None:
    """Return the word format of all sites, or ``None`` where there are several or none."""
    words = {site.word for site in results.space.sites} if isinstance(results.space, FaultSpace) else set()
    return words.pop() if len(words) == 1 else None


def plot_tables(
    tables: "dict[str, pd.DataFrame]",
    *,
    title: str = "",
    level: float = 0.95,
    unit: str = "failing trials (%)",
    scale: float = 100.0,
    word: str | None = None,
) -> "Figure":
    """Return a figure with a panel for each of *tables*, by what their rows stand for: dots with their intervals.

    Tables are those of ``Results.table``, with the columns key, trials, value, low and high; numbers are multiplied by
    *scale* and called *unit*. The panel of ``bit`` has them from the top bit down, with the fields of *word*, if any.
    Of more than 60 rows those of the highest values are drawn.

    >>> import pandas as pd
    >>> rows = {"trials": [100, 90], "value": [0.02, 0.1], "low": [0.005, 0.05], "high": [0.07, 0.18]}
    >>> frames = {by: pd.DataFrame({"key": key} | rows) for by, key in (("layer", ["conv1", "fc"]), ("bit", [30, 31]))}
    >>> [axes.get_xlabel() for axes in plot_tables(frames, word="float32").axes]
    ['failing trials (%)', 'bit']
    """
    from matplotlib.figure import Figure

    chosen = {by: _most(frame[frame["trials"] > 0], by) for by, frame in tables.items()}
    rows = max((len(frame) for by, frame in chosen.items() if by != "bit"), default=0)
    height = min(14.0, max(3.6, 1.4 + 0.24 * rows))
    figure = Figure(figsize=(11 if len(chosen) > 1 else 7, height), layout="constrained")
    panels = figure.subplots(1, len(chosen), squeeze=False, width_ratios=[1.15 if by == "bit" else 1 for by in chosen])
    for axes, (by, frame) in zip(panels[0], chosen.items(), strict=True):
        if by == "bit":
            _columns(axes, frame, scale, word)
            axes.set_xlabel("bit")
            axes.set_ylabel(unit)
        else:
            _rows(axes, frame, scale)
            axes.set_xlabel(unit)
        quiet(axes)
    _headline(figure, title or "Vulnerability")
    told = f"dots: estimates; lines: {100 * level:g} % intervals"
    figure.text(0.99, 0.985, told, ha="right", va="top", fontsize=8, color=_WEAK)
    return figure


def _most(frame: "pd.DataFrame", by: str) -> "pd.DataFrame":
    """Return the rows that a panel has room for, in their order."""
    if by == "bit" or len(frame) <= _MOST_ROWS:
        return frame
    return frame.loc[frame["value"].nlargest(_MOST_ROWS).index.sort_values()]


def plot_recall(found: "Recall", *, title: str = "") -> "Figure":
    """Return a figure of two panels: recall, with its interval, and precision, against the trials of a search.

    *found* is what :func:`torchfault.results.recall` returns; its random sample ends at the dotted line.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> total = SimpleNamespace(value=20.0, low=10.0, high=40.0, level=0.95)
    >>> [axes.get_ylabel() for axes in plot_recall(SimpleNamespace(hits=np.arange(9), total=total, side=4)).axes]
    ['recall (%)', 'precision (%)']
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    trials, total = np.arange(1, len(found.hits) + 1), found.total
    with np.errstate(divide="ignore", invalid="ignore"):
        low, value, high = (np.minimum(100.0 * found.hits / t, 100.0) for t in (total.high, total.value, total.low))
    left.fill_between(trials, low, high, color=_BAND)
    left.plot(trials, value, color=_DOT)
    left.set_ylabel("recall (%)")
    right.plot(trials, 100.0 * found.hits / trials, color=_DOT)
    right.set_ylabel("precision (%)")
    for axes in (left, right):
        axes.axvline(found.side, color=_WEAK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("faults struck; the dotted line ends the random sample")
        axes.set_ylim(bottom=0)
        quiet(axes)
    _headline(figure, title or "Search")
    return figure


def save(figure: "Figure", path: str | Path, *, force: bool = False) -> None:
    """Write *figure* to *path*, in the format of its ending; raises :class:`StoreError` where that cannot be.

    A file that exists is written over with *force* alone.

    >>> from matplotlib.figure import Figure
    >>> save(Figure(), "figure.doc")
    Traceback (most recent call last):
    torchfault.errors.StoreError: a plot is a .png, .pdf or .svg file, got 'figure.doc'; change its ending
    """
    target = Path(path)
    check_plot(target, force=force)
    try:
        import matplotlib as mpl

        # text stays text in vector files, which can then be searched, and set in the font of a paper
        fonts = mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"})
        with written(target, force=force) as part, warnings.catch_warnings(), fonts:
            warnings.filterwarnings("ignore", "Glyph .* missing")  # names may be in any script
            figure.savefig(part, dpi=160, metadata=_undated(target.suffix.lower()))
    except OSError as error:
        raise StoreError(
            f"the plot {target} cannot be written ({error.strerror or error}); choose another place"
        ) from None


def check_plot(path: Path, *, force: bool) -> None:
    """Raise :class:`StoreError` where a plot cannot be saved at *path*, before any work is done for it."""
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise StoreError(f"a plot is a .png, .pdf or .svg file, got '{path.name}'; change its ending")
    if why := check_target(path, force=force):
        raise StoreError(f"the plot '{path}' {why}")


def _undated(suffix: str) -> dict[str, Any]:
    """Return metadata without the time, so that the same results give the same file."""
    return {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(suffix, {})


def text(value: object) -> str:
    """Return a name as a plot shows it: nothing in it is obeyed or taken for mathematics, and long ones are cut."""
    plain = visible(value)
    cut = plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST // 2]}…{plain[-_LONGEST // 2 :]}"
    return cut.replace("$", r"\$")


def _headline(figure: "Figure", title: str) -> None:
    figure.suptitle(text(title), x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)


def _rows(axes: "Axes", frame: "pd.DataFrame", scale: float) -> None:
    position = list(range(len(frame)))
    value, low, high = (frame[name].to_numpy(float) * scale for name in ("value", "low", "high"))
    axes.hlines(position, low, high, color=_WEAK, linewidth=1.6)
    axes.plot(value, position, "o", color=_DOT, markersize=4.5, clip_on=False, zorder=3)
    axes.set_yticks(position, [text(key) for key in frame["key"]], fontsize=8)
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.grid(axis="x", color=_BAND, linewidth=1)
    # The interval of a handful of trials would press all the others flat: it may run off the scale.
    firm = (frame["trials"] > 0.1 * frame["trials"].median()).to_numpy() & (high < float("inf"))
    if firm.any() and low.min() >= 0:
        axes.set_xlim(0, max(high[firm].max(), value[value == value].max()) * 1.05 or 1)


def _columns(axes: "Axes", frame: "pd.DataFrame", scale: float, word: str | None) -> None:
    bit = frame["key"].to_numpy(float)
    value, low, high = (frame[name].to_numpy(float) * scale for name in ("value", "low", "high"))
    axes.vlines(bit, low, high, color=_WEAK, linewidth=1.6)
    axes.plot(bit, value, "o", color=_DOT, markersize=4.5, clip_on=False, zorder=3)
    axes.grid(axis="y", color=_BAND, linewidth=1)
    if not len(frame):
        return
    axes.set_xlim(bit.max() + 0.7, bit.min() - 0.7)  # the top bit first, as a word is written
    if low.min() >= 0:
        axes.set_ylim(bottom=0)
    if word is not None and word in FIELDS:
        _fields(axes, *FIELDS[word], first=bit.min(), last=bit.max())


def _fields(axes: "Axes", mantissa: int, exponent: int, *, first: float, last: float) -> None:
    """Shade the exponent, and name above the panel the fields that it shows."""
    axes.axvspan(mantissa - 0.5, mantissa + exponent - 0.5, color=_BAND, zorder=0)
    fields = {"mantissa": (0, mantissa - 1), "exponent": (mantissa, mantissa + exponent - 1)}
    fields["sign"] = (mantissa + exponent, mantissa + exponent)
    for name, (begin, end) in fields.items():
        if begin <= last and end >= first:
            middle = (max(begin, first) + min(end, last)) / 2
            above = axes.get_xaxis_transform()
            axes.text(middle, 1.01, name, ha="center", va="bottom", transform=above, fontsize=8, color=_WEAK)


def quiet(axes: "Axes", *, size: float = 8) -> None:
    """Leave out of a panel what is no data; text has so many points."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_WEAK)
    axes.tick_params(colors=_INK, labelsize=size, length=3)
    axes.xaxis.label.set(color=_INK, fontsize=size + 1)
    axes.yaxis.label.set(color=_INK, fontsize=size + 1)
