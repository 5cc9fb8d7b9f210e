"""The evidence pack as one JSON object: elements with their numbers, totals, assumptions, and the trace to trials."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import torchfault
from torchfault.errors import CampaignError, ConfigError
from torchfault.hardware.upset_space import UpsetSpace
from torchfault.report.evidence import bounds
from torchfault.report.evidence.assumptions import assumptions, claim
from torchfault.report.evidence.faults import Faults, check_rates
from torchfault.report.evidence.outcomes import DETECTED, DUE, FAILED, SDC, UNDETECTED
from torchfault.report.evidence.upsets import Upsets
from torchfault.results import Results, load
from torchfault.space import FaultSpace
from torchfault.store import Columns, Record, Store

__all__ = ["SCHEMA", "Asked", "pack"]

SCHEMA = "torchfault-evidence/1"
_LISTED = 20  # failing trials whose numbers an element lists; all of them go into a digest


@dataclass(frozen=True)
class Asked:
    """What a pack is to say: the *confidence* of bounds, a *detector*, raw *rates*, and the number of *flip_flops*.

    *detector* is the name of a flag that trials recorded, such as ``due`` or a verdict; *rates* are FIT per Mbit (2^20
    bits) by kind of site or glob of its name, the first that fits.
    """

    confidence: float = 0.95
    detector: str | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    flip_flops: int | None = None


def pack(store: Store, names: Sequence[str], asked: Asked) -> dict[str, Any]:
    """Return the evidence of the campaigns *names* in *store*, as plain JSON.

    Everything follows from the store and *asked*: the same again gives the same object. Raises
    :class:`torchfault.errors.TorchfaultError` for campaigns that tell no outcomes of single faults, and for rates of
    nothing.

    >>> import tempfile
    >>> from torchfault.campaign import run
    >>> from torchfault.testing import example_campaign
    >>> with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/results.sqlite") as store:
    ...     _ = run(example_campaign(trials=200), store=store, name="linear")
    ...     held = pack(store, ["linear"], Asked(rates={"weight": 700.0}))
    >>> held["campaigns"][0]["elements"][0]["element"], held["campaigns"][0]["elements"][0]["trials"]
    ('weight', 200)
    """
    bounds.check_confidence(asked.confidence)
    found = [load(store, name) for name in names]
    spaces = [results.space for results in found]
    faults = (space for space in spaces if isinstance(space, FaultSpace))
    check_rates(asked.rates, {(site.name, site.kind) for space in faults for site in space.sites})
    if asked.flip_flops is not None and not any(isinstance(space, UpsetSpace) for space in spaces):
        raise ConfigError("--flip-flops: expected a campaign of upsets in an accelerator, got none; leave it out")
    return {
        "schema": SCHEMA,
        "torchfault": torchfault.__version__,
        "claim": claim(),
        "asked": asdict(asked) | {"rates": [{"of": key, "fit_per_mbit": rate} for key, rate in asked.rates.items()]},
        "campaigns": [_campaign(results, asked) for results in found],
    }


def _campaign(results: Results, asked: Asked) -> dict[str, Any]:
    """Return what one campaign is evidence of."""
    _check(results)
    if asked.detector is not None:
        results.question("model", asked.detector)  # refuses a flag that was not recorded
    if isinstance(results.space, UpsetSpace):
        flip_flops = asked.flip_flops
        source: Faults | Upsets = Upsets(results, asked.confidence, asked.detector, flip_flops)
        by = "type"
    else:
        source, by = Faults(results, asked.confidence, asked.detector, asked.rates), "site"
    elements = [_element(one, asked) for one in source.elements()]
    traces = _traces(results, by)
    for element, trace in zip(elements, traces, strict=True):
        element |= trace
    held: dict[str, Any] = _finite(
        {
            "name": results.name,
            "elements": elements,
            "totals": _totals(source, elements, asked),
            "assumptions": assumptions(results, asked.detector),
            "trace": _trace(results),
        }
    )
    return held


def _check(results: Results) -> None:
    """Raise :class:`CampaignError` for a campaign whose trials are no outcomes of single faults."""
    if not len(results):
        raise CampaignError(f"campaign '{results.name}' has no trials yet; run it, and ask again")
    if results.columns.values is not None:
        raise CampaignError(
            f"campaign '{results.name}' measured a metric; evidence needs outcomes, so run it by a criterion"
        )
    if results.columns.counts is not None:
        raise CampaignError(
            f"campaign '{results.name}' struck several faults together; evidence is of single ones: --sampler uniform"
        )


def _element(held: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Return an element with its fractions, and rates where its raw rate is known."""
    fractions, raw = held["fractions"], held["raw_fit"]
    failing = fractions[FAILED]
    residual = fractions[UNDETECTED] if asked.detector else failing
    plain = ("element", "kind", "module", "module_type", "word", "bits", "raw_fit")
    return {
        **{name: held[name] for name in plain},
        "safe_fraction": bounds.complement(failing),
        "failure_modes": [_mode("SDC", fractions[SDC], raw), _mode("DUE", fractions[DUE], raw)],
        "diagnostic_coverage": held["coverage"],
        "residual_fraction": residual,
        "residual_fit": None if raw is None else bounds.scaled(residual, raw),
        "detected_fit": bounds.scaled(fractions[DETECTED], raw) if asked.detector and raw is not None else None,
        "no_effect_fit": None if raw is None else bounds.scaled(bounds.complement(failing), raw),
    }


