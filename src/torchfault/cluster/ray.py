"""Workers that are actors of Ray: on this machine, or on those of a cluster."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from torchfault.campaign.workers import Bench, Crew
from torchfault.cluster.dispatch import Dispatch, LostError
from torchfault.cluster.worker import Assignment, Failure, answered, assigned, attempted, refusal_of, taken_up
from torchfault.errors import EngineError, brief
from torchfault.resolve import Verdicts
from torchfault.trials import Trials

__all__ = ["Ray"]

_MOST_FRUITLESS = 3  # actors in a row that may be lost before they have taken up the campaign
_PATIENCE = 10.0  # seconds until a machine has answered
_CLIENT_PORT = 10001  # of ray:// addresses, unless told


@dataclass(frozen=True)
class Ray:
    """Run lanes in *count* actors of the Ray cluster at *address*, or of one that is started here (``None``).

    The address is ``"auto"`` on machines of the cluster, and ``"ray://head:10001"`` elsewhere. Each actor holds
    the model and the golden cache, and takes so many *threads* and *gpus* of the cluster's. Actors for which there is
    no room yet join when there is; a lost one is replaced, and what it was at is run again. Needs the package ``ray``
    (``pip install torchfault[ray]``). Raises :class:`EngineError` without it, or where no cluster answers.

    >>> Ray(8, address="auto", gpus=0.5)
    Ray(count=8, address='auto', threads=1, gpus=0.5)
    """

    count: int
    address: str | None = None
    threads: int = 1
    gpus: float = 0.0

    @contextmanager
    def start(self, bench: Bench) -> Iterator[Crew]:
        """Ask for the actors, which end with the scope."""
        assignment = assigned(bench, threads=self.threads)
        ray = _ray()
        own = not ray.is_initialized()
        if own:
            _connected(ray, self.address, self.count * self.threads)
        dispatch = Dispatch(self.count)
        try:
            actor, held = ray.remote(num_cpus=self.threads, num_gpus=self.gpus)(_Actor), ray.put(assignment)
            hired = [_Hired(ray, actor, held, dispatch) for _ in range(self.count)]
            try:
                yield dispatch
            finally:
                dispatch.close()
                for one in hired:
                    one.dismiss()
        finally:
            if own:
                ray.shutdown()


class _Actor:
    """The worker's end: one campaign, for good."""

    def take_up(self, assignment: Assignment) -> "Failure | None":
        found = attempted(lambda: taken_up(assignment))
        if isinstance(found, Failure):
            return found
        self.bench: Bench = found
        return None

    def run(self, trials: Trials) -> "Verdicts | Failure":
        return attempted(lambda: self.bench(trials))  # type: ignore[no-any-return]


class _Hired:
    """An actor at work, and those that replace it."""

    def __init__(self, ray: Any, actor: Any, assignment: Any, dispatch: Dispatch) -> None:
        self._ray, self._actor, self._assignment, self._dispatch = ray, actor, assignment, dispatch
        self._fruitless = 0
        self._begin()

    def _begin(self) -> None:
        self._handle = self._actor.remote()
        threading.Thread(target=self._employ, daemon=True).start()

    def _employ(self) -> None:
        """Have the actor take up the campaign, and give it shards."""
        try:
            answer = self._ask(self._handle.take_up, self._assignment)
        except LostError:
            self._fruitless += 1
            if self._fruitless >= _MOST_FRUITLESS:
                self._dispatch.fail(EngineError("Ray's actors end as soon as they begin; see the logs of the cluster"))
            self._replace()
            return
        if (refusal := refusal_of(answer)) is not None:
            self._dispatch.fail(refusal)
            return
        self._fruitless = 0
        self._dispatch.serve(self._run, self._replace)

    def _run(self, trials: Trials) -> Verdicts:
        return answered(self._ask(self._handle.run, trials))  # type: ignore[no-any-return]

    def _ask(self, method: Any, argument: Any) -> Any:
        try:
            return self._ray.get(method.remote(argument))
        except self._ray.exceptions.RayError as error:
            raise LostError from error

    def _replace(self) -> None:
        if not self._dispatch.ended:
            self._begin()

    def dismiss(self) -> None:
        """End the actor."""
        self._ray.kill(self._handle)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise EngineError(
            "workers of a cluster need the package ray, which is not installed; pip install torchfault[ray]"
        ) from None
    return ray


def _connected(ray: Any, address: str | None, cores: int) -> None:
    """Connect to the cluster at *address*, or start one of so many *cores* here, whatever the machine has."""
    own = {"num_cpus": cores, "include_dashboard": False} if address is None else {"address": address}
    try:
        if address is not None:
            _look_for(address)
        ray.init(log_to_driver=False, configure_logging=False, **own)
    except Exception as error:
        where = "here" if address is None else f"at '{address}'"
        raise EngineError(f"no Ray cluster {where} ({brief(error)}); start one with `ray start --head`") from error


def _look_for(address: str) -> None:
    """Raise :class:`OSError` where nothing listens at *address*: Ray itself tries again for many minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = _CLIENT_PORT if parts.scheme == "ray" and parts.port is None else parts.port
    if parts.hostname and port is not None:  # else a word of Ray's, such as auto
        socket.create_connection((parts.hostname, port), timeout=_PATIENCE).close()
