"""Fault injection and vulnerability analysis for PyTorch: what does a network do when a bit flips under it?

The names below are loaded when first used, so that ``import torchfault`` costs nothing and the half of the package that
needs no torch (spaces, samplers, statistics, the store, reports) works without importing it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchfault.adapters.represent import represent as represent
    from torchfault.campaign import Campaign as Campaign
    from torchfault.campaign import CampaignInterrupted as CampaignInterrupted
    from torchfault.campaign import Results as Results
    from torchfault.campaign import load as load
    from torchfault.campaign import run as run
    from torchfault.criteria import MarginDrop as MarginDrop
    from torchfault.criteria import Misclassified as Misclassified
    from torchfault.criteria import NonFinite as NonFinite
    from torchfault.criteria import OutputError as OutputError
    from torchfault.criteria import Top1Change as Top1Change
    from torchfault.criteria import TopK as TopK
    from torchfault.data import Data as Data
    from torchfault.engine import Engine as Engine
    from torchfault.engine import Monitor as Monitor
    from torchfault.engine import inject as inject
    from torchfault.engine import optimizer_space as optimizer_space
    from torchfault.engine import upset_optimizer as upset_optimizer
    from torchfault.errors import TorchfaultError as TorchfaultError
    from torchfault.faults import BitFlip as BitFlip
    from torchfault.faults import Burst as Burst
    from torchfault.faults import RandomWord as RandomWord
    from torchfault.faults import StuckAt as StuckAt
    from torchfault.faults import Value as Value
    from torchfault.hardware.accelerator import FLAT as FLAT
    from torchfault.hardware.accelerator import NVDLA_LIKE as NVDLA_LIKE
    from torchfault.hardware.accelerator import OUTPUT_STATIONARY as OUTPUT_STATIONARY
    from torchfault.hardware.accelerator import WEIGHT_STATIONARY as WEIGHT_STATIONARY
    from torchfault.hardware.accelerator import Accelerator as Accelerator
    from torchfault.hardware.accelerator import FlipFlops as FlipFlops
    from torchfault.hardware.fit import fit_summary as fit_summary
    from torchfault.hardware.objective import resiliency_objective as resiliency_objective
    from torchfault.hardware.resiliency import Resiliency as Resiliency
    from torchfault.hardware.resiliency import resiliency_accuracy as resiliency_accuracy
    from torchfault.hardware.resiliency import software_accuracy as software_accuracy
    from torchfault.hardware.whatif import what_if as what_if
    from torchfault.measures import Measure as Measure
    from torchfault.sampling import Adaptive as Adaptive
    from torchfault.sampling import BitErrorRate as BitErrorRate
    from torchfault.sampling import Draws as Draws
    from torchfault.sampling import Exhaustive as Exhaustive
    from torchfault.sampling import Importance as Importance
    from torchfault.sampling import Learned as Learned
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
    from torchfault.vulnerability import Refinements as Refinements
    from torchfault.vulnerability import Vulnerability as Vulnerability

__version__ = "0.1.0"

# The public names by module. A new one goes here and into the block above, for type checkers; a test compares the two.
_PUBLIC = {
    "campaign": ("Campaign", "CampaignInterrupted", "Results", "load", "run"),
    "criteria": ("MarginDrop", "Misclassified", "NonFinite", "OutputError", "Top1Change", "TopK"),
    "engine": ("Engine", "Monitor", "inject", "optimizer_space", "upset_optimizer"),
    "errors": ("TorchfaultError",),
    "faults": ("BitFlip", "Burst", "RandomWord", "StuckAt", "Value"),
    "hardware.accelerator": (
        "FLAT",
        "NVDLA_LIKE",
        "OUTPUT_STATIONARY",
        "WEIGHT_STATIONARY",
        "Accelerator",
        "FlipFlops",
    ),
    "hardware.fit": ("fit_summary",),
    "hardware.objective": ("resiliency_objective",),
    "hardware.resiliency": ("Resiliency", "resiliency_accuracy", "software_accuracy"),
    "hardware.whatif": ("what_if",),
    "measures": ("Measure",),
    "data": ("Data",),
    "adapters.represent": ("represent",),
    "sampling": ("Adaptive", "BitErrorRate", "Draws", "Exhaustive", "Importance", "Learned", "Statistical", "Uniform"),
    "space": ("Fault", "FaultSpace", "Site"),
    "statistics": ("Estimate", "HalfWidth", "MaxTrials", "TimeBudget"),
    "store": ("Store",),
    "vulnerability": ("Refinements", "Vulnerability"),
}
_HOME = {name: f"torchfault.{module}" for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name == "vulnerability":  # a module that is called like a function
        return import_module("torchfault.vulnerability")
    if name not in _HOME:
        from torchfault.errors import did_you_mean

        raise AttributeError(f"module 'torchfault' has no attribute {name!r}{did_you_mean(name, _HOME)}", name=name)
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