def _mode(name: str, fraction: bounds.Fraction, raw: float | None) -> dict[str, Any]:
    return {"mode": name, "fraction": fraction, "fit": None if raw is None else bounds.scaled(fraction, raw)}


def _totals(source: Faults | Upsets, elements: Sequence[Mapping[str, Any]], asked: Asked) -> dict[str, Any] | None:
    """Return what the single-point and latent-fault metrics ask for, over all elements with a raw rate."""
    residual = source.total(UNDETECTED if asked.detector else FAILED)
    failing = source.total(FAILED)
    if residual is None or failing is None:
        return None
    raw = sum(one["raw_fit"] for one in elements if one["raw_fit"] is not None)
    return {
        "raw_fit": raw,
        "single_point_or_residual_fit": residual,
        "detected_fit": source.total(DETECTED) if asked.detector else None,
        "no_effect_fit": {
            "value": raw - failing["value"],
            "lower": raw - failing["upper"],
            "upper": raw - failing["lower"],
        },
        "spfm_of_these_elements": {
            "value": 1 - residual["value"] / raw,
            "lower": 1 - residual["upper"] / raw,
            "upper": 1 - residual["lower"] / raw,
        },
        "elements_without_rate": sum(one["raw_fit"] is None for one in elements),
    }


def _traces(results: Results, by: str) -> list[dict[str, Any]]:
    """Return, for each element, its trials by number: how many, which failed, and digests of their numbers."""
    columns, axis = results.columns, results.space.axis(by)
    design = results.design
    fair = np.ones(len(columns), np.bool_) if design.sample is None else np.isin(columns.stratum, design.sample)
    group = np.where(fair, axis.code(columns.faults), -1)
    failed = columns.flag(FAILED).astype(bool)
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(len(axis) + 1))
    parts = [order[begin:end].astype(np.int64) for begin, end in pairwise(ends)]
    return [
        {
            "trials": len(part),
            "failures": int(failed[part].sum()),
            "due": int((columns.flag("due").astype(bool) & failed)[part].sum()),
            "trials_sha256": _digest(part),
            "failed_sha256": _digest(part[failed[part]]),
            "first_failed": part[failed[part]][:_LISTED].tolist(),
        }
        for part in parts
    ]


def _digest(numbers: NDArray[np.int64]) -> str:
    """Return the SHA-256 of numbers of trials, ascending, as little-endian int64."""
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()


def _trace(results: Results) -> dict[str, Any]:
    """Return where the numbers come from: the campaign's facts, and digests of its row and of all its trials."""
    record = results.record
    plain = ("status", "reason", "created", "seed", "inputs", "faults", "model", "data", "versions")
    return {
        **{name: _plain(getattr(record, name)) for name in plain},
        "trials": len(results),
        "lanes": results.lanes,
        "unit": results.columns.unit,
        "space_sha256": results.space.digest(),
        "campaign_sha256": _record_digest(record),
        "trials_sha256": _columns_digest(results.columns),
        "settings": _plain(record.configuration.get("settings")),
    }


def _record_digest(record: Record) -> str:
    named = (
        "name",
        "space",
        "design",
        "golden",
        "configuration",
        "seed",
        "versions",
        "model",
        "data",
        "inputs",
        "faults",
    )
    held = {name: _plain(getattr(record, name)) for name in named}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def _columns_digest(columns: Columns) -> str:
    """Return a SHA-256 over every column and flag of the trials, by name, in one type each."""
    digest = hashlib.sha256()
    arrays: dict[str, NDArray[Any]] = {"faults": columns.faults, "inputs": columns.inputs, "weights": columns.weight}
    arrays |= {"strata": columns.stratum} | {f"flag {name}": flag for name, flag in columns.flags.items() if flag.any()}
    for name, array in sorted(arrays.items()):
        kind = "<f8" if array.dtype.kind == "f" else "<u8" if array.dtype.kind == "u" else "<i8"
        digest.update(f"{name} {len(array)}\n".encode() + array.astype(kind).tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Return *value* as JSON would give it back."""
    return json.loads(json.dumps(value, default=dict))


def _finite(value: Any) -> Any:
    """Return *value* with None in place of what is no number."""
    if isinstance(value, Mapping):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
