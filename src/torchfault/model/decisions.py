"""Notice a model that looks at the values of its tensors, and may decide by them what to compute next."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["Decisions"]

# The functions of Python's own number types: methods such as x.float() make tensors, and look at nothing.
_LOOKS = frozenset({*(f"__{kind}__" for kind in ("bool", "float", "int", "index", "complex", "contains"))})
_LOOKS |= {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero"}


class Decisions(TorchFunctionMode):
    """A scope that notices when a tensor's value becomes a Python number or truth value; :attr:`seen` then names how.

    Such a model may take one path for a whole batch, by values that belong to some of its inputs alone.

    >>> import torch
    >>> with Decisions() as decisions:
    ...     _ = (torch.ones(2) > 1).float() + 1
    >>> decisions.seen
    ''
    >>> with Decisions() as decisions:
    ...     _ = bool(torch.ones(2).sum() > 0)
    >>> decisions.seen
    'bool'
    >>> with Decisions() as decisions:
    ...     _ = torch.equal(torch.ones(2), torch.zeros(2))
    >>> decisions.seen
    'equal'
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = ""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run *func*, and remember it where it looks at values."""
        del types
        name = getattr(func, "__name__", "")
        if name in _LOOKS:
            self.seen = name.strip("_")
        return func(*args, **(kwargs or {}))
