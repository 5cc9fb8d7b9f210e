"""Workers for tests: threads that hold copies of the bench, and get lost when told to; and processes, to end them."""

import pickle
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cloudpickle

from torchfault.campaign.workers import Bench, Crew
from torchfault.cluster.dispatch import Dispatch, LostError
from torchfault.resolve import Verdicts
from torchfault.trials import Trials

__all__ = ["Threads", "children"]


@dataclass(frozen=True)
class Threads:
    """Run lanes in *count* threads, with benches that were sent as to processes; *loses* ends one at its n-th shard."""

    count: int
    loses: Callable[[int], bool] = lambda _: False

    @contextmanager
    def start(self, bench: Bench) -> Iterator[Crew]:
        """Start the threads, and another for each that is lost."""
        dispatch, held, shards, lock = Dispatch(self.count), cloudpickle.dumps(bench), [0], threading.Lock()

        def hire() -> None:
            if dispatch.ended:
                return
            own = pickle.loads(held)

            def link(trials: Trials) -> Verdicts:
                with lock:
                    shards[0] += 1
                    lost = self.loses(shards[0])
                if lost:
                    raise LostError
                return own(trials)

            dispatch.serve(link, hire)

        for _ in range(self.count):
            hire()
        try:
            yield dispatch
        finally:
            dispatch.close()


def children(of: int) -> list[int]:
    """Return the workers that process *of* has started."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(of)], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "torchfault.cluster.worker" in line]
