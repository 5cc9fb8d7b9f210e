"""What a scope must bring back, brought back in full: whatever interrupts it, and also where nobody ends the scope."""

import _thread
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Undo", "Uninterrupted"]


class Uninterrupted:
    """A scope in which Ctrl-C waits for its end.

    Only the main thread is ever interrupted, so that others need no protection, and cannot give any.

    >>> with Uninterrupted():
    ...     print("all of this, or nothing")
    all of this, or nothing
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._came: FrameType | bool | None = False

    def __enter__(self) -> None:
        self._handler, self._came = None, False
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._wait)

    def _wait(self, _: int, frame: FrameType | None) -> None:
        self._came = frame

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._came is not False:
                self._handler(signal.SIGINT, self._came)


class Undo:
    """Actions that take back what a scope has done: the last one first, each of them once, at the end of the scope.

    An interrupt waits until all are done, and so does an error of one of them. Where an interrupt keeps the scope
    itself from ending, the actions follow as soon as nobody holds it any more. Only what is *guarded* keeps Ctrl-C from
    coming between two actions at all, which costs some microseconds.

    >>> with Undo() as undo:
    ...     undo.add(lambda: print("second"))
    ...     undo.add(lambda: print("first"))
    first
    second
    """

    def __init__(self, *, guarded: bool = True) -> None:
        self._actions: list[Callable[[], object]] = []
        self.guard: AbstractContextManager[None] = Uninterrupted() if guarded else nullcontext()

    def add(self, action: Callable[[], object]) -> None:
        """Remember *action*, which may be done twice where an interrupt makes that necessary."""
        self._actions.append(action)

    def __enter__(self) -> "Undo":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        self.close()

    def close(self) -> None:
        """Do what is to be done."""
        failed: BaseException | None = None
        with self.guard:
            while self._actions:
                try:
                    self._actions[-1]()
                except KeyboardInterrupt as interrupt:  # of whoever raises it by himself
                    failed = interrupt
                    continue
                except Exception as error:
                    failed = failed or error
                self._actions.pop()
        if failed is not None:
            raise failed

    def __del__(self) -> None:
        if self._actions:
            try:
                self.close()
            except KeyboardInterrupt:  # which would get lost here
                _thread.interrupt_main()
