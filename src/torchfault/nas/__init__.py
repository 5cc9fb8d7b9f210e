"""Architecture search: networks that are accurate, cheap, and stay accurate under faults.

:func:`search_architectures` runs a study of Optuna whose objectives are accuracy, robustness and MACs; :class:`Race`
tells when a candidate needs no further trials, and serves any search.
"""

from torchfault.nas.convolutional import Architecture, convolutional, network
from torchfault.nas.race import Contender, Race
from torchfault.nas.robustness import Robustness
from torchfault.nas.search import Candidate, Plan, candidates, front, search_architectures

__all__ = [
    "Architecture",
    "Candidate",
    "Contender",
    "Plan",
    "Race",
    "Robustness",
    "candidates",
    "convolutional",
    "front",
    "network",
    "search_architectures",
]
