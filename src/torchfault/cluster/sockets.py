"""The driver's end of workers that join over a socket, from this machine or another one, at any moment."""

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from torchfault.cluster.dispatch import Dispatch, LostError
from torchfault.cluster.worker import Assignment, answered, refusal_of
from torchfault.errors import EngineError
from torchfault.resolve import Verdicts
from torchfault.trials import Trials

__all__ = ["Door", "opened"]


@dataclass(frozen=True)
class Door:
    """Where workers join: *host*, *port*, and the *key* without which nobody is let in (HMAC, both ways)."""

    host: str
    port: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class _Worker:
    """A worker that has joined."""

    connection: "Connection[Any, Any]"

    def __call__(self, trials: Trials) -> Verdicts:
        return answered(self.ask(trials))  # type: ignore[no-any-return]

    def ask(self, message: Any) -> Any:
        """Send *message* and return the answer."""
        try:
            self.connection.send(message)
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise LostError from error


@contextmanager
def opened(dispatch: Dispatch, assignment: Assignment, *, host: str = "127.0.0.1") -> Iterator[Door]:
    """Let workers join until the scope ends, and give each of them *assignment* and then shards from *dispatch*.

    Whoever holds the key of the door can run code here and there, as always where objects are pickled: other machines
    are let in only where *host* is an address that they reach.
    """
    key = secrets.token_bytes(32)
    try:
        listener = Listener((host, 0), backlog=128, authkey=key)
    except OSError as error:
        raise EngineError(f"no workers can be awaited at {host} ({error}); give an address of this machine") from error
    door = Door(host, listener.address[1], key)
    joined: list[Connection[Any, Any]] = []
    thread = threading.Thread(target=_admit, args=(listener, dispatch, assignment, joined), daemon=True)
    thread.start()
    try:
        yield door
    finally:
        dispatch.close()
        with suppress(OSError, EOFError, AuthenticationError), Client((host, door.port), authkey=key):
            pass  # wakes the listener up, which then sees that all has ended
        thread.join()
        listener.close()
        for connection in joined:
            with suppress(OSError), _socket_of(connection) as own:
                own.shutdown(socket.SHUT_RDWR)  # unlike a close, it also ends a thread's wait for an answer
            connection.close()


def _admit(
    listener: Listener, dispatch: Dispatch, assignment: Assignment, joined: "list[Connection[Any, Any]]"
) -> None:
    while not dispatch.ended:
        try:
            connection = listener.accept()
        except (OSError, EOFError, AuthenticationError):  # a stranger, or a worker that went away at once
            continue
        joined.append(connection)
        if not dispatch.ended:
            threading.Thread(target=_welcome, args=(connection, dispatch, assignment), daemon=True).start()


def _welcome(connection: "Connection[Any, Any]", dispatch: Dispatch, assignment: Assignment) -> None:
    """Tell a new worker what to hold, and have it served once it does; what it cannot build, nobody can."""
    with suppress(OSError), _socket_of(connection) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # tells, though late, of machines that vanished
    worker = _Worker(connection)
    with suppress(LostError):
        if (refusal := refusal_of(worker.ask(assignment))) is not None:
            dispatch.fail(refusal)
            return
        dispatch.serve(worker, connection.close)


def _socket_of(connection: "Connection[Any, Any]") -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))
