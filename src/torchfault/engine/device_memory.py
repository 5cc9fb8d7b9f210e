"""What a device has free, and memory that is given back to the system."""

import ctypes
import sys
from contextlib import suppress

import torch

__all__ = ["free_bytes", "give_back_memory"]


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of a GPU's memory new tensors may take, whoever uses the rest; no limit for other devices.

    What torch holds of it without using it counts as free.

    >>> free_bytes(torch.device("cpu")) > 2**60
    True
    """
    if device.type != "cuda":
        return sys.maxsize
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def give_back_memory() -> None:
    """Return freed memory to the system where the C library can: it keeps pieces too small for the next tensors."""
    with suppress(OSError, AttributeError):  # other C libraries than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
