"""What weights are multiplied by: the input channel of each word of a weight, and where it holds nothing but zeros."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.data import Data, call, rows
from torchfault.errors import ModelError
from torchfault.model.golden_words import per_input
from torchfault.model.watch import Moment, memory_address, visiting
from torchfault.names import site_name
from torchfault.space import FaultSpace, Site

__all__ = ["Operands", "operands"]


@dataclass(frozen=True, eq=False)
class Operands:
    """What the words of one weight meet: the input *channel* that each is multiplied by, shape (elements,), and which
    channels are *live*, holding anything but zeros, on each input, shape (inputs, channels)."""

    channel: NDArray[np.int32]
    live: NDArray[np.bool_]


def operands(model: nn.Module, data: Data, space: FaultSpace, *, batch: int = 64) -> Mapping[str, Operands]:
    """Return the operands of the weights of convolutions and linear layers, by the name of the weight.

    *space* is that of the engine. Left out are weights of which it is not certain that their layer alone reads them, to
    multiply its input as they are: tied ones, those that other code of the model uses too, of layers with a forward of
    their own, and where the layer computes in another type (autocast). *batch* inputs run at a time.

    >>> from torchfault.engine import Engine
    >>> model = nn.Sequential(nn.Linear(2, 1)).eval()
    >>> engine = Engine(model, Data(torch.tensor([[1.0, 0.0], [0.0, -2.0]])))
    >>> operands(model, engine.data, engine.space)["0.weight"].live.tolist()
    [[True, False], [False, True]]
    """
    layers = {
        path: f"{path}.weight" if path else "weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and _is_plain(module)
    }
    memory = [memory_address(tensor) for _, tensor in model.named_parameters(remove_duplicate=False)]
    weights = dict(model.named_parameters())
    sites = {path: space.site(f"{path}:input") for path in layers if f"{path}:input" in space.names}
    alone = {p for p in sites if layers[p] in weights and memory.count(memory_address(weights[layers[p]])) == 1}
    types = {path: weights[layers[path]].dtype for path in alone}
    watch = _Watch({path: sites[path] for path in alone}, {layers[path]: path for path in alone}, types, len(data))
    with torch.no_grad(), visiting(model, watch, modules=list(layers), operations=None):
        for watch.first in range(0, len(data), batch):
            watch.lanes = min(batch, len(data) - watch.first)
            call(model, rows(data.inputs, slice(watch.first, watch.first + watch.lanes)))
    sure = sorted(alone - watch.unsure)
    return {layers[path]: Operands(_channels(model.get_submodule(path)), watch.live[path]) for path in sure}


def _is_plain(module: nn.Module) -> bool:
    """Whether *module* computes what torch's own layer does: no class of somebody else's has a say in it."""
    own = (getattr(type(module), name, None) for name in ("forward", "_conv_forward"))
    return all(method is None or method.__module__.startswith("torch.nn.modules.") for method in own)


class _Watch:
    """Notes which channels of the inputs of layers are live, and whose weights others read, or it in another type."""

    def __init__(
        self, sites: Mapping[str, Site], owners: Mapping[str, str], types: Mapping[str, torch.dtype], inputs: int
    ) -> None:
        self.sites, self.owners, self.types, self.unsure = sites, owners, types, set[str]()
        self.live = {path: np.zeros((inputs, site.channels), dtype=np.bool_) for path, site in sites.items()}
        self.first, self.lanes = 0, 0

    def __call__(self, moment: Moment) -> Sequence[Tensor] | None:
        self.unsure |= {
            self.owners[name] for name in moment.stored if self.owners.get(name, moment.path) != moment.path
        }
        path = site_name(moment.name()).path
        if moment.kind == "input" and path in self.sites and moment.tensors:
            try:
                self._see(path, moment.tensors[0])
            except ModelError:
                self.unsure.add(path)
        elif moment.kind == "output" and path in self.sites and moment.tensors[0].dtype != self.types[path]:
            self.unsure.add(path)
        return None

    def _see(self, path: str, tensor: Tensor) -> None:
        site = self.sites[path]
        held = (per_input(tensor, site, self.lanes) != 0).reshape(self.lanes, *site.shape)
        if site.channel is not None:
            held = held.movedim(1 + site.channel, 1)
        seen = held.reshape(self.lanes, site.channels, -1).any(dim=2).cpu().numpy()
        self.live[path][self.first : self.first + self.lanes] |= seen


def _channels(module: nn.Module) -> NDArray[np.int32]:
    """Return the input channel that each weight is multiplied by, shape (elements,)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    first, second = np.unravel_index(np.arange(weight.numel()), weight.shape)[:2]
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return first.astype(np.int32)
    groups = getattr(module, "groups", 1)
    return (first // (weight.shape[0] // groups) * weight.shape[1] + second).astype(np.int32)
