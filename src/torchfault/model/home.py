"""A home: the words of one parameter that stand for its value together, and how others take their place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from torchfault.storages import Part, Stored

__all__ = ["Home", "Install", "overwritten", "site_names"]

Install = Callable[[Mapping[str, Tensor]], Callable[[], None]]


@dataclass(frozen=True, eq=False)
class Home:
    """The words of one parameter, by the names of their sites, which stand for its value together.

    *parameter* is the one that they replace among the sites, if any; *module* the path of its module. Without *install*
    the words are the very memory that the model reads; else it puts changed words in their place, and returns what
    undoes that. *stored* tells how a storage of ours keeps the parameter, if one does.
    """

    words: Mapping[str, Tensor]
    parts: Mapping[str, Part]
    parameter: str
    module: str
    install: Install | None = None
    stored: Stored | None = None


_T = TypeVar("_T")


def site_names(full: str, parts: Mapping[str, _T]) -> dict[str, _T]:
    """Return *parts* by the names of their sites, that of the parameter *full* for the one without a name."""
    return {f"{full}:{part}" if part else full: value for part, value in parts.items()}


def overwritten(tensor: Tensor, value: Tensor) -> Callable[[], None]:
    """Overwrite the memory of *tensor*; return what brings its own bytes back."""
    saved = tensor.data.clone()
    inference = tensor.is_inference()

    def write(content: Tensor) -> None:
        with torch.inference_mode(inference):
            tensor.data.copy_(content)

    write(value)
    return lambda: write(saved)
