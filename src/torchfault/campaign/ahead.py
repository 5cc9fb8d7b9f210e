"""Batches that workers begin before it is their turn."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from torchfault.campaign.judging import Seen
from torchfault.campaign.workers import awaited

__all__ = ["Ahead"]

T = TypeVar("T")
Begin = Callable[[int], tuple[int, Callable[[], T]] | None]


class Ahead(Generic[T]):
    """Jobs, each known by the number that it begins at, run in threads and taken in their order.

    >>> with Ahead[str]() as ahead:
    ...     squares = lambda n: (n + 1, lambda: str(n * n)) if n < 5 else None
    ...     [ahead.take(n, squares, depth=3, seen=lambda _: None) for n in (3, 4)]
    ['9', '16']
    """

    def __init__(self) -> None:
        self._jobs: deque[tuple[int, int, Future[T]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def take(self, first: int, begin: Begin[T], *, depth: int, seen: Seen) -> T:
        """Return the result of the job at *first*, after *depth* jobs from there on have begun.

        *begin* returns where the job at a number ends and what it does, or ``None`` where there is none; it is called
        in this thread, and in order.
        """
        while self._jobs and self._jobs[0][0] != first:
            self._jobs.popleft()[2].cancel()
        start = self._jobs[-1][1] if self._jobs else first
        while len(self._jobs) < depth and (job := begin(start)) is not None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(depth)
            end, work = job
            self._jobs.append((start, end, self._pool.submit(work)))
            start = end
        return awaited(self._jobs.popleft()[2], seen)  # type: ignore[no-any-return]
