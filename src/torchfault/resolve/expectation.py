"""What outcome to expect of a trial: by its stratum or bit so far, by the field of its bit, and by its input."""

import numpy as np
from numpy.typing import NDArray

from torchfault.space import FaultSpace
from torchfault.store import Columns
from torchfault.words import word

__all__ = ["Expectation", "is_top_bit"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_PRIOR_TRIALS = 4.0  # what is expected of a bit counts as so many trials of its kind
_CALM = 0.5  # what all inputs being alike counts for, in failures of quiet faults
_TOP, _HIGH, _LOW = 0.5, 0.01, 0.002  # failing shares: exponent's top bit, sign and other exponent bits, mantissa


class Expectation:
    """The failing shares so far of a campaign on *space*: by stratum where it has *strata*, else by bit, and by input.

    No bit alone makes one expect more than *most*.

    >>> from torchfault.space import Site
    >>> expectation = Expectation(FaultSpace((Site("a", (4,)),)), strata=0)
    >>> expectation.of(Columns(np.array([30, 3]), np.zeros(2, dtype=np.int64)))
    array([0.5  , 0.002])
    """

    def __init__(self, space: FaultSpace, *, strata: int, most: float = _TOP) -> None:
        self.space, self.strata, self.most = space, strata, most
        self._of_bit = np.array([[_share(site.word, bit) for bit in range(64)] for site in space.sites])
        self._trials, self._failures = np.zeros((2, max(strata, 64)))
        self._quiet, self._tipped = np.zeros((2, 0))

    def add(self, columns: Columns) -> None:
        """Take in the next trials, single faults."""
        if columns.unit == "word":
            columns = columns.flips(*self.space.flips(columns.faults))
        key, failed = self._key(columns), columns.failed.astype(bool)
        self._trials += np.bincount(key, minlength=len(self._trials))
        self._failures += np.bincount(key[failed], minlength=len(self._trials))
        self._reserve(columns.inputs)
        quiet = ~is_top_bit(self.space, columns.faults)
        self._quiet += np.bincount(columns.inputs[quiet], minlength=len(self._quiet))
        self._tipped += np.bincount(columns.inputs[quiet & failed], minlength=len(self._quiet))

    def of(self, columns: Columns) -> Floats:
        """Return the failing share expected of each trial of *columns*, single faults."""
        where, key = self.space.locate(columns.faults), self._key(columns)
        prior = np.minimum(self._of_bit[where.site, where.bit], self.most)
        share = (self._failures[key] + _PRIOR_TRIALS * prior) / (self._trials[key] + _PRIOR_TRIALS)
        self._reserve(columns.inputs)
        # some inputs tip over at a touch: how many times as often as elsewhere quiet faults failed on them
        usual = self._quiet * (self._tipped.sum() / max(self._quiet.sum(), 1))
        fragility = (self._tipped + _CALM) / (usual + _CALM)
        return np.asarray(np.minimum(share * fragility[columns.inputs], _TOP))

    def _key(self, columns: Columns) -> Ints:
        return columns.stratum if self.strata > 1 else self.space.locate(columns.faults).bit.astype(np.int64)

    def _reserve(self, inputs: Ints) -> None:
        more = int(inputs.max(initial=-1)) + 1 - len(self._quiet)
        if more > 0:
            self._quiet, self._tipped = (np.append(part, np.zeros(more)) for part in (self._quiet, self._tipped))


def is_top_bit(space: FaultSpace, index: Ints) -> Bools:
    """Return which faults strike the top bit of an exponent: their errors are so large that they hide all others.

    >>> from torchfault.space import Site
    >>> is_top_bit(FaultSpace((Site("a", (4,)),)), np.array([29, 30, 31])).tolist()
    [False, True, False]
    """
    where = space.locate(index)
    top = np.array([_top(site.word) for site in space.sites])
    return np.asarray(where.bit == top[where.site])


def _top(name: str) -> int:
    """Return the top bit of the exponent of a word format, -1 where it has none."""
    fields = word(name).fields
    return fields["exponent"][-1] if "exponent" in fields else -1


def _share(name: str, bit: int) -> float:
    """Return the failing share to expect of a bit of a word format before anything is known."""
    fmt = word(name)
    if bit >= fmt.width:
        return 0.0
    if "exponent" not in fmt.fields:
        return max(_TOP / 2.0 ** (fmt.width - bit), _LOW)  # an integer's top bit: half of _TOP
    if bit in fmt.fields.get("mantissa", ()):
        return _LOW
    return _TOP if bit == _top(name) else _HIGH
