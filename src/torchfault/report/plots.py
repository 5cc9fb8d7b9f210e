"""Plots for papers and slides, by Matplotlib: estimates as dots, their intervals as lines."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchfault.errors import StoreError
from torchfault.text import visible

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchfault.campaign.discovery import Discovery

__all__ = ["FIELDS", "plot_discovery", "plot_vulnerability", "save"]

FIELDS = {  # bits of mantissa and of exponent; above them is the sign
    "float64": (52, 11),
    "float32": (23, 8),
    "bfloat16": (7, 8),
    "float16": (10, 5),
    "float8_e4m3fn": (3, 4),
    "float8_e5m2": (2, 5),
}
_INK, _WEAK, _DOT, _BAND = "#1f2933", "#7b8794", "#c2410c", "#f3f4f6"
_MOST_ROWS = 60
_LONGEST = 60  # characters of a name


def plot_vulnerability(
    layers: "pd.DataFrame",
    bits: "pd.DataFrame",
    *,
    title: str = "",
    level: float = 0.95,
    metric: bool = False,
    word: str | None = None,
) -> "Figure":
    """Return a figure of two panels: each layer, and each bit, as a dot with its interval.

    *layers* and *bits* are tables of ``Results.table``, with the columns key, trials, value, low and high; shares are
    drawn in percent, drops of a *metric* as they are. *word* names the format whose fields stand behind the bits.
    Of more than 60 layers the most vulnerable are drawn.

    >>> import pandas as pd
    >>> rows = {"trials": [100, 90], "value": [0.02, 0.1], "low": [0.005, 0.05], "high": [0.07, 0.18]}
    >>> frames = [pd.DataFrame({"key": key} | rows) for key in (["conv1", "fc"], [30, 31])]
    >>> [axes.get_xlabel() for axes in plot_vulnerability(*frames, word="float32").axes]
    ['failing trials (%)', 'bit']
    """
    from matplotlib.figure import Figure

    chosen = layers[layers["trials"] > 0]
    if len(chosen) > _MOST_ROWS:
        chosen = chosen.loc[chosen["value"].nlargest(_MOST_ROWS).index.sort_values()]
    height = min(14.0, max(3.6, 1.4 + 0.24 * len(chosen)))
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    scale, unit = (1.0, "drop of the metric") if metric else (100.0, "failing trials (%)")
    _rows(left, chosen, scale)
    left.set_xlabel(unit)
    _columns(right, bits[bits["trials"] > 0], scale, word)
    right.set_xlabel("bit")
    right.set_ylabel(unit)
    for axes in (left, right):
        _quiet(axes)
    figure.suptitle(_plain(title or "Vulnerability"), x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    figure.text(
        0.99,
        0.985,
        f"dots: estimates; lines: {100 * level:g} % intervals",
        ha="right",
        va="top",
        fontsize=8,
        color=_WEAK,
    )
    return figure


def plot_discovery(found: "Discovery", *, title: str = "") -> "Figure":
    """Return a figure of two panels: recall, with its interval, and precision, against the trials of a search.

    *found* is a :class:`torchfault.campaign.Discovery`; its random sample ends at the dotted line.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> total = SimpleNamespace(value=20.0, low=10.0, high=40.0, level=0.95)
    >>> [axes.get_ylabel() for axes in plot_discovery(SimpleNamespace(found=np.arange(9), total=total, side=4)).axes]
    ['recall (%)', 'precision (%)']
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    trials, total = np.arange(1, len(found.found) + 1), found.total
    with np.errstate(divide="ignore", invalid="ignore"):
        low, value, high = (np.minimum(100.0 * found.found / t, 100.0) for t in (total.high, total.value, total.low))
    left.fill_between(trials, low, high, color=_BAND)
    left.plot(trials, value, color=_DOT)
    left.set_ylabel("recall (%)")
    right.plot(trials, 100.0 * found.found / trials, color=_DOT)
    right.set_ylabel("precision (%)")
    for axes in (left, right):
        axes.axvline(found.side, color=_WEAK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("faults struck; the dotted line ends the random sample")
        axes.set_ylim(bottom=0)
        _quiet(axes)
    figure.suptitle(_plain(title or "Search"), x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    return figure


def save(figure: "Figure", path: str | Path) -> None:
    """Write *figure* to *path*, in the format of its ending, or raise :class:`StoreError`.

    >>> from matplotlib.figure import Figure
    >>> save(Figure(), "figure.doc")
    Traceback (most recent call last):
    torchfault.errors.StoreError: a plot is a .png, .pdf or .svg file, got 'figure.doc'; change its ending
    """
    target = Path(path)
    check_plot(target)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # names may be in any script
            figure.savefig(target, dpi=160, metadata=_undated(target.suffix.lower()))
    except OSError as error:
        raise StoreError(
            f"the plot {target} cannot be written ({error.strerror or error}); choose another place"
        ) from None


def check_plot(path: Path) -> None:
    """Raise :class:`StoreError` where a plot cannot be saved at *path*, before any work is done for it."""
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise StoreError(f"a plot is a .png, .pdf or .svg file, got '{path.name}'; change its ending")
    if not path.absolute().parent.is_dir():
        raise StoreError(f"the plot '{path}' needs a folder that exists; make '{path.parent}' first")


def _undated(suffix: str) -> dict[str, Any]:
    """Return metadata without the time, so that the same results give the same file."""
    return {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(suffix, {})


def _plain(text: object) -> str:
    """Return text from elsewhere so that Matplotlib neither obeys it nor takes it for a formula; long ones cut."""
    plain = visible(text)
    cut = plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST // 2]}…{plain[-_LONGEST // 2 :]}"
    return cut.replace("$", r"\$")


def _rows(axes: "Axes", frame: "pd.DataFrame", scale: float) -> None:
    position = list(range(len(frame)))
    value, low, high = (frame[name].to_numpy(float) * scale for name in ("value", "low", "high"))
    axes.hlines(position, low, high, color=_WEAK, linewidth=1.6)
    axes.plot(value, position, "o", color=_DOT, markersize=4.5, clip_on=False, zorder=3)
    axes.set_yticks(position, [_plain(key) for key in frame["key"]], fontsize=8)
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
    if word in FIELDS:
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


def _quiet(axes: "Axes") -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_WEAK)
    axes.tick_params(colors=_INK, labelsize=8, length=3)
    axes.xaxis.label.set(color=_INK, fontsize=9)
    axes.yaxis.label.set(color=_INK, fontsize=9)
