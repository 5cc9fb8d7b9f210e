"""Tasks of a benchmark on all processors, each of which takes one thread."""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

import torch

__all__ = ["side_by_side"]

T = TypeVar("T")


def side_by_side(task: Callable[[str], T], names: Sequence[str]) -> dict[str, T]:
    """Return what *task*, which can be pickled, finds of each of *names*; what is done is told as it comes."""
    found = {}
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        asked = {pool.submit(task, name): name for name in names}
        for done in as_completed(asked):
            name = asked[done]
            found[name] = done.result()
            print(f"{len(found)} of {len(names)}  {name}: {found[name]}", file=sys.stderr, flush=True)
    return {name: found[name] for name in names}
