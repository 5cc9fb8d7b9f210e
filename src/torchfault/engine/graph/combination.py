"""Closed forms of several changed words in one lane: what they add to one channel is summed before it is written."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchfault.engine.graph.patches import CHANNELS_LAST, Patch, Struck, batch_norm_patch, patch_for
from torchfault.model.program import Node, Ref

__all__ = ["LARGEST_LOSS", "lost_digits", "strike_together"]

# Measured on a CPU: a changed word costs a visit to every pixel of its channel and some more visits for itself; running
# the operation anew costs a visit for so many of its products, and some for the call. The cheaper one is taken.
_VISITS_PER_WORD = 40
_VISITS_PER_CALL = 2_000
_PRODUCTS_PER_VISIT = 80
# So many visits at once stay in the caches of a CPU; a single lane may make four times as many.
_MOST_VISITS = {"cpu": 1 << 18}
LARGEST_LOSS = 64.0
"""A channel that shrinks by more has lost digits which running anew would have kept."""

Read = Callable[[int], Any]


def strike_together(node: Node, output: Tensor, struck: Mapping[int, Struck], *, value: Read, layout: Read) -> Tensor:
    """Apply words *struck* in parameters, by argument of *node*, to *output* (lanes first), in place.

    The rows of each :class:`Struck` may repeat; no word is struck twice. Returns, sorted, the lanes that were left as
    they are: for which there is no closed form, or for which it would cost or lose more than running *node* anew.
    """
    lanes: Tensor
    lanes, events = torch.cat([one.rows for one in struck.values()]).unique(return_counts=True)
    if output.ndim < 2:
        return lanes
    axis = -1 if node.op in CHANNELS_LAST else 1
    pixels = output[0].numel() // max(output.shape[axis], 1)
    most = _MOST_VISITS.get(output.device.type, 1 << 24)
    few = (events == 1) | ((events * pixels <= 4 * most) & _cheaper(node, events, pixels, value))
    left, lanes, events = [lanes[~few]], lanes[few], events[few]
    block = events.cumsum(0) * pixels // most
    for part in torch.split(lanes, block.unique_consecutive(return_counts=True)[1].tolist()):
        mine = struck if len(part) == len(lanes) and not len(left[0]) else _of(struck, part)
        found = _combined(node, mine, output.shape[axis], value, layout)
        if found is None:
            return torch.cat([left[0], lanes]).sort().values
        left.append(_write(output, *found))
    return torch.cat(left).sort().values


def _cheaper(node: Node, events: Tensor, pixels: int, value: Read) -> Tensor:
    """Return whether so many *events* in a lane cost less than running *node* anew for it."""
    weight = node.args[2 if node.op == "addmm" else 1]
    if node.op in ("batch_norm", "embedding") or not isinstance(
        weight, Ref
    ):  # which cost a channel or a column at most
        return torch.ones_like(events, dtype=torch.bool)
    products = pixels * int(value(weight.node).numel())
    return events * (pixels + _VISITS_PER_WORD) <= products // _PRODUCTS_PER_VISIT + _VISITS_PER_CALL


def _of(struck: Mapping[int, Struck], lanes: Tensor) -> dict[int, Struck]:
    """Return the words struck in some *lanes*."""
    found = {slot: one.where(torch.isin(one.rows, lanes)) for slot, one in struck.items()}
    return {slot: one for slot, one in found.items() if len(one.rows)}


def _combined(
    node: Node, struck: Mapping[int, Struck], channels: int, value: Read, layout: Read
) -> tuple[Tensor, Patch, Tensor] | None:
    """Return rows, the patch of one channel of each, and which of them several words change."""
    if node.op == "batch_norm" and len(struck) > 1:
        return _normalised(node, struck, channels, value, layout)
    patches = [patch_for(node, slot, one, value=value, layout=layout) for slot, one in struck.items()]
    known = [patch for patch in patches if patch is not None and len(patch.index) == 1]
    if len(known) < len(patches):
        return None
    rows = torch.cat([one.rows for one in struck.values()])
    wide = max((patch.values.shape[1:] for patch in known), key=lambda shape: shape.numel())
    patch = replace(
        known[0],
        index=(torch.cat([patch.index[0] for patch in known]),),
        values=torch.cat([patch.values.expand(-1, *wide) for patch in known]) if len(known) > 1 else known[0].values,
    )
    return _summed(rows, patch, channels)


def _normalised(
    node: Node, struck: Mapping[int, Struck], channels: int, value: Read, layout: Read
) -> tuple[Tensor, Patch, Tensor] | None:
    """Return the channels of a batch norm of which any constants change."""
    pair, home = torch.cat([one.rows * channels + one.element for one in struck.values()]).unique(return_inverse=True)
    rows, channel, changed, begin = pair // channels, pair % channels, {}, 0
    for slot, one in struck.items():
        changed[slot] = value(node.args[slot].node)[channel]
        changed[slot][home[begin : begin + len(one.rows)]] = one.new
        begin += len(one.rows)
    patch = batch_norm_patch(node, rows, channel, changed, value=value, layout=layout)
    return None if patch is None else (rows, patch, torch.zeros_like(rows, dtype=torch.bool))


def _summed(rows: Tensor, patch: Patch, channels: int) -> tuple[Tensor, Patch, Tensor]:
    """Return *rows* and *patch* with every channel of a row once, in a fixed order of summation."""
    key, order = (rows * channels + patch.index[0]).sort(stable=True)
    start = torch.ones_like(key, dtype=torch.bool)
    start[1:] = key[1:] != key[:-1]
    if bool(start.all()):
        return rows, patch, ~start
    first = start.nonzero().squeeze(1)
    home = start.cumsum(0) - 1
    rank = torch.arange(len(key), device=key.device) - first[home]
    values, mask = patch.values[order[first]], None if patch.mask is None else patch.mask[order[first]]
    for level in range(1, int(rank.max()) + 1):
        at = (rank == level).nonzero().squeeze(1)
        into, event = home[at], order[at]
        if patch.mask is None or mask is None:
            values.index_add_(0, into, patch.values[event])
        else:
            values[into] = torch.where(patch.mask[event], patch.values[event], values[into])
            mask[into] |= patch.mask[event]
    crowded = torch.zeros(len(first), dtype=torch.bool, device=key.device).index_fill_(0, home[rank == 1], True)
    chosen = order[first]
    return rows[chosen], replace(patch, index=(patch.index[0][chosen],), values=values, mask=mask), crowded


def _write(output: Tensor, rows: Tensor, patch: Patch, crowded: Tensor) -> Tensor:
    """Write *patch* to the *rows* of *output* but for those, which are returned, where it is not to be trusted.

    A sum through infinity or NaN need not be what the operation itself gives: infinity less infinity is none.
    """
    before = patch.read(output, rows)
    after = patch.onto(before)
    if patch.add:
        lost = lost_digits(before, after, crowded)
        if bool(lost.any()):
            lanes: Tensor = rows[lost].unique()
            kept = (~torch.isin(rows, lanes)).nonzero().squeeze(1)
            patch = replace(patch, index=(patch.index[0][kept],))
            patch.write(output, rows[kept], after[kept])
            return lanes
    patch.write(output, rows, after)
    return rows[:0]


def lost_digits(before: Tensor, after: Tensor, crowded: Tensor | None = None) -> Tensor:
    """Return in which lanes a channel has lost digits from *before* to *after* something was added to it.

    Those in which it came from, or by several words (*crowded*) to, infinity or NaN are among them.
    """
    was, now = (part.flatten(1).abs().amax(1) if part.ndim > 1 else part.abs() for part in (before, after))
    endless = ~was.isfinite() if crowded is None else crowded | ~was.isfinite()
    return (now * LARGEST_LOSS < was) | (~now.isfinite() & endless)
