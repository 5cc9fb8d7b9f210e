"""What proofs have told of a campaign: outcomes without a lane that rest on no assumption, and how many were run."""

from dataclasses import dataclass

from torchfault.sampling.flips import masks_of, popcount
from torchfault.store import Columns

__all__ = ["Proofs", "proofs_of"]


@dataclass(frozen=True)
class Proofs:
    """Of *trials* outcomes, found by *lanes* lanes, *proven* followed from proofs; *checked* of these were run all the
    same, drawn at random, and *disproved* came out otherwise, which is to be reported as a defect.

    >>> print(Proofs(1000, 310, 700, 10, 0))
    1,000 outcomes from 310 lanes; 700 are proven, 0 of 10 that were run all the same came out otherwise
    """

    trials: int
    lanes: int
    proven: int
    checked: int
    disproved: int

    def __str__(self) -> str:
        told = f"{self.trials:,} outcomes from {self.lanes:,} lanes; {self.proven:,} are proven"
        if not self.checked:
            return told
        return f"{told}, {self.disproved:,} of {self.checked:,} that were run all the same came out otherwise"


def proofs_of(columns: Columns, *, trials: int, lanes: int) -> Proofs | None:
    """Return what proofs told in *columns* of so many *trials* and *lanes*; ``None`` where they told nothing."""
    flags = ("proven", "checked", "disproved")
    proven, checked, disproved = (int(popcount(masks_of(columns, name)).sum()) for name in flags)
    return Proofs(trials, lanes, proven, checked, disproved) if proven else None
