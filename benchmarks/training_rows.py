"""The tables of training under faults and of architecture search, as lines of Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks.rows import points, table

__all__ = ["architectures", "drops", "trained"]

Found = Mapping[str, Any]
_DATA = {"digits": "digits", "cifar": "CIFAR-10"}


def drops(found: Found) -> list[str]:
    """Return how many draws it takes until a fault lowers the accuracy by each share.

    >>> drops({"fat": {"0.05": {"uniform": 19.5, "importance": 1.0, "ratio": 19.5}, "overhead": 0.08}})[-1]
    '| 5 % | 19.5 | 1 | 19.5 |'
    """
    rows = [
        [f"{100 * float(drop):g} %", f"{row['uniform']:g}", f"{row['importance']:g}", f"{row['ratio']:.1f}"]
        for drop, row in found["fat"].items()
        if isinstance(row, Mapping) and "ratio" in row
    ]
    return table(["drop", "uniform", "importance (`rising`)", "ratio"], rows)


def trained(found: Found) -> list[str]:
    """Return how many flips fail in networks trained with and without faults, and what that training costs."""
    told, rows = found["fat"], []
    for name, row in told["networks"].items():
        fewer = f"{row['ratio']:.3g} [{row['low']:.3g}, {row['high']:.3g}]" if rows else "1"  # than in the first
        rows.append([name, f"{points(row['failed'], 3)} %", fewer, f"{points(row['clean'], 2)} %"])
    cost = (
        f"Faults in a tenth of the steps take {points(told['overhead'], 1)} % more CPU time than plain training, in "
        f"every step {points(told['overhead_every_step'], 0)} %, and in a tenth from a pool of critical faults, "
        f"searched twice in the training, {points(told['overhead_critical'], 0)} %."
    )
    return [*table(["network", "fail", "fewer", "accuracy"], rows), "", cost]


def architectures(found: Found) -> list[str]:
    """Return what the search for RA finds that the searches for accuracy and for RA_SW do not, and what it costs."""
    by = {_DATA[name]: one for name, one in found["search"].items() if name in _DATA}

    def gained(value: float | None) -> str:
        return "none as accurate" if value is None else f"{points(value, 2)} points"

    lines = {
        "architectures, images learnt, epochs": lambda one: (
            f"{one['architectures']}, {one['images']:,}, {one['epochs']}"
        ),
        "more RA than of accuracy's, at the same accuracy": lambda one: gained(one["ra_gain"]),
        "the most of that": lambda one: gained(one["ra_gain_best"]),
        "more RA than of accuracy's, at no less accuracy": lambda one: gained(one["ra_gain_no_less"]),
        "more RA than of RA_SW's, at the same accuracy": lambda one: gained(one["ra_gain_over_ra_sw"]),
        "best accuracy, without and with RA as an objective": lambda one: (
            f"{points(one['accuracy_alone'], 1)} %, {points(one['accuracy'], 1)} %"
        ),
        "what upsets of data take from a network, least and most": lambda one: (
            f"{points(one['least'], 2)}, {points(one['most'], 2)} points"
        ),
        "CPU time of RA over that of training": lambda one: f"{points(one['overhead'], 1)} %",
        "of one network: training, RA": lambda one: "{:.1f}, {:.1f} s".format(*one["seconds"]),
        "ended early, since dominated": lambda one: f"{one['dominated']} of {one['architectures']}",
    }
    return table(["", *by], [[name, *(tell(one) for one in by.values())] for name, tell in lines.items()])
