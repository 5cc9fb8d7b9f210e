"""Bytes of tensors that torchao quantised, flipped by hand where they lie: what lanes in such models are held to."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.agreement import collect
from torchfault.data import Data, call, leaves, rows
from torchfault.engine import Engine
from torchfault.faults import BitFlip
from torchfault.space import Site
from torchfault.trials import strike

PARTS = {"": "qdata", "scale": "scale", "per_tensor_scale": "per_tensor_scale"}


def stored_at(model: nn.Module, site: Site) -> Tensor:
    """Return the bytes of the words of *site*, a part of a quantised parameter."""
    name, _, part = site.name.partition(":")
    path, _, last = name.rpartition(".")
    held: Tensor = getattr(getattr(model.get_submodule(path), last), PARTS[part])
    return held.reshape(-1).view(torch.uint8)


def agree_with_bytes(engine: Engine, sites: Sequence[Site], trials: int, same: Callable[[Tensor, Tensor], bool]) -> int:
    """Hold the outputs of random flips in each of *sites* to the *same* flips by hand; return how many changed them."""
    model, data, changed = engine.model, engine.data, 0
    golden = outputs(model, data)
    for site in sites:
        space, rng = engine.space.select(site.name), np.random.default_rng(5)
        index = rng.choice(len(space), trials, replace=False)
        lanes = np.arange(trials) % len(data)
        mine = collect(engine._executor, strike(space, space.locate(index), model=BitFlip(), rng=rng, inputs=lanes))[0]
        flat = stored_at(model, site)
        for i, where in enumerate(index.tolist()):
            place, bit = divmod(where, site.width)
            size, before = flat.numel() // site.elements, flat.clone()
            flat[place * size + bit // 8] ^= 1 << bit % 8
            theirs = outputs(model, data.take(slice(int(lanes[i]), int(lanes[i]) + 1)))
            flat.copy_(before)
            assert same(mine[i : i + 1].float(), theirs.float()), (site.name, where)
            changed += not torch.equal(theirs[0], golden[lanes[i]])
    assert torch.equal(outputs(model, data), golden)
    return changed


def outputs(model: nn.Module, data: Data) -> Tensor:
    """Return what *model* gives for all inputs, first of what it returns."""
    with torch.no_grad():
        found: Tensor = leaves(call(model, rows(data.inputs, slice(None))))[0]
    return found
