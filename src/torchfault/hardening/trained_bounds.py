"""Trained bounds: ranges as narrow as the answers on data allow, where golden ranges are as wide as any value was."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.criteria import accuracy
from torchfault.data import Data, call, rows
from torchfault.errors import DataError, ModelError
from torchfault.hardening.harden import guards
from torchfault.hardening.ranges import RangeGuard
from torchfault.model.wrappers import copied

__all__ = ["train_bounds"]


def train_bounds(
    model: nn.Module,
    data: Data,
    *,
    epochs: int = 3,
    batch: int = 64,
    rate: float = 0.02,
    pull: float = 0.5,
    drop: float = 0.002,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a *model* hardened by :class:`Ranges`, whose upper bounds are trained down on *data*.

    Each bound becomes a share of what it was, one share for each number of it. Adam, at *rate*, makes the cross entropy
    plus *pull* times the mean share small; weights stay as they are. After each of the *epochs* the accuracy on *data*
    is looked at: where it is lower than before by more than *drop*, the bounds of the epoch before are kept, and
    training ends. Values above their bound are clamped to it. Raises :class:`ModelError` for a model without clamping
    ranges and for numbers with which nothing could be trained, and :class:`DataError` for data without labels.

    Source: Ghavami et al., FitAct, DATE 2022, where bounds of neurons are trained with a pull towards 0.

    >>> from torchfault.hardening import Ranges, harden, profile
    >>> _ = torch.manual_seed(0)
    >>> plain = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> inputs = torch.randn(99, 2)
    >>> safe = harden(plain, Ranges("2:input"), profile=profile(plain.eval(), inputs))
    >>> bool(train_bounds(safe, Data(inputs, plain(inputs).argmax(1)))[2].input_high < safe[2].input_high)
    True
    """
    if data.labels is None:
        raise DataError("bounds are trained by the labels of data, got none; give data with labels")
    if epochs < 1 or batch < 1 or not (0 < rate < math.inf and 0 <= pull < math.inf):
        raise ModelError(
            "bounds are trained for 1 epoch or more in batches of 1 or more, at finite rates above 0, got "
            f"epochs={epochs}, batch={batch}, rate={rate:g}, pull={pull:g}"
        )
    twin = copied(model)
    places = _clamped(twin)
    wide = [module.get_buffer(name).clone() for module, name in places]
    shares = [torch.ones_like(bound, requires_grad=True) for bound in wide]
    optimizer = torch.optim.Adam(shares, lr=rate)
    order = torch.Generator().manual_seed(seed)
    kept, start = wide, _right(twin, data, batch)
    for _ in range(epochs):
        for mine in torch.randperm(len(data), generator=order).split(batch):
            _put(places, [bound * share for bound, share in zip(wide, shares, strict=True)])
            loss = F.cross_entropy(call(twin, rows(data.inputs, mine)), rows(data.labels, mine))
            optimizer.zero_grad()
            (loss + pull * torch.cat([share.flatten() for share in shares]).mean()).backward()
            optimizer.step()
            with torch.no_grad():
                for share in shares:
                    share.clamp_(0, 1)
        tried = [(bound * share).detach() for bound, share in zip(wide, shares, strict=True)]
        _put(places, tried)
        if _right(twin, data, batch) < start - drop:
            break
        kept = tried
    _put(places, kept)
    return twin


def _clamped(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the modules whose ranges clamp, and the names of their upper bounds."""
    places = [
        (module, f"{guard.place}_high")
        for _, module, guard in guards(model)
        if isinstance(guard, RangeGuard) and guard.action == "clamp"
    ]
    if not places:
        raise ModelError("bounds are trained where ranges clamp, got a model without such guards; harden it by Ranges")
    return places


def _put(places: list[tuple[nn.Module, str]], bounds: list[Tensor]) -> None:
    for (module, name), bound in zip(places, bounds, strict=True):
        module._buffers[name] = bound


def _right(model: nn.Module, data: Data, batch: int) -> float:
    """Return the accuracy on *data*."""
    with torch.no_grad():
        scores = [call(model, rows(data.inputs, slice(i, i + batch))) for i in range(0, len(data), batch)]
    return accuracy(torch.cat(scores), data.labels)
