"""Workers that are jobs of Slurm, by way of submitit; they join this process over the network."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchfault.campaign.workers import Bench, Crew
from torchfault.cluster.dispatch import Dispatch
from torchfault.cluster.sockets import opened
from torchfault.cluster.worker import assigned, join
from torchfault.errors import EngineError, brief

__all__ = ["Slurm"]

_LOOK = 5.0  # seconds between two looks at whether any job is left; submitit asks Slurm itself less often


@dataclass(frozen=True)
class Slurm:
    """Run lanes in *count* jobs with so many *threads* and *gpus* each; a job joins whenever the queue lets it begin.

    *hours* is how long a job may take, *folder* where submitit keeps its files, and *cluster* what submitit calls the
    scheduler: ``slurm``, or ``local`` to try it out. Jobs that end are not replaced; what they were at is run again by
    the others, and the campaign ends once none is left. They have to reach *host*, the address of this machine, by
    itself its name. Needs the package submitit (``pip install torchfault[slurm]``); raises :class:`EngineError` without
    it, for parts of a GPU, where jobs cannot be submitted, and where all of them have ended.

    >>> Slurm(16, hours=8).threads
    1
    """

    count: int
    threads: int = 1
    gpus: float = 0.0
    hours: float = 4.0
    host: str | None = None
    folder: Path = Path("torchfault-jobs")
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        if self.gpus != int(self.gpus):
            raise EngineError(f"Slurm gives whole GPUs to a job, got {self.gpus:g}; give {int(self.gpus) + 1}, or 0")

    @contextmanager
    def start(self, bench: Bench) -> Iterator[Crew]:
        """Submit the jobs, which end with the scope."""
        dispatch, executor = Dispatch(self.count), self._executor()
        with opened(dispatch, assigned(bench, threads=self.threads), host=self.host or socket.gethostname()) as door:
            try:
                with executor.batch():
                    jobs = [executor.submit(join, door.host, door.port, door.key) for _ in range(self.count)]
            except Exception as error:
                raise EngineError(f"no jobs can be submitted ({brief(error)}); is this a machine of Slurm?") from error
            ended = threading.Event()
            watcher = threading.Thread(target=_watch, args=(jobs, dispatch, self.folder, ended), daemon=True)
            watcher.start()
            try:
                yield dispatch
            finally:
                dispatch.close()
                ended.set()
                for job in jobs:
                    job.cancel()
                watcher.join()

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError:
            raise EngineError(
                "workers of Slurm need the package submitit, which is not installed; pip install torchfault[slurm]"
            ) from None
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        except Exception as error:
            raise EngineError(f"no jobs can be submitted ({brief(error)}); is this a machine of Slurm?") from error
        executor.update_parameters(
            name="torchfault",
            timeout_min=round(60 * self.hours),
            cpus_per_task=self.threads,
            gpus_per_node=int(self.gpus),
        )
        return executor


def _watch(jobs: Sequence[Any], dispatch: Dispatch, folder: Path, ended: threading.Event) -> None:
    """End the campaign, which would wait forever, once every job has ended."""
    while not ended.wait(_LOOK):
        if all(job.done() for job in jobs):
            told = (
                f"all {len(jobs)} jobs of Slurm have ended, and the campaign has not; what they said is in '{folder}'"
            )
            dispatch.fail(EngineError(f"{told}; go on with torchfault resume"))
            return
