"""Fault injection and vulnerability analysis for PyTorch: what does a network do when a bit flips under it?

The names below are loaded when first used, so that ``import torchfault`` costs nothing and the half of the package that
needs no torch (spaces, samplers, statistics, the store, reports) works without importing it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchfault.errors import TorchfaultError as TorchfaultError
    from torchfault.faults import BitFlip as BitFlip
    from torchfault.faults import Burst as Burst
    from torchfault.faults import RandomWord as RandomWord
    from torchfault.faults import StuckAt as StuckAt
    from torchfault.faults import Value as Value
    from torchfault.measures import Measure as Measure
    from torchfault.sampling import BitErrorRate as BitErrorRate
    from torchfault.sampling import Draws as Draws
    from torchfault.sampling import Exhaustive as Exhaustive
    from torchfault.sampling import Uniform as Uniform
    from torchfault.space import Fault as Fault
    from torchfault.space import FaultSpace as FaultSpace
    from torchfault.space import Site as Site

__version__ = "0.1.0"

# The public names by module. A new one goes here and into the block above, for type checkers; a test compares the two.
_PUBLIC = {
    "errors": ("TorchfaultError",),
    "faults": ("BitFlip", "Burst", "RandomWord", "StuckAt", "Value"),
    "measures": ("Measure",),
    "sampling": ("BitErrorRate", "Draws", "Exhaustive", "Uniform"),
    "space": ("Fault", "FaultSpace", "Site"),
}
_HOME = {name: f"torchfault.{module}" for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        from torchfault.errors import did_you_mean

        raise AttributeError(f"module 'torchfault' has no attribute {name!r}{did_you_mean(name, _HOME)}", name=name)
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
