"""Fault injection and vulnerability analysis for PyTorch: what does a network do when a bit flips under it?

The names below are loaded when first used, so that ``import torchfault`` costs nothing and the half of the package that
needs no torch (spaces, samplers, statistics, the store, results, reports) works without importing it. All else is in
modules, such as ``torchfault.criteria``, ``torchfault.recipes`` and ``torchfault.hardware``.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchfault.adapters.represent import represent as represent
    from torchfault.campaign import Campaign as Campaign
    from torchfault.campaign import CampaignInterrupted as CampaignInterrupted
    from torchfault.criteria import Misclassified as Misclassified
    from torchfault.criteria import Top1Change as Top1Change
    from torchfault.data import Data as Data
    from torchfault.engine import Engine as Engine
    from torchfault.engine import Monitor as Monitor
    from torchfault.engine import inject as inject
    from torchfault.errors import TorchfaultError as TorchfaultError
    from torchfault.faults import BitFlip as BitFlip
    from torchfault.faults import StuckAt as StuckAt
    from torchfault.measures import Measure as Measure
    from torchfault.quick import run as run
    from torchfault.resolve import Monotone as Monotone
    from torchfault.resolve import Pooled as Pooled
    from torchfault.resolve import certified as certified
    from torchfault.results import Results as Results
    from torchfault.results import load as load
    from torchfault.sampling import Adaptive as Adaptive
    from torchfault.sampling import Deviations as Deviations
    from torchfault.sampling import Exhaustive as Exhaustive
    from torchfault.sampling import Importance as Importance
    from torchfault.sampling import Search as Search
    from torchfault.sampling import Statistical as Statistical
    from torchfault.sampling import Uniform as Uniform
    from torchfault.space import Fault as Fault
    from torchfault.space import FaultSpace as FaultSpace
    from torchfault.space import Site as Site
    from torchfault.statistics import Estimate as Estimate
    from torchfault.statistics import HalfWidth as HalfWidth
    from torchfault.statistics import MaxTrials as MaxTrials
    from torchfault.statistics import TimeBudget as TimeBudget
    from torchfault.store import Store as Store

__version__ = "0.1.0"

# The public names by module. A new one goes here and into the block above, for type checkers; a test compares the two.
_PUBLIC = {
    "adapters.represent": ("represent",),
    "campaign": ("Campaign", "CampaignInterrupted"),
    "criteria": ("Misclassified", "Top1Change"),
    "data": ("Data",),
    "engine": ("Engine", "Monitor", "inject"),
    "errors": ("TorchfaultError",),
    "faults": ("BitFlip", "StuckAt"),
    "measures": ("Measure",),
    "quick": ("run",),
    "resolve": ("Monotone", "Pooled", "certified"),
    "results": ("Results", "load"),
    "sampling": ("Adaptive", "Deviations", "Exhaustive", "Importance", "Search", "Statistical", "Uniform"),
    "space": ("Fault", "FaultSpace", "Site"),
    "statistics": ("Estimate", "HalfWidth", "MaxTrials", "TimeBudget"),
    "store": ("Store",),
}
_HOME = {name: f"torchfault.{module}" for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        value: object = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and find_spec(f"torchfault.{name}") is not None:
        return import_module(f"torchfault.{name}")  # a module that nothing has imported yet
    from torchfault.errors import did_you_mean

    raise AttributeError(f"module 'torchfault' has no attribute {name!r}{did_you_mean(name, _HOME)}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
