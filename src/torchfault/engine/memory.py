"""How much memory a forward pass needs for each input, measured."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torchfault.data import Tree, call, leaves, map_tensors
from torchfault.errors import EngineError
from torchfault.model.discover import check_shapes
from torchfault.model.disturb import reset_states, undisturbed, unfused
from torchfault.model.probes import PROBES

__all__ = ["lanes_within", "looked_at_bytes", "peak_bytes"]

# Kernels take working memory that no tensor shows.
_MARGIN = 2.0
# Larger batches no longer gain on a CPU, and spoil its caches.
_MOST = {"cpu": 128}


def _address(tensor: Tensor) -> int:
    whole = tensor.layout == torch.strided and not hasattr(tensor, "__tensor_flatten__")  # no tensor of several others
    return tensor.untyped_storage().data_ptr() if whole else 0


class _Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and remembers the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.largest = self.total = 0
        self.holders: dict[int, int] = {}
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = {_address(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf) not in self.known:
                address = _address(leaf)
                if address in self.holders or address not in given:  # else a view of a parameter or an input
                    self._hold(leaf, address, leaf.untyped_storage().nbytes() if address else 0)
        return result

    def _hold(self, tensor: Tensor, address: int, size: int) -> None:
        self.known.add(id(tensor))
        weakref.finalize(tensor, self._release, id(tensor), address, size).atexit = False
        self.holders[address] = self.holders.get(address, 0) + 1
        if self.holders[address] == 1:
            self.now, self.total = self.now + size, self.total + size
            self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)

    def _release(self, tensor: int, address: int, size: int) -> None:
        self.known.discard(tensor)
        self.holders[address] -= 1
        if not self.holders[address]:
            del self.holders[address]
            self.now -= size


@torch.no_grad()
def peak_bytes(model: nn.Module, inputs: Tree) -> int:
    """Return the most bytes of activations alive at once while *model* runs on *inputs*, and one copy of the largest.

    The copy is what a strike may make. Parameters and the inputs themselves do not count.

    >>> peak_bytes(nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 1)), torch.zeros(1, 4))
    1200
    """
    given = map_tensors(torch.clone, inputs)
    with _Peak() as watch:
        call(model, given, copied=False)
    return int(watch.peak + watch.largest)


@torch.no_grad()
def looked_at_bytes(model: nn.Module, inputs: Tree) -> int:
    """Return about how many bytes are taken while sites are found in *model*, told by one of its *inputs*.

    A few inputs run together, and what each call reads and gives is held of one. It is 0 where the model does not run
    on that input alone, which is told of when it is looked at. The model is left as it was. Raises :class:`ModelError`
    for a parameter without a shape.

    >>> 1600 < looked_at_bytes(nn.Linear(4, 100), torch.zeros(1, 4)) < 16_000  # one output has 400 bytes
    True
    """
    check_shapes(model)
    try:
        with undisturbed(model), unfused(), _Peak() as watch:
            reset_states(model)
            call(model, inputs)
    except Exception:
        return 0
    held = sum(leaf.numel() * leaf.element_size() for leaf in leaves(inputs))
    return int(PROBES * (held + _MARGIN * watch.peak) + 2 * (held + watch.total))


def lanes_within(model: nn.Module, inputs: Tree, *, memory: int) -> int:
    """Return how many lanes may run together within *memory* bytes, given a few *inputs*.

    Raises :class:`EngineError` where not even one fits.

    >>> 40 < lanes_within(nn.Linear(4, 100), torch.zeros(2, 4), memory=100_000) < 100  # one output has 400 bytes
    True
    """
    count = int(leaves(inputs)[0].shape[0])
    held = sum(leaf.numel() * leaf.element_size() for leaf in leaves(inputs))
    one = (held + _MARGIN * peak_bytes(model, inputs)) / count
    if one > memory:
        raise EngineError(
            f"one lane of {type(model).__name__} needs {one / 2**20:.1f} MiB, got {memory / 2**20:.1f}; raise memory"
        )
    return int(min(memory // max(one, 1), _MOST.get(leaves(inputs)[0].device.type, 512)))
