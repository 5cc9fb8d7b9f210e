"""Gives shards to workers that come and go, and each shard again that a lost worker had."""

import heapq
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from torchfault.errors import EngineError, TorchfaultError
from torchfault.resolve import Verdicts
from torchfault.trials import Trials

__all__ = ["Dispatch", "Link", "LostError"]

_MOST_LOST = 3  # workers that one shard may take along before it is held responsible


class LostError(Exception):
    """A worker went away amid a shard, or before one."""


class Link(Protocol):
    """The driver's end of one worker."""

    def __call__(self, trials: Trials) -> Verdicts:
        """Return the verdicts of *trials*; raise :class:`LostError` without the worker, or what the worker raised."""
        ...


@dataclass(order=True)
class _Shard:
    number: int
    trials: Trials = field(compare=False)
    future: "Future[Verdicts]" = field(compare=False)
    lost: int = field(default=0, compare=False)


class Dispatch:
    """A crew of about *size* workers: shards go out in their order, to whoever is free.

    So many are *present*, and so many shards were *answered*.

    >>> dispatch = Dispatch(1)
    >>> thread = dispatch.serve(lambda trials: {"failed": trials})
    >>> dispatch.submit("three trials").result()
    {'failed': 'three trials'}
    >>> dispatch.close()
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.answered = self.present = 0
        self._waiting: list[_Shard] = []
        self._given = 0
        self._changed = threading.Condition()
        self._ended: TorchfaultError | None = None

    def submit(self, trials: Trials) -> "Future[Verdicts]":
        """Give *trials* to the next worker that is free."""
        future: Future[Verdicts] = Future()
        with self._changed:
            if self._ended is not None:
                future.set_exception(self._ended)
                return future
            heapq.heappush(self._waiting, _Shard(self._given, trials, future))
            self._given += 1
            self._changed.notify()
        return future

    def serve(self, link: Link, gone: Callable[[], None] = lambda: None) -> threading.Thread:
        """Give shards to *link*, in a thread of its own, until its worker is lost or all ends; then call *gone*."""
        with self._changed:
            self.present += 1
        thread = threading.Thread(target=self._serve, args=(link, gone), daemon=True)
        thread.start()
        return thread

    def _serve(self, link: Link, gone: Callable[[], None]) -> None:
        while (shard := self._next()) is not None:
            try:
                verdicts = link(shard.trials)
            except LostError:
                self._again(shard)
                break
            except BaseException as error:  # the trials' own: it is the driver's to hear, as if they had run there
                shard.future.set_exception(error)
            else:
                with self._changed:
                    self.answered += 1
                shard.future.set_result(verdicts)
        with self._changed:
            self.present -= 1
        gone()

    def _next(self) -> _Shard | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended is not None)
            return None if self._ended is not None else heapq.heappop(self._waiting)

    def _again(self, shard: _Shard) -> None:
        shard.lost += 1
        if shard.lost >= _MOST_LOST:
            what = f"{_MOST_LOST} workers ended amid the same {len(shard.trials)} trials"
            told = f"{what}, perhaps out of memory; take fewer workers or a smaller --memory"
            shard.future.set_exception(EngineError(told))
            return
        with self._changed:
            if self._ended is not None:
                shard.future.set_exception(self._ended)
                return
            heapq.heappush(self._waiting, shard)
            self._changed.notify()

    def close(self) -> None:
        """End without an error of anyone's: nobody waits any more."""
        self.fail(EngineError("the workers have ended; start others"))

    @property
    def ended(self) -> bool:
        """Whether nothing is given out any more."""
        return self._ended is not None

    def fail(self, error: TorchfaultError) -> None:
        """End, unless all has ended: whoever waits for verdicts, and whoever will ask for some, gets *error*."""
        with self._changed:
            self._ended = self._ended or error
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
        for shard in left:
            shard.future.set_exception(self._ended)
