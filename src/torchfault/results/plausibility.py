"""Whether what a store says can be: every number of a record, a design and a batch within its bounds, before it counts.

Checksums tell damage, not intent: somebody who changes a store can sign it anew. What nothing could have written is
refused here in one line; what could have been written is shown.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from torchfault.cells import Space
from torchfault.errors import StoreError
from torchfault.results.spaces import space_of
from torchfault.sampling.design import Design, Strata
from torchfault.space import FaultSpace
from torchfault.store import Batch, Columns, Record, Store

__all__ = ["check_batch", "check_record", "sound_batches"]

_DESCRIBED = ("measure", "sampler", "fault", "criterion", "metric", "resolver")


def sound_batches(store: Store, name: str) -> tuple[Record, Space, Iterator[Batch]]:
    """Return a stored campaign, its space, and its batches one by one: each is checked as it comes.

    Raises :class:`StoreError` where there is none, and for whatever of it cannot be.
    """
    record = store.campaign(name)
    space, design = space_of(record), Design.from_plain(record.design)
    check_record(record, space, design)

    def checked() -> Iterator[Batch]:
        for batch in store.batches(name):
            check_batch(batch, record, space, design)
            yield batch

    return record, space, checked()


def check_record(record: Record, space: Space, design: Design) -> None:
    """Raise :class:`StoreError` where a record says what cannot be of a campaign in *space* by *design*."""
    facts, golden = record.configuration, record.golden
    inputs = range(record.inputs) if _whole(record.inputs, 1) else range(0)
    drops, answers = golden.get("drop_bounds"), golden.get("answers")
    unlike = {
        "inputs": not inputs,
        "faults": record.faults != len(space),
        "seconds": not _real(record.seconds, 0.0),
        "level": not _real(level := facts.get("level", 0.95), 0.0, 1.0) or level in (0, 1),
        "inputs_per_fault": facts.get("inputs_per_fault", 1) not in range(1, len(inputs) + 1),
        "assumption": not isinstance(facts.get("assumption", ""), str),
        "verdicts": not isinstance(told := facts.get("verdicts", {}), dict) or not all(map(_described, told.values())),
        **{name: not _described(facts.get(name)) for name in _DESCRIBED},
        "settings": not _settings(facts.get("settings")),
        "stop": not _nested(facts.get("stop")),
        "unusable": golden.get("unusable", 0) not in range(len(inputs) + 1),
        "metric": not _real(golden.get("metric", 0.0)),
        "drop_bounds": drops is not None and not _ascending(drops),
        "answers": answers is not None and not _numbers(answers, len(inputs)),
        "monitored": not _names(golden.get("monitored", [])),
        "ranges": not _ranges(golden.get("ranges", {}), space),
    }
    for name, wrong in unlike.items():
        if wrong:
            raise StoreError(f"the {name} of campaign '{record.name}' cannot be; the store is damaged")
    if why := _design(design, space):
        raise StoreError(f"the design of campaign '{record.name}' cannot be ({why}); the store is damaged")


def check_batch(batch: Batch, record: Record, space: Space, design: Design) -> None:
    """Raise :class:`StoreError` where a batch holds what no trial of the campaign can be."""
    columns = batch.columns
    bounds: dict[str, tuple[float, float]] = {
        "faults": (0, len(space) - 1),
        "inputs": (-1 if columns.values is not None else 0, record.inputs - 1),
        "strata": (0, _last_stratum(design, space)),
        "counts": (1, len(columns.faults)),
        "lanes": (0, math.inf),
        "weights": (0, design.largest_weight * (1 + 1e-6) if design.largest_weight else np.finfo(np.float64).max),
        "answers": (-1, np.iinfo(np.int32).max),
        "reach": (-1, len(record.golden.get("monitored", []))),
    }
    for name, (low, high) in bounds.items():
        column = getattr(columns, name)
        if column is not None and len(column) and not (column.min() >= low and column.max() <= high):
            raise _refused(batch, record, f"{name} lie from {low} to {high}, got {column.min()} to {column.max()}")
    if not _real(batch.seconds, 0.0):
        raise _refused(batch, record, f"it took {batch.seconds} seconds")
    if columns.unit != design.unit:
        raise _refused(batch, record, f"its trials are of a {columns.unit}, its draws of a {design.unit}")
    if drops := record.golden.get("drop_bounds"):
        _check_drops(columns, drops, batch, record)
    if columns.unit == "word":
        _check_words(columns, space, batch, record)


def _last_stratum(design: Design, space: Space) -> int:
    """Return the highest number of a stratum; upsets are divided further once a pilot has shown where they matter."""
    known = isinstance(space, FaultSpace) or not design.adapts
    return max(len(design.strata), 1) - 1 if known else _MOST_STRATA


def _check_drops(columns: Columns, drops: list[float], batch: Batch, record: Record) -> None:
    values = columns.values
    if values is None or not ((values >= drops[0] - 1e-6) & (values <= drops[1] + 1e-6)).all():
        raise _refused(batch, record, f"a drop of the metric lies from {drops[0]:g} to {drops[1]:g}")


def _check_words(columns: Columns, space: Space, batch: Batch, record: Record) -> None:
    """Refuse masks of bits that words do not have, and rows that do not name the lowest fault of one."""
    if not isinstance(space, FaultSpace):
        raise _refused(batch, record, "these faults are no flips of words")
    where = space.locate(columns.faults)
    lowest = np.array([min(site.bits, default=0) for site in space.sites])
    known = np.array([sum(1 << bit for bit in site.bits) for site in space.sites], dtype=np.uint64)[where.site]
    if (where.bit != lowest[where.site]).any():
        raise _refused(batch, record, "a word is named by its lowest bit")
    for name, mask in columns.flags.items():
        if (mask.astype(np.uint64) & ~known).any():
            raise _refused(batch, record, f"'{name}' is set for bits that are not struck")


def _refused(batch: Batch, record: Record, why: str) -> StoreError:
    return StoreError(
        f"the trials from {batch.first} on of campaign '{record.name}' cannot be ({why}); the store is damaged"
    )


def _whole(value: object, low: int, high: float = math.inf) -> bool:
    return type(value) is int and low <= value <= high


def _real(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(number := float(value)) and low <= number <= high  # type: ignore[arg-type]


def _ascending(bounds: object) -> bool:
    pair = isinstance(bounds, list) and len(bounds) == 2 and all(map(_real, bounds))
    return pair and bounds[0] <= bounds[1]  # type: ignore[index]


def _described(value: object) -> bool:
    """Whether *value* is what a value of torchfault or of a user is described as: its class and its fields."""
    if not isinstance(value, dict):
        return value is None
    return isinstance(value.get("class", ""), str) and isinstance(value.get("fields", {}), dict)


def _names(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(one, str) for one in values)


def _numbers(values: object, length: int) -> bool:
    return isinstance(values, list) and len(values) == length and all(_whole(one, -1, 1 << 31) for one in values)


def _settings(settings: object) -> bool:
    """Whether *settings* are a configuration as far as results look at it."""
    if settings is None:
        return True
    if not isinstance(settings, dict) or not isinstance(settings.get("ra", {}), dict | None):
        return False
    return all(isinstance(settings.get(name, ""), str) for name in ("recipe", "method"))


def _nested(rule: object) -> bool:
    """Whether *rule* describes a stopping rule: classes with fields, and rules within them."""
    if rule is None:
        return True
    if not isinstance(rule, dict) or not isinstance(rule.get("class", rule.get("function")), str):
        return False
    held = rule.get("fields", {})
    if rule.get("class") == "HalfWidth":
        sound = isinstance(held, dict) and _real(held.get("h"), 1e-9, 0.5) and _real(held.get("level"), 0.0, 1.0)
        return sound and held.keys() <= _HALF_WIDTH and isinstance(held.get("by"), str)
    if rule.get("class") in ("AnyOf", "AllOf"):
        return isinstance(held, dict) and isinstance(held.get("rules"), list) and all(map(_nested, held["rules"]))
    return True


_MOST_STRATA = 1 << 24
_HALF_WIDTH = {"h", "by", "minimum", "level", "method"}


def _ranges(ranges: object, space: Space) -> bool:
    """Whether *ranges* hold the least and the largest value of every channel of the sites that they name."""
    if not isinstance(ranges, dict):
        return False
    if not ranges:
        return True
    if not isinstance(space, FaultSpace) or set(ranges) != set(space.names):
        return False
    return all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(ends, list) and len(ends) == space.site(name).channels for ends in pair)
        and all(isinstance(end, int | float) for ends in pair for end in ends)
        for name, pair in ranges.items()
    )


def _design(design: Design, space: Space) -> str | None:
    """Return in words what cannot be of *design*, ``None`` where all of it can."""
    wrong = {
        "looks": design.looks not in ("one", "every"),
        "unit": design.unit not in ("fault", "word"),
        "clusters": design.clusters not in (None, "channel") or not _clustered(design, space),
        "replacement": not isinstance(design.replacement, bool),
        "enumerates": not isinstance(design.enumerates, bool),
        "adapts": not isinstance(design.adapts, bool),
        "pilot": not _whole(design.pilot, 0, 1 << 62),
        "block": not _whole(design.block, 1 if design.looks == "every" else 0, 1 << 62),
        "pool": not _whole(design.pool, 0, 1 << 20),
        "total": design.total is not None and not _whole(design.total, 0, 1 << 62),
        "reach": not _real(design.reach, 0.0, 1 + 1e-6),
        "largest_weight": design.largest_weight is not None and not _real(design.largest_weight, 1e-300),
        "targets": not _targets(design.targets, space),
        "strata": not _strata(design.strata, space),
    }
    if any(wrong.values()):
        return next(name for name, is_wrong in wrong.items() if is_wrong)
    if design.sample is not None and not all(_whole(one, 0, _last_stratum(design, space)) for one in design.sample):
        return "sample"
    return None


def _clustered(design: Design, space: Space) -> bool:
    """Whether draws from clusters are of words, with a stratum for each site that they come from."""
    if design.clusters is None:
        return True
    held = np.unique(space.cells.group[space.cells.sizes > 0])
    return design.unit == "word" and bool(np.isin(held, design.strata.group).all())


def _targets(targets: object, space: Space) -> bool:
    return isinstance(targets, Mapping) and all(
        by in space.groupings and _real(h, 1e-9, 1.0) for by, h in targets.items()
    )


def _strata(strata: Strata, space: Space) -> bool:
    """Whether *strata* are parts of *space*: each with its place, a size and a mass."""
    parts: list[Any] = [strata.stratum, strata.group, strata.bit, strata.size, strata.mass]
    per_stratum = [held for held in (strata.prior, strata.kind, strata.alone) if held is not None]
    if any(not isinstance(part, np.ndarray) or part.shape != parts[0].shape or part.ndim != 1 for part in parts):
        return False
    if not len(parts[0]) or parts[0].min() < 0 or parts[0].max() >= _MOST_STRATA:
        return False
    if any(held.shape != (len(strata),) for held in per_stratum):
        return False
    cells = space.cells
    within = strata.group.min() >= -1 and strata.group.max() <= cells.group.max(initial=-1)
    within = within and strata.bit.min() >= -1 and strata.bit.max() <= cells.bit.max(initial=-1)
    sized = strata.size.min() >= 0 and strata.size.max() <= len(space)  # strata may overlap: some are looked at twice
    likely = bool(((strata.mass >= 0) & (strata.mass <= 1 + 1e-6)).all())
    prior = strata.prior is None or bool(((strata.prior >= 0) & (strata.prior <= 1)).all())
    return bool(within and sized and likely and prior)
