"""The words that faults will strike: what every site holds without faults, for every input."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.data import Data, call, rows
from torchfault.errors import ModelError
from torchfault.model.lane_axis import LaneAxis, axis_within, lanes_first
from torchfault.model.memory import homes
from torchfault.model.rounding import rounding
from torchfault.model.watch import Moment, visiting
from torchfault.names import site_name
from torchfault.space import FaultSpace, Site
from torchfault.storages import InBlocks
from torchfault.words import encode, held_in, lying_in, word

__all__ = ["golden_words", "per_input", "words_bytes"]

Words = NDArray[np.unsignedinteger]


def golden_words(model: nn.Module, data: Data, space: FaultSpace, *, batch: int = 64) -> Mapping[str, Words]:
    """Return the words of every site of *space* as unsigned integers, by name, without faults.

    Parameters and buffers have shape (1, elements), activations (inputs, elements): 4 bytes for each float32 activation
    of each input, all of them held at once; 0 where an input never reaches the site. *batch* inputs run at a time.
    Raises :class:`ModelError` for an activation that the model, run as it is, does not show, or not input by input.

    >>> from torchfault.engine import Engine
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    >>> engine = Engine(model, Data(torch.ones(5, 2)))
    >>> words = golden_words(model, engine.data, engine.space.select(["0.weight", "1:input"]))
    >>> {name: (held.shape, held.dtype.name) for name, held in words.items()}
    {'0.weight': ((1, 6), 'uint32'), '1:input': ((5, 3), 'uint32')}
    """
    stored = dict(model.named_buffers()) | dict(model.named_parameters())
    stored |= {name: words for home in homes(model) for name, words in home.words.items()}
    found: dict[str, Words] = {}
    activations = {site.name: site for site in space.sites if site.is_activation}
    for site in space.sites:
        if site.name in stored:
            found[site.name] = _words(stored[site.name].detach().reshape(1, -1), site)
    if activations:
        _watch(model, data, activations, found, batch)
    if missing := [site.name for site in space.sites if site.name not in found]:
        raise ModelError(f"the words of '{missing[0]}' are not to be seen when the model runs; leave this site out")
    return {site.name: found[site.name] for site in space.sites}


def words_bytes(space: FaultSpace, inputs: int) -> int:
    """Return the bytes of the golden words of *space* on so many *inputs*.

    >>> words_bytes(FaultSpace((Site("a.weight", (10,)), Site("a:output", (3,), kind="output"))), 5)
    100
    """
    words = ((site, site.elements * (inputs if site.is_activation else 1)) for site in space.sites)
    return sum(count * max(1 << (site.width - 1).bit_length() >> 3, 1) for site, count in words)


def _watch(model: nn.Module, data: Data, activations: Mapping[str, Site], found: dict[str, Words], batch: int) -> None:
    """Run the model on all inputs and keep the words of *activations*."""
    first = lanes = 0
    by_value: dict[str, list[Site]] = {}
    for site in activations.values():
        by_value.setdefault(str(site_name(site.name).whole), []).append(site)

    def look(moment: Moment) -> Sequence[Tensor] | None:
        for position, tensor in enumerate(moment.tensors):
            for site in by_value.get(moment.name(position), ()):
                name = site_name(site.name)
                storage = rounding(model.get_submodule(moment.path), name.role)
                if isinstance(storage, InBlocks):
                    held = _words(_in_blocks(tensor.detach(), site, storage, name.block, lanes), site)
                else:
                    held = _words(per_input(tensor, site, lanes), site)
                if site.name not in found:
                    found[site.name] = np.zeros((len(data), site.elements), dtype=held.dtype)
                found[site.name][first : first + lanes] = held
        return None

    modules = [name for name, _ in model.named_modules() if name]
    with torch.no_grad(), visiting(model, look, modules=modules, operations=None):
        for first in range(0, len(data), batch):
            lanes = min(batch, len(data) - first)
            call(model, rows(data.inputs, slice(first, first + lanes)))


def _in_blocks(tensor: Tensor, site: Site, storage: InBlocks, part: str, lanes: int) -> Tensor:
    """Return the words of a *part* of an activation that is kept in blocks: (lanes, words in each)."""
    row = storage.row(tensor.shape)
    for axis in range(tensor.ndim):
        shape = (*tensor.shape[:axis], *tensor.shape[axis + 1 :])
        if tensor.shape[axis] == lanes and storage.shape(part, shape, row) == site.shape:
            return storage.words_of(lanes_first(tensor, LaneAxis(axis)).contiguous(), row, part)
    raise ModelError(f"'{site.name}' holds {site.shape} for each input, got {tuple(tensor.shape)}; leave it out")


def per_input(tensor: Tensor, site: Site, lanes: int) -> Tensor:
    """Return *tensor*, seen at *site* while so many inputs ran, with one row for each of them: (lanes, elements).

    Raises :class:`ModelError` where it has none.
    """
    axis = axis_within(tensor.shape, site.shape)
    held = tensor.detach() if axis is None else lanes_first(tensor.detach(), axis)
    if axis is None or len(held) != lanes:
        shape = tuple(tensor.shape)
        raise ModelError(f"'{site.name}' holds {site.shape} for each input, got {shape} for {lanes}; leave it out")
    return held.reshape(lanes, -1)


def _words(values: Tensor, site: Site) -> Words:
    fmt = word(site.word)
    if values.dtype.is_floating_point and not fmt.dtype.is_floating_point:
        raise ModelError(f"'{site.name}' has {site.word} codes, which are not to be seen by themselves; leave it out")
    held_by = held_in if values.dtype.is_floating_point else lying_in
    held = encode(values.contiguous(), held_by(fmt, values.dtype)).cpu().numpy()
    return held.view(np.dtype(f"u{held.dtype.itemsize}"))
