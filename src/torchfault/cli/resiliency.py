"""`ra`: how accurate a network is, given that an upset struck the accelerator that runs it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torchfault.cli.screen import check_format, facts, print_frame, print_table, say, share, simple_table
from torchfault.config import Settings
from torchfault.config.build import build_engine
from torchfault.errors import DataError, HardwareError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from torchfault.hardware.accelerator import Accelerator
    from torchfault.hardware.fit import FitSummary
    from torchfault.hardware.resiliency import Resiliency
    from torchfault.statistics import Estimate

__all__ = ["TABLES", "show_resiliency"]

_NOTHING = 1e-12  # less is rounding
TABLES = ("summary", "type", "layer", "bit", "what-if")


def show_resiliency(
    settings: Settings,
    *,
    accelerator: str,
    harden: Sequence[str],
    buffers: Sequence[str],
    protect: Sequence[str],
    faults: int,
    images: int,
    estimator: str,
    flip_flops: int | None,
    table: str,
    form: str,
) -> None:
    """Print Resiliency Accuracy, what it is made of, failures in time, and what changes of the chip would do."""
    from torchfault.hardware.fit import fit_summary
    from torchfault.hardware.layers import layers_of
    from torchfault.hardware.proposals import check_estimator
    from torchfault.hardware.resiliency import resiliency_accuracy, software_accuracy

    check_format(form)
    check_estimator(estimator)
    if table not in TABLES:
        raise HardwareError(f"no table is called '{table}'{did_you_mean(table, TABLES)}; known: {', '.join(TABLES)}")
    chip = _chip(accelerator, harden, buffers, flip_flops)
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
    changes = _what_if(found, protect)
    software = software_accuracy(engine, faults=faults, seed=settings.seed, level=settings.level, layers=layers)
    fit = fit_summary(chip, found) if chip.flip_flops is not None else None
    summary = _summary(found, software, fit)
    if form != "table":
        frames = {"summary": lambda: summary, "what-if": lambda: changes}
        print_frame(frames.get(table, lambda: found.table(table))(), form)
        return
    _print_summary(summary, found)
    _print_parts(found)
    if fit is not None:
        for line in ("", "failures in 10^9 hours (FIT)", *str(fit).splitlines()):
            say(line, out=True)
    _print_changes(changes, counted=fit is not None)
    told = [("accelerator", chip.name), ("estimator", found.estimator), ("lanes", f"{found.lanes:,}")]
    missing = "" if fit is not None else "not counted; give --flip-flops for failures in time"
    say()
    facts([*told, ("flip-flops", missing)])


def _chip(name: str, harden: Sequence[str], buffers: Sequence[str], flip_flops: int | None) -> "Accelerator":
    """Return the accelerator that flags describe."""
    from torchfault.hardware.accelerator import find_accelerator, hardened, with_buffer

    chip = find_accelerator(name)
    if flip_flops is not None:
        chip = replace(chip, flip_flops=flip_flops)
    for one in harden:
        chip = hardened(chip, one)
    for one in buffers:
        holds, _, bits = one.partition("=")
        if holds not in ("input", "weight", "output") or not bits.isdecimal() or int(bits) < 1:
            raise HardwareError(f"--buffer {one}: expected input, weight or output = bits, such as weight=524288")
        if chip.flip_flops is None:
            raise HardwareError(f"a buffer is weighed against the flip-flops of '{chip.name}'; give --flip-flops")
        share = int(bits) / chip.flip_flops * sum(part.share for part in chip.types)
        chip = with_buffer(chip, f"{holds} buffer", holds=holds, share=share)  # type: ignore[arg-type]
    return chip


def _what_if(found: "Resiliency", protect: Sequence[str]) -> "pd.DataFrame":
    from torchfault.hardware import whatif

    usual = whatif.usual_changes(found)
    named = tuple(map(whatif.protect, protect)) or tuple(change for change in usual if change.layers)
    return whatif.what_if_table(found, (*(change for change in usual if change.fits), *named))


def _summary(found: "Resiliency", software: "Estimate", fit: "FitSummary | None") -> "pd.DataFrame":
    """Return a data frame of quantities: what, value, low, high; accuracies and probabilities as fractions."""
    import pandas as pd

    rows = [("SA", found.sa, found.sa, found.sa)]
    named = [("RA", found.ra), ("drop", found.drop), ("RA_SW", software), ("SDC", found.sdc), ("DUE", found.due)]
    rows += [(name, one.value, one.low, one.high) for name, one in named]
    if fit is not None:
        rows.append(("chip FIT", fit.chip, fit.chip, fit.chip))
        rows += [(name, one.value, one.low, one.high) for name, one in (("SDC FIT", fit.sdc), ("DUE FIT", fit.due))]
    return pd.DataFrame(rows, columns=["quantity", "value", "low", "high"])


_MEANING = {
    "SA": "accuracy without faults",
    "RA": "accuracy, given that an upset struck the chip",
    "drop": "SA - RA",
    "RA_SW": "accuracy under a uniform bit flip in software",
    "SDC": "another answer, given an upset",
    "DUE": "no answer, given an upset: a crash, NaN or infinity",
}


def _print_summary(table: "pd.DataFrame", found: "Resiliency") -> None:
    level = f"{100 * found.ra.level:g} % interval"
    heads = {"": "left", "%": "right", level: "left", "meaning": "left"}
    rows = [
        [name, share(value), _interval(low, high) if high > low else "", _MEANING[name]]
        for name, value, low, high in table.itertuples(index=False)
        if name in _MEANING
    ]
    print_table(simple_table(heads, rows))


def _print_parts(found: "Resiliency") -> None:
    """Print what types, layers and bits take from the accuracy; bits that take nothing are left out."""
    say(out=True)
    say("what takes it away, in points: faults in data, as sampled, and crashes of control, as summed", out=True)
    heads = {"data": "right", "interval": "left", "control": "right", "both": "right"}
    for by in ("type", "layer", "bit"):
        table = found.table(by)
        if by == "bit":
            table = table[(table["data"] != 0) | (table["control"] > 0)].iloc[::-1]
        rows = [
            [
                "none" if by == "bit" and name == -1 else str(name),
                *((share(data), _interval(low, high)) if high > low else ("", "")),
                share(control) if control else "",
                share(both),
            ]
            for name, data, low, high, control, both in table.itertuples(index=False)
        ]
        say(out=True)
        print_table(simple_table({by: "left", **heads}, rows))


def _print_changes(table: "pd.DataFrame", *, counted: bool) -> None:
    """Print the what-if table: RA and failures in time after each change, and by how much they change."""
    unit = "FIT" if counted else "% of upsets"
    say(out=True)
    say(f"what if, from the same upsets weighed anew: RA in %, failures in {unit}", out=True)
    say("RA is given an upset: without upsets that did no harm it falls, and so do failures; judge by these", out=True)
    say(out=True)
    heads = {"change": "left", "RA": "right", "RA changes by": "left", "chip": "right"}
    heads |= {"SDC": "right", "SDC changes by": "left", "DUE": "right", "DUE changes by": "left"}
    rows = []
    for held in table.to_dict("records"):
        row = {str(name): value for name, value in held.items()}
        cells = [str(row["change"]), share(row["ra"]), _change(row, "ra_change", share)]
        show = (lambda value: f"{value:.3g}") if counted else share
        cells.append(show(row["chip_fit"]))
        for name in ("sdc_fit", "due_fit"):
            cells += [show(row[name]), _change(row, f"{name}_change", show)]
        rows.append(cells)
    print_table(simple_table(heads, rows))


def _change(row: dict[str, Any], name: str, show: Callable[[float], str]) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if max(abs(value), abs(low), abs(high)) < _NOTHING:
        return ""
    return f"{'+' if value > 0 else ''}{show(value)} [{show(low)}, {show(high)}]"


def _interval(low: float, high: float) -> str:
    return f"[{share(low)}, {share(high)}]"
