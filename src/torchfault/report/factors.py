"""What a campaign for vulnerability factors adds to a report: those of the model, and what injection would take."""

from torchfault.report.charts import Facts, Intervals
from torchfault.report.numbers import PERCENT
from torchfault.report.rows import estimate_of, rows_of
from torchfault.report.section import Section
from torchfault.report.words import kinds_of
from torchfault.results import Results, factors
from torchfault.results.vulnerability import in_two_stages
from torchfault.sampling import plan
from torchfault.space import FaultSpace
from torchfault.text import count, visible

__all__ = ["factored"]


def factored(results: Results) -> Section:
    """Return the vulnerability factors of the model, and what injection would take."""
    frame = factors(results, "model")
    named = kinds_of(results)
    rows = rows_of(frame)
    whole = PERCENT.full(estimate_of(rows[-1]))
    said = [
        f"Of single bit flips, each bit counting alike, {whole} fail: the total vulnerability factor of the model. The "
        "other factor, MVF, is the mean over tensors, in which small ones count as much as large ones."
    ]
    if in_two_stages(results):
        said[0] += (
            " Which changes of value did no harm, channel by channel, tells: "
            f"torchfault show {visible(results.name)} --by channel"
        )
    key = [f"{row.factor} of {named.get(row.kind, row.kind)}" for row in rows]
    model = Intervals.of(
        frame.assign(factor=key),
        title="Vulnerability factors of the model",
        head="factor",
        name=f"{results.name}-factors",
    )
    return Section("Vulnerability factors", said, charts=[model, _plan(results)])


def _plan(results: Results) -> Facts:
    assert isinstance(results.space, FaultSpace)
    table = plan(results.space)[["method", "trials"]].rename(columns={"trials": "runs"})
    own = results.lanes / max(results.record.inputs, 1)
    shown = [("this analysis", count(round(own)), "1.0")]
    shown += [(row.method, count(round(row.runs)), f"{row.runs / max(own, 1e-9):,.1f}") for row in rows_of(table)]
    told = ("a run: all inputs once; injection for a margin of ±1 % at 95 %, each fault on all inputs, as published",)
    head = ("method", "runs", "times as many")
    return Facts("What injection would take", head, tuple(shown), (False, True, True), notes=told)
