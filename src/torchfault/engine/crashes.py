"""A model that raises with faults in it, and a pass that finds no memory: halved until the lanes to blame are alone."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from torchfault.errors import TorchfaultError, lacks_memory

__all__ = ["is_crash", "separated"]

T = TypeVar("T")
Ints = NDArray[np.int64]


def is_crash(error: BaseException) -> bool:
    """Whether *error*, raised while a model ran with faults, is an outcome of these faults.

    Any exception is, and ``sys.exit``; not an interrupt, an error of torchfault's own, a lack of memory, or a warning
    that was asked to be an error.

    >>> is_crash(IndexError("out of range")), is_crash(SystemExit(1)), is_crash(KeyboardInterrupt())
    (True, True, False)
    """
    ours = isinstance(error, TorchfaultError | Warning) or lacks_memory(error)
    return isinstance(error, Exception | SystemExit) and not ours


def separated(lanes: Ints, run: Callable[[Ints], T]) -> Iterator[tuple[Ints, T | None]]:
    """Yield *lanes* in parts, with what *run* gives for each; a lane for which it crashes comes alone, with ``None``.

    A part that crashes is halved until the lanes to blame are alone, and so is one for which there is no memory: the
    error goes on its way where a single lane has none.

    >>> def run(lanes):
    ...     return (6 / (lanes - 2).prod()).round(1).item() if (lanes - 2).all() else [][0]
    >>> [(part.tolist(), found) for part, found in separated(np.arange(4), run)]
    [([0, 1], 3.0), ([2], None), ([3], 6.0)]
    """
    todo = [lanes]
    while todo:
        part = todo.pop()
        try:
            found = run(part)
        except BaseException as error:
            if not is_crash(error) and not (lacks_memory(error) and len(part) > 1):
                raise
            if len(part) > 1:
                todo += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            found = None
        yield part, found
