"""Outcomes of trials by failure mode: a wrong answer without notice, no answer, and what a detector would have told."""

from collections.abc import Mapping

from torchfault.store import Columns
from torchfault.store.columns import Flags

__all__ = ["DETECTED", "DUE", "FAILED", "SDC", "UNDETECTED", "marked"]

FAILED = "failed"
SDC, DUE = "evidence SDC", "evidence DUE"
DETECTED, UNDETECTED = "evidence detected", "evidence undetected"


def marked(columns: Columns, detector: str | None) -> dict[str, Flags]:
    """Return the flags of *columns* by failure mode, and by what the flag *detector* tells of failing trials.

    >>> import numpy as np
    >>> flags = {"failed": np.array([True, True, False]), "due": np.array([False, True, False])}
    >>> held = marked(Columns(np.arange(3), np.zeros(3, np.int64), flags), "due")
    >>> held[SDC].tolist(), held[DETECTED].tolist(), held[UNDETECTED].tolist()
    ([True, False, False], [False, True, False], [True, False, False])
    """
    failed, due = columns.flag(FAILED), columns.flag("due")
    flags: Mapping[str, Flags] = {FAILED: failed, SDC: failed & ~due, DUE: failed & due}
    if detector is None:
        return dict(flags)
    told = columns.flag(detector)
    return {**flags, DETECTED: failed & told, UNDETECTED: failed & ~told}
