"""Ctrl-C: the first one ends what runs, wherever it comes; those that an impatient user adds cut no tidying short."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["came", "check", "once"]

PATIENCE = 10.0  # seconds that a Ctrl-C waits for the end of an import
_LOOK_AGAIN = 0.05  # seconds

_asked = threading.Event()
_waits_until: float | None = None


@contextmanager
def once(*, last: bool) -> Iterator[None]:
    """Let the first Ctrl-C raise :class:`KeyboardInterrupt`, and ignore others, to the process's end where *last*.

    One that comes amid an import waits for its end, for :data:`PATIENCE` at most: torch runs Python from initialisers
    in C++ whose answer to an exception is to abort the process.
    """
    global _waits_until
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    _waits_until = None
    before, hook = signal.signal(signal.SIGINT, _interrupt), sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else hook(lost)
    try:
        yield
    finally:
        if last:  # Python would hand a Ctrl-C that comes while it ends to the system, which kills
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # It would also kill itself where the interruption passed an `exec` of text; the next `exec` clears that.
            exec("")
        else:
            signal.signal(signal.SIGINT, before)
            sys.unraisablehook = hook


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _waits_until
    del number
    if _imports(frame):
        if _waits_until is None:
            _waits_until = time.monotonic() + PATIENCE
        if time.monotonic() < _waits_until:
            again = threading.Timer(_LOOK_AGAIN, _thread.interrupt_main)
            again.daemon = True
            again.start()
            return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _asked.set()
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Say whether *frame* runs on behalf of an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def came() -> bool:
    """Say whether a Ctrl-C came: what is written in Rust, such as pydantic, makes another error of it."""
    return _asked.is_set()


def check() -> None:
    """Raise :class:`KeyboardInterrupt` where a Ctrl-C was lost: what is raised while objects are removed is ignored."""
    if _asked.is_set():
        _asked.clear()
        raise KeyboardInterrupt
