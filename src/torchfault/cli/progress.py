"""How a running campaign is shown: one live line on a terminal, plain lines at a sensible distance elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torchfault.cli import interruption
from torchfault.cli.screen import Piece, count, duration, is_terminal, live_line, say, told

if TYPE_CHECKING:
    from rich.live import Live

    from torchfault.campaign import Standing
    from torchfault.statistics import Estimate

__all__ = ["Ticker", "Watch"]

_BAR = 28
_LEAST = 1.0  # seconds between two plain lines
_MOST = 15.0
_STEP = 0.1  # of the whole, after which a plain line is due


class Ticker:
    """One live line, or plain lines now and then, as a context manager that tidies up after itself."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._spoke, self._share = time.monotonic(), 0.0

    def __enter__(self) -> Self:
        if is_terminal():
            self._live = live_line()
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, line: str, share: float | None) -> None:
        """Show *line* and the *share* done, ``None`` where nothing tells."""
        if self._live is not None:
            self._live.update(told(*_bar(share), line), refresh=True)
            return
        waited, done = time.monotonic() - self._spoke, share or 0.0
        self._share = min(self._share, done)  # a next campaign begins anew
        if waited > _MOST or (waited > _LEAST and done - self._share >= _STEP):
            self._spoke, self._share = time.monotonic(), done
            say(f"  {line}")


def _bar(share: float | None) -> list[Piece]:
    if share is None:
        return ["  "]
    full = min(1.0, share) * _BAR
    whole = int(full)
    half = "╸" if full - whole >= 0.5 else ""
    rest = _BAR - whole - len(half)
    return ["  ", ("━" * whole + half, "green"), ("━" * rest, "dim"), "  "]


class Watch:
    """A progress callback for :func:`torchfault.campaign.run`, and a context manager that tidies up after it.

    *before* is called before anything is shown.
    """

    def __init__(self, *, method: str, before: Callable[[], None] = lambda: None) -> None:
        self._ticker, self._method, self._before = Ticker(), method, before

    def __enter__(self) -> Self:
        self._ticker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ticker.__exit__(kind, value, traceback)

    def __call__(self, standing: "Standing") -> None:
        interruption.check()
        self._before()
        self._ticker.show(self._line(standing), standing.done / standing.total if standing.total else None)

    def _line(self, standing: "Standing") -> str:
        of = f" of {count(standing.total)}" if standing.total else ""
        left = f"  {duration(standing.left)} left" if standing.left is not None else ""
        running = f"  {self._estimate(standing.estimate)}" if standing.estimate.trials else ""
        part = f"{standing.part}  " if standing.part else ""
        return f"{part}{count(standing.done)}{of} trials  {count(round(standing.rate))}/s{left}{running}"

    def _estimate(self, estimate: "Estimate") -> str:
        from torchfault.statistics import proportion

        if estimate.method.startswith("quantile"):
            return f"median drop {estimate.value:.4g}"
        if estimate.method.startswith("gaffke") or not 0 <= estimate.low <= estimate.high <= 1:
            return f"mean drop {estimate.value:.4g}"
        if estimate.method == "wilson":
            failures = round(estimate.value * estimate.trials)
            estimate = proportion(failures, estimate.trials, method=self._method, level=estimate.level)
        return f"failing {estimate.format_percent()}"
