"""A database behind a network may be away for a while: what its absence cut short is tried again, and then given up."""

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from torchfault.store.lock import BusyError

__all__ = ["Patience"]

Answer = TypeVar("Answer")
_FIRST, _MOST = 0.1, 5.0  # seconds between two tries: twice as many after each


class Patience:
    """How long an outage of the database called *shown* is sat out: *seconds* for each, none after one that was longer.

    >>> Patience(0.0, "results").over(lambda again: again, lambda: None)
    False
    """

    def __init__(self, seconds: float, shown: str) -> None:
        self._seconds, self._shown = seconds, shown

    def over(self, action: Callable[[bool], Answer], reconnect: Callable[[], None]) -> Answer:
        """Return what *action* does; after an outage *reconnect* first, and call *action* with ``True``.

        A transaction whose end was not heard of may have been taken: *action* has to look whether its work is done.
        """
        try:
            return action(False)
        except (OperationalError, InterfaceError) as error:
            if not self._seconds:
                raise
            self._tell(error)
        wait, end = _FIRST, time.monotonic() + self._seconds
        while True:
            time.sleep(wait)
            wait = min(2 * wait, _MOST)
            try:
                reconnect()
                return action(True)
            except (OperationalError, InterfaceError, BusyError):
                if time.monotonic() + wait > end:
                    self._seconds = 0.0
                    raise

    def _tell(self, error: DBAPIError) -> None:
        said = " ".join(str(error.orig or error).split())
        warnings.warn(
            f"the store {self._shown} does not answer ({said}); trying again for {self._seconds:g} s", stacklevel=6
        )
