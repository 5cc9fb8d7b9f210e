"""Ctrl-C: the first one ends what runs, wherever it comes; those that an impatient user adds cut no tidying short."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["check", "once"]

_asked = threading.Event()


@contextmanager
def once(*, last: bool) -> Iterator[None]:
    """Let the first Ctrl-C raise :class:`KeyboardInterrupt`, and ignore others, to the process's end where *last*."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    before, hook = signal.signal(signal.SIGINT, _interrupt), sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else hook(lost)
    try:
        yield
    finally:
        if last:  # Python would hand a Ctrl-C that comes while it ends to the system, which kills
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGINT, before)
            sys.unraisablehook = hook


def _interrupt(number: int, frame: Any) -> None:
    del number, frame
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _asked.set()
    raise KeyboardInterrupt


def check() -> None:
    """Raise :class:`KeyboardInterrupt` where a Ctrl-C was lost: what is raised while objects are removed is ignored."""
    if _asked.is_set():
        _asked.clear()
        raise KeyboardInterrupt
