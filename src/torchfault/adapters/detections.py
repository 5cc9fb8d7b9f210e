"""Detectors that give as many boxes as they find, with outputs of a fixed size."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.adapters.stand_in import stand_in
from torchfault.errors import ModelError
from torchfault.model.wrappers import unwrapped

__all__ = ["padded_detections"]


def padded_detections(model: nn.Module, *, most: int = 300, scores: str = "scores") -> nn.Module:
    """Return *model* as one whose detections have a fixed number, so that every input has a row in every output.

    *model* gives for each of N inputs a dictionary of tensors that have one entry for each detection, as torchvision's
    detectors do in evaluation mode; the result gives one dictionary, boxes (N, most, 4), scores and labels (N, most),
    and whatever else there is. Of more than *most* detections the ones with the best *scores* stay, in their order;
    fewer are filled up with zeros, which no threshold above 0 takes for detections, and which are equal to each other.

    The returned module shares all modules, parameters and names with *model*, which stays as it is. Raises
    :class:`ModelError` for a number below 1, and, when it runs, for outputs of another form.

    >>> class Bright(nn.Module):
    ...     def forward(self, images):
    ...         found = [image[image > 0.5] for image in images]
    ...         return [{"boxes": s[:, None].expand(-1, 4), "scores": s, "labels": s.long() + 1} for s in found]
    >>> found = padded_detections(Bright(), most=3)(torch.tensor([[0.6, 0.1], [0.9, 0.7]]))
    >>> found["boxes"].shape, found["scores"].tolist()[0][1:], found["labels"].tolist()
    (torch.Size([2, 3, 4]), [0.0, 0.0], [[1, 0, 0], [1, 1, 0]])
    """
    if most < 1:
        raise ModelError(f"a detector gives 1 detection or more, got most = {most}")
    model = unwrapped(model)
    plain = type(model)

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        found = plain.forward(self, *args, **kwargs)
        if not isinstance(found, list | tuple) or not found or not all(isinstance(one, Mapping) for one in found):
            raise ModelError(
                f"expected a list with a dictionary of tensors for each input, got {type(found).__name__} from "
                f"{plain.__name__}; call model.eval(), or adapt its outputs by a module of your own"
            )
        rows = [_best(one, most, scores) for one in found]
        return {name: torch.stack([_filled(row[name], most) for row in rows]) for name in rows[0]}

    return stand_in(model, forward)


def _best(found: Mapping[str, Tensor], most: int, scores: str) -> dict[str, Tensor]:
    """Return the *most* detections with the best scores, in their order; NaN is the best, as torch has it."""
    if scores not in found:
        raise ModelError(f"a detector gives '{scores}', got {', '.join(map(repr, found))}; name them with scores=")
    if len(found[scores]) <= most:
        return dict(found)
    kept = found[scores].argsort(descending=True, stable=True)[:most].sort().values
    return {name: tensor[kept] for name, tensor in found.items()}


def _filled(tensor: Tensor, most: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])])
