"""Workers that are processes on this machine."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torchfault.campaign.workers import Bench, Crew
from torchfault.cluster.dispatch import Dispatch
from torchfault.cluster.sockets import Door, opened
from torchfault.cluster.worker import KEY, assigned
from torchfault.errors import EngineError

__all__ = ["Processes", "threads_each"]

_LOOK = 0.1  # seconds between two looks at whether all processes live
_MOST_FRUITLESS = 3  # times in a row that processes may end within the first seconds, and nothing is answered
_FIRST = 20.0


@dataclass(frozen=True)
class Processes:
    """Run lanes in *count* processes of this machine, each with so many *threads*: its share of the cores unless told.

    Each holds the model and the golden cache, within the engine's memory budget. One that is lost is replaced, and what
    it was at is run again; Ctrl-C ends them all. Results are those of a campaign without workers, save that another
    number of *threads* may round otherwise. Raises :class:`EngineError` for fewer than one process or thread.

    >>> Processes(2)
    Processes(count=2, threads=None)
    """

    count: int
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("threads", 1 if self.threads is None else self.threads)):
            if value < 1:
                raise EngineError(f"{name} of workers is at least 1, got {value}; run without workers, or give more")

    @contextmanager
    def start(self, bench: Bench) -> Iterator[Crew]:
        """Start the processes, which end with the scope."""
        dispatch = Dispatch(self.count)
        assignment = assigned(bench, threads=self.threads or threads_each(self.count))
        with opened(dispatch, assignment) as door:
            keeper = threading.Thread(target=_keep, args=(self.count, door, dispatch), daemon=True)
            keeper.start()
            try:
                yield dispatch
            finally:
                dispatch.close()
                keeper.join()


def threads_each(count: int) -> int:
    """Return how many threads each of *count* workers has, if they share the cores of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // count)


def _keep(count: int, door: Door, dispatch: Dispatch) -> None:
    """Keep *count* processes running until all has ended; give up where they end as soon as they have begun."""
    running: list[tuple[subprocess.Popen[bytes], float]] = []
    fruitless = answered = 0
    while not dispatch.ended:
        running += [(_spawned(door), time.monotonic()) for _ in range(count - len(running))]
        time.sleep(_LOOK)
        for process, began in [entry for entry in running if entry[0].poll() is not None]:
            running.remove((process, began))
            idle = dispatch.answered == answered and time.monotonic() - began < _FIRST
            fruitless, answered = fruitless + 1 if idle else 0, dispatch.answered
            if fruitless >= _MOST_FRUITLESS * count and not dispatch.ended:
                how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
                dispatch.fail(EngineError(f"workers end as soon as they begin ({how}); start fewer, or none"))
    for process, _ in running:
        process.kill()
        process.wait()


def _spawned(door: Door) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "torchfault.cluster.worker", door.host, str(door.port)]
    nothing = subprocess.DEVNULL  # what models print is not the campaign's; errors come back over the socket
    return subprocess.Popen(
        command, env=os.environ | {KEY: door.key.hex()}, stdin=nothing, stdout=nothing, stderr=nothing
    )
