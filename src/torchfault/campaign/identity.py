"""Which campaign a stored one is: its record, and in what another differs; only the same one may be resumed."""

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import torchfault
from torchfault.campaign.campaign import Campaign, level_of, repeats_of
from torchfault.campaign.description import describe, differences
from torchfault.data import Tree, leaves
from torchfault.errors import CampaignError
from torchfault.results.spaces import space_of
from torchfault.sampling import Design
from torchfault.store import Record

__all__ = ["check_same", "record_of", "sample_of"]

_FREE = ("stop", "settings", "level")  # what a resumed campaign may have otherwise
_SAMPLE = 64  # values of the golden outputs that a record holds
_CLOSE = 1e-3  # of their scale: what other processors may round otherwise


def record_of(
    campaign: Campaign, design: Design, *, name: str, settings: Mapping[str, Any] | None, golden: Mapping[str, Any]
) -> Record:
    """Return what a store keeps of *campaign*; *golden* are facts about the model without faults."""
    verdicts = {key: describe(criterion) for key, criterion in campaign.verdicts.items()}
    configuration = {
        "sampler": describe(campaign.sampler),
        "measure": describe(campaign.measure),
        "fault": describe(campaign.fault),
        "criterion": None if campaign.metric else describe(campaign.criterion),
        "verdicts": verdicts,
        "metric": describe(campaign.metric),
        "resolver": describe(campaign.resolver),
        "assumption": campaign.resolver.assumption,
        "inputs_per_fault": repeats_of(campaign, design),
        "stop": describe(campaign.stop),
        "level": level_of(campaign),
    }
    configuration |= {"monitor": True} if campaign.monitor else {}
    configuration |= {} if settings is None else {"settings": dict(settings)}
    versions = {
        "torchfault": torchfault.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executor": campaign.engine.executor,
    }
    return Record(
        name,
        space=campaign.space.plain(),
        faults=len(campaign.space),
        inputs=campaign.inputs,
        design=design.plain(),
        golden={**campaign.facts, **golden, "outputs": sample_of(campaign.engine.golden())},
        configuration=configuration,
        seed=campaign.seed,
        versions=versions,
        model=campaign.engine.digest(),
        data=campaign.engine.data.digest(),
    )


def sample_of(outputs: Tree) -> list[float]:
    """Return some values of golden *outputs*, evenly spread over each tensor; NaN and infinities as 0.

    >>> sample_of({"logits": torch.tensor([[1.0, 2.0]]), "loss": torch.tensor([torch.nan])})
    [1.0, 2.0, 0.0]
    """
    tensors = [leaf.detach().flatten() for leaf in leaves(outputs) if leaf.numel()]
    values: list[float] = []
    for flat in tensors:
        count = min(max(_SAMPLE // len(tensors), 1), len(flat))
        some = flat[torch.linspace(0, len(flat) - 1, count, dtype=torch.float64).long()]
        if some.is_complex():
            some = some.abs()
        values += some.to(torch.float64).nan_to_num(0.0, 0.0, 0.0).tolist()
    return values


def check_same(stored: Record, now: Record) -> None:
    """Raise :class:`CampaignError`, naming what changed, unless the two are records of one campaign."""
    changed = differences(_identity(stored), _identity(now))
    if stored.space != now.space:
        changed.append(_space_change(stored, now))
    if not changed and not _alike(stored.golden.get("outputs", []), now.golden["outputs"]):
        changed.append(
            "model (its words are the same, but its outputs without faults are not: what it computes changed)"
        )
    if changed:
        raise CampaignError(
            f"campaign '{now.name}' was begun with another {', '.join(changed)}; "
            "restore that to resume it, or choose another name"
        )


def _identity(record: Record) -> dict[str, Any]:
    """Return all that decides a campaign's trials and outcomes, save its space and what may be rounded otherwise."""
    fixed = {key: value for key, value in record.configuration.items() if key not in _FREE}
    digests = {"model": {"sha256": record.model}, "data": {"sha256": record.data}}
    aimed = {}
    if targets := record.design.get("targets"):  # draws and intervals at every look are for these
        aimed = {"half-widths": dict(targets), "level": record.configuration.get("level")}
    return {**digests, "inputs": record.inputs, "seed": record.seed, **fixed, **aimed}


def _alike(before: list[float], now: list[float]) -> bool:
    one, two = np.array(before), np.array(now)
    return one.shape == two.shape and bool(
        np.abs(one - two).max(initial=0.0) <= _CLOSE * np.abs(one).max(initial=1e-12)
    )


def _space_change(stored: Record, now: Record) -> str:
    """Return in words how the spaces of two records differ."""
    kinds = [record.space.get("kind") for record in (stored, now)]
    if kinds != ["faults", "faults"]:
        return f"space (was {space_of(stored)!r}, is now {space_of(now)!r})"
    before, after = ({site["name"]: site for site in record.space["sites"]} for record in (stored, now))
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    other = [name for name in after if name in before and before[name] != after[name]]
    phrases = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("without", gone), ("with the new", new), ("with another", other))
        if names
    ]
    return f"space (now {'; '.join(phrases) or 'its sites in another order'})"
