"""Workers that are jobs of Slurm, by way of submitit; they join this process over the network."""

import socket
from collections.abc import Iterator
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


@dataclass(frozen=True)
class Slurm:
    """Run lanes in *count* jobs with so many *threads* and *gpus* each; a job joins whenever the queue lets it begin.

    *hours* is how long a job may take, *folder* where submitit keeps its files, and *cluster* what submitit calls the
    scheduler: ``slurm``, or ``local`` to try it out. Jobs that end are not replaced; what they were at is run again by
    the others. They have to reach *host*, the address of this machine, by itself its name. Needs the package submitit
    (``pip install torchfault[slurm]``); raises :class:`EngineError` without it, or where jobs cannot be submitted.

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
            try:
                yield dispatch
            finally:
                dispatch.close()
                for job in jobs:
                    job.cancel()

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
            name="torchfault", timeout_min=round(60 * self.hours), cpus_per_task=self.threads, gpus_per_node=self.gpus
        )
        return executor
