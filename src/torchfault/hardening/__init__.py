"""Hardening: from a model and what it is like without faults to one that survives more of them.

A method is a frozen value; :func:`harden` applies several, in turn, to a copy of the model, which stays an ordinary
``nn.Module``: :class:`Ranges` for activations, :class:`InvariantBits` and :class:`WeightRanges` for weights,
:class:`Parity`, :class:`Secded`, :class:`Triplicate` and, of int8 codes, :class:`ZeroSpace` for encodings of them,
:class:`WeightChecksums` and :class:`Checksums` for sums over stored words and over what layers compute.
:class:`Standby` has guards act only where a look at a pass finds something wrong. :func:`detecting` tells what guards
see, :func:`recomputing` computes that again, and :func:`protect` chooses what to protect for a budget.
:func:`train_with_faults` trains under faults.
"""

from torchfault.hardening.attention import checked_attention
from torchfault.hardening.checksums import Checksums, WeightChecksums
from torchfault.hardening.codes import unpacked
from torchfault.hardening.detection import Detecting, Detection, detecting, detection
from torchfault.hardening.draws import FaultDraws, Refreshed
from torchfault.hardening.encodings import Parity, Secded, Triplicate
from torchfault.hardening.faulty_steps import FaultySteps
from torchfault.hardening.harden import Guard, Method, guards, harden, overhead
from torchfault.hardening.notation import METHODS, method
from torchfault.hardening.profile import Profile, Range, profile
from torchfault.hardening.protection import Protection, front, protect, residual
from torchfault.hardening.ranges import Ranges
from torchfault.hardening.recomputation import Recomputing, recomputing
from torchfault.hardening.saved import load_hardened, save_hardened
from torchfault.hardening.standby import Standby
from torchfault.hardening.trained_bounds import train_bounds
from torchfault.hardening.training import Training, train_with_faults
from torchfault.hardening.weights import InvariantBits, WeightRanges
from torchfault.hardening.zero_space import ZeroSpace

__all__ = [
    "METHODS",
    "Checksums",
    "Detecting",
    "Detection",
    "FaultDraws",
    "FaultySteps",
    "Guard",
    "InvariantBits",
    "Method",
    "Parity",
    "Profile",
    "Protection",
    "Range",
    "Ranges",
    "Recomputing",
    "Refreshed",
    "Secded",
    "Standby",
    "Training",
    "Triplicate",
    "WeightChecksums",
    "WeightRanges",
    "ZeroSpace",
    "checked_attention",
    "detecting",
    "detection",
    "front",
    "guards",
    "harden",
    "load_hardened",
    "method",
    "overhead",
    "profile",
    "protect",
    "recomputing",
    "residual",
    "save_hardened",
    "train_bounds",
    "train_with_faults",
    "unpacked",
]
