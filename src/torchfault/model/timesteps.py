"""Modules that run all their time steps within one call, taken apart so that every step's state can be seen and struck.

That is torch's own LSTM, GRU and RNN, SpikingJelly's neurons in multi-step mode, and Norse's neurons over time. They
are known by what they are called and what they offer: no library is imported.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from torchfault.model.undo import Undo

__all__ = ["MarkState", "runs_inside", "taken_apart"]

MarkState = Callable[[str, Tensor], Tensor]
"""Shows a state, by its name within the module, once for every time step; returns what to go on with."""


def runs_inside(module: nn.Module) -> bool:
    """Whether *module* runs several time steps within one call, and :func:`taken_apart` can show each of them.

    >>> runs_inside(nn.LSTM(3, 4)), runs_inside(nn.LSTMCell(3, 4))
    (True, False)
    """
    return _recurrent(module) or _is_spikingjelly(module) or _is_norse(module)


class _Apart:
    """A function that runs step by step, in the place of attribute *name* of *module* for as long as it has marks."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name, self.own = module, name, name in module.__dict__
        self.marks: list[MarkState] = []
        make = {"forward": _recurrent_forward, "activation": _norse_activation}.get(name, _spikingjelly_forward)
        self.plain = getattr(module, name)
        self.run = make(module, self.plain, self._mark)

    def _mark(self, state: str, tensor: Tensor) -> Tensor:
        for mark in self.marks:
            tensor = mark(state, tensor)
        return tensor

    def leave(self, mark: MarkState) -> None:
        """Forget *mark*, and give way to the plain function once there is none left."""
        if mark in self.marks:
            self.marks.remove(mark)
        if self.marks or self.module.__dict__.get(self.name) is not self:
            return
        if self.own:
            object.__setattr__(self.module, self.name, self.plain)
        else:
            object.__delattr__(self.module, self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


@contextmanager
def taken_apart(module: nn.Module, mark: MarkState) -> Iterator[None]:
    """Let *module* run step by step in this scope, and show the states that each step leaves to *mark*.

    Scopes may overlap, and end in any order: that which began first sees a state first, the next what it goes on with.
    """
    name = "forward" if _recurrent(module) else "multi_step_forward" if _is_spikingjelly(module) else "activation"
    found = module.__dict__.get(name)
    apart = found if isinstance(found, _Apart) else _Apart(module, name)
    with Undo() as undo:
        undo.add(lambda: apart.leave(mark))
        apart.marks.append(mark)
        object.__setattr__(module, name, apart)
        yield


def _comes_from(module: nn.Module, library: str, *names: str) -> bool:
    return any(c.__module__.partition(".")[0] == library and (c.__name__ in names) for c in type(module).__mro__)


def _is_spikingjelly(module: nn.Module) -> bool:
    if not _comes_from(module, "spikingjelly", "MemoryModule") or getattr(module, "step_mode", "s") != "m":
        return False
    return "s" in module.supported_step_mode() and bool(module._memories)  # type: ignore[operator]


def _spikingjelly_forward(module: Any, plain: Callable[..., Any], mark: MarkState) -> Callable[..., Any]:
    """Multi-step mode is, by its definition, single-step mode once for every row of the sequence."""
    del plain

    def forward(x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        steps = []
        for t in range(x_seq.shape[0]):
            rest = [a[t] if isinstance(a, Tensor) else a for a in args]
            steps.append(module.single_step_forward(x_seq[t], *rest, **kwargs))
            for name, value in module._memories.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    module._memories[name] = mark(name, value)
        return torch.stack(steps)

    return forward


def _is_norse(module: nn.Module) -> bool:
    return _comes_from(module, "norse", "SNN", "SNNRecurrent") and callable(getattr(module, "activation", None))


def _norse_activation(module: Any, plain: Callable[..., Any], mark: MarkState) -> Callable[..., Any]:
    """Norse's modules over time call their activation once for every step; it returns the state."""
    del module

    def activation(*args: Any, **kwargs: Any) -> Any:
        output, state = plain(*args, **kwargs)
        places, spec = pytree.tree_flatten_with_path(state)
        leaves = [mark(_field(keys), leaf) if isinstance(leaf, Tensor) else leaf for keys, leaf in places]
        return output, pytree.tree_unflatten(leaves, spec)

    return activation


def _field(keys: Any) -> str:
    parts = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", "")))) for key in keys]
    return ".".join(parts) or "state"


def _recurrent(module: nn.Module) -> bool:
    """Whether *module* is one of torch's own recurrent layers, in a form that is computed here step by step."""
    plain = isinstance(module, nn.LSTM | nn.GRU | nn.RNN) and type(module).__module__.startswith("torch.nn.modules.")
    return plain and not module.proj_size and (not module.training or not module.dropout)


def _recurrent_forward(module: Any, whole: Callable[..., Any], mark: MarkState) -> Callable[..., Any]:
    """Return the forward pass of a recurrent layer as in its documentation, one step after the other."""

    def forward(x: Any, hx: Any = None) -> Any:
        if isinstance(x, PackedSequence):
            return whole(x, hx)
        batched, sides = x.dim() == 3, 2 if module.bidirectional else 1
        steps = x.unsqueeze(1) if not batched else x.transpose(0, 1) if module.batch_first else x
        ends: list[tuple[Tensor, ...]] = []
        first = _initial(module, steps, hx, batched=batched)
        for layer in range(module.num_layers):
            begin = [tuple(state[sides * layer + side] for state in first) for side in range(sides)]
            found = [_direction(module, mark, steps, begin[side], layer, side) for side in range(sides)]
            steps = torch.cat([outputs for outputs, _ in found], -1) if len(found) > 1 else found[0][0]
            ends += [end for _, end in found]
        last = [torch.stack(parts) for parts in zip(*ends, strict=True)]
        if not batched:
            steps, last = steps.squeeze(1), [part.squeeze(1) for part in last]
        elif module.batch_first:
            steps = steps.transpose(0, 1)
        return steps, tuple(last) if isinstance(module, nn.LSTM) else last[0]

    return forward


def _initial(module: Any, steps: Tensor, hx: Any, *, batched: bool) -> tuple[Tensor, ...]:
    if hx is not None:
        given = hx if isinstance(hx, tuple | list) else (hx,)
        return tuple(given) if batched else tuple(state.unsqueeze(1) for state in given)
    layers = module.num_layers * (2 if module.bidirectional else 1)
    zeros = steps.new_zeros(layers, steps.shape[1], module.hidden_size)
    return (zeros, zeros) if isinstance(module, nn.LSTM) else (zeros,)


def _direction(
    module: Any, mark: MarkState, steps: Tensor, state: tuple[Tensor, ...], layer: int, direction: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the outputs of one layer in one direction, (steps, batch, features), and its last state."""
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    own = suffix if module.num_layers > 1 or module.bidirectional else ""
    weights: list[Any] = [
        getattr(module, f"{part}{suffix}", None) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    ahead = nn.functional.linear(steps, weights[0], weights[2])
    order = range(len(steps) - 1, -1, -1) if direction else range(len(steps))
    outputs: list[Any] = [None] * len(steps)
    for t in order:
        state = _CELLS[type(module)](module, ahead[t], state, weights[1], weights[3])
        state = tuple(mark(name + own, part) for name, part in zip("hc", state, strict=False))
        outputs[t] = state[0]
    return torch.stack(outputs), state


def _lstm_step(_: Any, ahead: Tensor, state: tuple[Tensor, ...], weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (ahead + nn.functional.linear(state[0], weight, bias)).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(_: Any, ahead: Tensor, state: tuple[Tensor, ...], weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    (ri, zi, ni), (rh, zh, nh) = ahead.chunk(3, -1), nn.functional.linear(state[0], weight, bias).chunk(3, -1)
    r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
    n = (ni + r * nh).tanh()
    return (n + z * (state[0] - n),)


def _rnn_step(
    module: Any, ahead: Tensor, state: tuple[Tensor, ...], weight: Tensor, bias: Tensor
) -> tuple[Tensor, ...]:
    total = ahead + nn.functional.linear(state[0], weight, bias)
    return (total.relu() if module.nonlinearity == "relu" else total.tanh(),)


_CELLS: dict[type, Callable[..., tuple[Tensor, ...]]] = {nn.LSTM: _lstm_step, nn.GRU: _gru_step, nn.RNN: _rnn_step}
