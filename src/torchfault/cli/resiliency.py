"""`ra`: how accurate a network is, given that an upset struck the accelerator that runs it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchfault.cli import showing
from torchfault.cli.screen import facts, print_table, share, simple_table, stderr, stdout
from torchfault.config import Settings
from torchfault.config.build import build_engine
from torchfault.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.hardware.accelerator import Accelerator
    from torchfault.hardware.fit import FitSummary
    from torchfault.hardware.resiliency import Resiliency
    from torchfault.statistics import Estimate

__all__ = ["show_resiliency"]


def show_resiliency(
    settings: Settings,
    *,
    accelerator: str,
    harden: Sequence[str],
    faults: int,
    images: int,
    estimator: str,
    flip_flops: int | None,
    form: str,
) -> None:
    """Print Resiliency Accuracy, what it is made of, and failures in time where flip-flops are counted."""
    from torchfault.hardware.accelerator import find_accelerator, hardened
    from torchfault.hardware.fit import fit_summary
    from torchfault.hardware.proposals import check_estimator
    from torchfault.hardware.resiliency import resiliency_accuracy, software_accuracy
    from torchfault.hardware.work import layers_of

    showing.check_format(form)
    check_estimator(estimator)
    chip = find_accelerator(accelerator)
    for name in harden:
        chip = hardened(chip, name)
    engine = build_engine(settings)
    if engine.data.labels is None:
        raise DataError("an accuracy needs labels, got inputs alone; give --data with labels, or name them by --labels")
    layers = layers_of(engine.model, engine.data)
    found = resiliency_accuracy(
        engine,
        chip,
        estimator=estimator,
        faults=faults,
        images=images or None,
        seed=settings.seed,
        level=settings.level,
        layers=layers,
    )
    software = software_accuracy(engine, faults=faults, seed=settings.seed, level=settings.level, layers=layers)
    counted = flip_flops is not None or chip.flip_flops is not None
    fit = fit_summary(chip, found, flip_flops=flip_flops) if counted else None
    table = _table(found, software, fit)
    if form == "table":
        _print(table, chip, found, fit)
    else:
        showing.print_frame(table, form)


def _table(found: "Resiliency", software: "Estimate", fit: "FitSummary | None") -> "pd.DataFrame":
    """Return a data frame of quantities: what, value, low, high; accuracies and probabilities as fractions."""
    import pandas as pd

    rows = [("SA", found.sa, found.sa, found.sa)]
    named = [("RA", found.ra), ("drop", found.drop), ("RA_SW", software), ("SDC", found.sdc), ("DUE", found.due)]
    if fit is not None:
        rows_of_fit = [("chip FIT", fit.chip, fit.chip, fit.chip)]
        named_fit = [("SDC FIT", fit.sdc), ("DUE FIT", fit.due)]
    else:
        rows_of_fit, named_fit = [], []
    rows += [(name, one.value, one.low, one.high) for name, one in named]
    rows += rows_of_fit + [(name, one.value, one.low, one.high) for name, one in named_fit]
    return pd.DataFrame(rows, columns=["quantity", "value", "low", "high"])


_MEANING = {
    "SA": "accuracy without faults",
    "RA": "accuracy, given that an upset struck the chip",
    "drop": "SA - RA",
    "RA_SW": "accuracy under a uniform bit flip in software",
    "SDC": "another answer, given an upset",
    "DUE": "no answer, given an upset",
}


def _print(table: "pd.DataFrame", chip: "Accelerator", found: "Resiliency", fit: "FitSummary | None") -> None:
    console = stdout()
    heads = {"": "left", "%": "right", "low": "right", "high": "right", "meaning": "left"}
    rows = [
        [name, share(value), share(low), share(high), _MEANING[name]]
        for name, value, low, high in table.itertuples(index=False)
        if name in _MEANING
    ]
    print_table(console, simple_table(heads, rows))
    for by in ("type", "layer"):
        console.print()
        parts = found.table(by).itertuples(index=False)
        print_table(
            console,
            simple_table({by: "left", "drop, points": "right"}, [[str(name), share(drop)] for name, drop in parts]),
        )
    if fit is not None:
        console.print(f"\n{fit}", markup=False)
    told = [("accelerator", chip.name), ("estimator", found.estimator), ("lanes", f"{found.lanes:,}")]
    missing = "" if fit is not None else "unknown; give --flip-flops for failures in time"
    facts(stderr(), [*told, ("flip-flops", missing)])
