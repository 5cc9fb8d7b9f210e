"""States in the slow reference: the module itself runs up to the struck step, its state is edited, and it runs on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Edits = list[tuple[int, int, int]]
Steps = dict[int, Edits]
"""The edits of one state, by time step."""
Change = Callable[[Tensor, Edits], Tensor]


@contextmanager
def struck_states(model: nn.Module, edits: dict[str, Steps], change: Change) -> Iterator[None]:
    """Edit states of *model* in this scope, by names such as ``lif1:state.mem``; all must find their place."""
    by_module: dict[str, dict[str, Steps]] = {}
    for site, steps in edits.items():
        path, _, role = site.partition(":")
        by_module.setdefault(path, {})[role.removeprefix("state.")] = {step: list(rows) for step, rows in steps.items()}
    patched = []
    try:
        for path, states in by_module.items():
            module = model.get_submodule(path)
            object.__setattr__(module, "forward", _forward(module, states, change))
            patched.append(module)
        yield
    finally:
        for module in patched:
            object.__delattr__(module, "forward")
    left = [(path, name) for path, states in by_module.items() for name, steps in states.items() if steps]
    assert not left, f"the reference never met {left}"


def _forward(module: Any, states: dict[str, Steps], change: Change) -> Callable[..., Any]:
    if isinstance(module, nn.RNNBase):
        return lambda x, hx=None: _recurrent(module, x, hx, states, change)
    if getattr(module, "step_mode", "s") == "m":
        return lambda x: _segments_held(module, x, states, change)
    if {"SNN", "SNNRecurrent"} & {one.__name__ for one in type(module).__mro__}:
        return lambda x, state=None: _segments_passed(module, x, state, states, change)
    return _one_step(module, states, change)


def _one_step(module: Any, states: dict[str, Steps], change: Change) -> Callable[..., Any]:
    """A module called once for each step, with states in places of its own, in a named tuple, or by their order."""
    plain, calls = type(module).forward, [0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = plain(module, *args, **kwargs)
        for name, steps in states.items():
            rows = steps.pop(calls[0], None)
            if rows is None:
                continue
            held = getattr(module, name, None)
            fresh = None
            if isinstance(held, Tensor):
                fresh = change(held, rows)
                setattr(module, name, fresh)
                if output is held:  # a state that is the output as well
                    output = fresh
            if isinstance(output, tuple) and hasattr(output[-1], "_fields"):
                if output[0] is getattr(output[-1], name):  # Norse's integrators give their state as their output
                    output = (change(output[0], rows), output[-1])
                output = (output[0], output[-1]._replace(**{name: change(getattr(output[-1], name), rows)}))
            elif isinstance(output, Tensor) and isinstance(module, nn.RNNCellBase):
                output = change(output, rows)  # the state of a cell without a memory beside it
            elif isinstance(output, tuple):
                order = ["h", "c"] if isinstance(module, nn.RNNCellBase) else _ORDER[type(module).__name__]
                parts = list(output)
                if name in order and (fresh is None or parts[order.index(name)] is held):
                    parts[order.index(name)] = change(parts[order.index(name)], rows) if fresh is None else fresh
                output = tuple(parts)
        calls[0] += 1
        return output

    return forward


_ORDER = {"Leaky": ["spk", "mem"], "Synaptic": ["spk", "syn", "mem"]}


def _cuts(states: dict[str, Steps], length: int) -> list[tuple[int, int]]:
    """Return the segments between struck steps; each ends behind the step after which its state is edited."""
    ends = sorted({step + 1 for steps in states.values() for step in steps if step + 1 < length} | {length})
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _segments_held(module: Any, x: Tensor, states: dict[str, Steps], change: Change) -> Tensor:
    outputs = []
    for begin, end in _cuts(states, len(x)):
        outputs.append(type(module).forward(module, x[begin:end]))
        for name, steps in states.items():
            if (rows := steps.pop(end - 1, None)) is not None:
                setattr(module, name, change(getattr(module, name), rows))
    return torch.cat(outputs)


def _segments_passed(module: Any, x: Tensor, state: Any, states: dict[str, Steps], change: Change) -> Any:
    outputs = []
    for begin, end in _cuts(states, len(x)):
        output, state = type(module).forward(module, x[begin:end], state)
        outputs.append(output)
        for name, steps in states.items():
            if (rows := steps.pop(end - 1, None)) is not None:
                state = state._replace(**{name: change(getattr(state, name), rows)})
    return torch.cat(outputs), state


def _recurrent(module: Any, x: Tensor, hx: Any, states: dict[str, Steps], change: Change) -> Any:
    """Run a recurrent layer (one direction) layer by layer and segment by segment, by torch's own kernels."""
    assert not module.bidirectional
    assert hx is None
    steps, ends = x.transpose(0, 1) if module.batch_first else x, []
    for layer in range(module.num_layers):
        one = type(module)(steps.shape[-1], module.hidden_size)
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(one, f"{part}_l0").data = getattr(module, f"{part}_l{layer}").data
        suffix = f"_l{layer}" if module.num_layers > 1 else ""
        mine = {name: states.get(name + suffix, {}) for name in "hc"}
        outputs, state = [], None
        for begin, end in _cuts(mine, len(steps)):
            output, state = one(steps[begin:end], state)
            parts = list(state) if isinstance(state, tuple) else [state]
            for i, name in enumerate("hc"[: len(parts)]):
                if (rows := mine[name].pop(end - 1, None)) is not None:
                    parts[i] = change(parts[i], rows)
            if parts[0] is not (state[0] if isinstance(state, tuple) else state):
                output = torch.cat([output[:-1], parts[0]])
            state = tuple(parts) if isinstance(state, tuple) else parts[0]
            outputs.append(output)
        steps = torch.cat(outputs)
        ends.append(state)
    last = tuple(torch.cat(part) for part in zip(*ends, strict=True)) if isinstance(ends[0], tuple) else torch.cat(ends)
    return (steps.transpose(0, 1) if module.batch_first else steps), last
