"""What a search for critical faults adds to a report: how many were found, and how many there are."""

from torchfault.report.charts import Facts, download
from torchfault.report.numbers import PERCENT
from torchfault.report.rows import rows_of
from torchfault.report.section import Figure, Section
from torchfault.results import Results, recall
from torchfault.text import count

__all__ = ["searched"]


def searched(results: Results) -> Section:
    """Return what a search found after so many trials, and which share that is of all there is."""
    found = recall(results)
    total, frame = found.total, found.table()
    bounds = f"[{count(round(total.low))}, {count(round(total.high))}]"
    said = [
        f"{count(len(found.faults))} faults were found that fail, of about {count(round(total.value))} {bounds} there "
        f"are ({100 * total.level:g} % interval), by striking {count(len(results))} of {count(len(results.space))}. "
        f"{count(found.side)} of them were struck at random, and tell how many there are."
    ]
    last = rows_of(frame)[-1]
    figures = [
        Figure(count(len(found.faults)), "", "failing faults found"),
        Figure(f"{100 * last.precision:.1f} %", "", "of the faults struck fail"),
        Figure(
            f"{100 * last.recall:.1f} %",
            PERCENT.interval(last.recall_low, last.recall_high, 1),
            "of all found",
        ),
    ]
    rows = [
        (
            count(row.trials),
            count(row.found),
            PERCENT.text(row.precision, 2),
            PERCENT.text(row.recall, 2),
            PERCENT.interval(row.recall_low, row.recall_high, 2),
        )
        for row in rows_of(frame)
    ]
    head, right = ("trials", "found", "precision %", "recall %", "interval"), (True,) * 5
    notes = (
        "precision: failing ones among those struck; recall: among all that fail, as the random sample counts them",
    )
    table = Facts("After so many trials", head, tuple(rows), right, download(frame, f"{results.name}-recall"), notes)
    return Section("The search", said, figures, [table])
