"""A worker: a process that holds the model and the inputs, and runs the trials that a driver sends.

``python -m torchfault.cluster.worker HOST PORT`` with the driver's key in ``TORCHFAULT_KEY`` joins a campaign.
"""

import os
import pickle
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Client, Connection
from typing import Any

import cloudpickle
import torch

from torchfault.campaign.workers import Bench
from torchfault.errors import EngineError, brief

__all__ = ["Assignment", "Failure", "answered", "assigned", "attempted", "join", "refusal_of", "taken_up"]

KEY = "TORCHFAULT_KEY"


@dataclass(frozen=True)
class Assignment:
    """What a worker is told first: where modules are found, how many *threads* it has, and a pickled bench."""

    path: tuple[str, ...]
    threads: int
    bench: bytes


@dataclass(frozen=True, eq=False)
class Failure:
    """What a worker answers where trials, or the bench itself, raised *error*."""

    error: BaseException


def answered(answer: Any) -> Any:
    """Return what a worker answered, or raise what it raised."""
    if isinstance(answer, Failure):
        raise answer.error
    return answer


def refusal_of(answer: Any) -> EngineError | None:
    """Return why a worker could not take up an assignment, by its answer, if it could not."""
    if isinstance(answer, Failure):
        return EngineError(f"a worker could not take up the campaign: {answer.error}")
    return None


def assigned(bench: Bench, *, threads: int) -> Assignment:
    """Return what workers with so many *threads* each need to know, or raise :class:`EngineError`."""
    try:
        held = cloudpickle.dumps(bench)
    except Exception as error:
        raise EngineError(
            f"the model, the data or a criterion cannot be sent to workers ({brief(error)}); run without --workers"
        ) from error
    return Assignment(tuple(sys.path), threads, held)


def taken_up(assignment: Assignment) -> Bench:
    """Return the bench of *assignment*, ready to run trials in this process."""
    sys.path.extend(place for place in assignment.path if place not in sys.path)
    torch.set_num_threads(assignment.threads)
    bench: Bench = cloudpickle.loads(assignment.bench)
    bench.campaign.engine.golden()
    return bench


def join(host: str, port: int, key: bytes) -> None:
    """Run trials for the driver at *host* and *port* until it ends, or goes away.

    Whatever ends the driver closes the connection, so that no worker is left behind. Raises :class:`EngineError` where
    nobody answers.
    """
    try:
        driver = Client((host, port), authkey=key)
    except Exception as error:
        raise EngineError(f"no campaign answers at {host}:{port} ({brief(error)}); start one with workers") from error
    with driver, suppress(EOFError, OSError):
        _work(driver)


def _work(driver: "Connection[Any, Any]") -> None:
    assignment = driver.recv()
    bench = attempted(lambda: taken_up(assignment))
    driver.send(bench if isinstance(bench, Failure) else None)
    while not isinstance(bench, Failure):
        trials = driver.recv()
        driver.send(attempted(partial(bench, trials)))


def attempted(work: Callable[[], Any]) -> Any:
    """Return what *work* returns, or as a :class:`Failure` what it raises."""
    try:
        return work()
    except BaseException as error:
        return Failure(_portable(error))


def _portable(error: BaseException) -> BaseException:
    """Return *error* as it can be sent: one that cannot be pickled becomes text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return EngineError(f"{type(error).__name__} in a worker: {brief(error)}")
    return error


def main() -> None:
    """Join the driver that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the driver, which ends its workers
    join(sys.argv[1], int(sys.argv[2]), bytes.fromhex(os.environ.pop(KEY)))


if __name__ == "__main__":
    main()
