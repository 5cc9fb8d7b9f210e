"""The suite for executors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from torchfault.data import Data, Tree, call, leaves, rows
from torchfault.engine import Executor
from torchfault.faults import BitFlip
from torchfault.testing.rules import equal, hold, rule
from torchfault.trials import Trials, strike
from torchfault.words import WORDS, decode, encode, masks_to_words

__all__ = ["check_executor"]


def check_executor(executor: Executor, model: nn.Module, data: Data, *, trials: int = 120) -> None:
    """Raise AssertionError, naming the rule, where *executor* does not run faults in *model* on *data* as promised.

    The rules: golden outputs are those of the model; every trial comes out once, on its own input, beside its golden
    row; a fault in a parameter has the outcome of editing the stored word and running the model; the same trials have
    the same outcome again; and the model is left as it was.

    >>> from torchfault.engine.hooks.executor import HooksExecutor
    >>> model, data = nn.Linear(3, 2).eval(), Data(torch.randn(4, 3))
    >>> check_executor(HooksExecutor(model, data), model, data)
    """
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with torch.no_grad():
        plain = leaves(call(model, data.inputs))
    with rule(executor, "golden outputs are those of the model, one row per input"):
        golden = leaves(executor.golden())
        hold(all(_close(a, b) for a, b in zip(golden, plain, strict=True)), "they differ")
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, len(data), trials)
    where = executor.space.locate(rng.integers(0, len(executor.space), trials))
    drawn = strike(executor.space, where, model=BitFlip(), rng=rng, inputs=inputs)
    with rule(executor, "every trial comes out once, on its own input, beside its golden row"):
        first = _outcomes(executor, drawn, golden)
    with rule(executor, "the same trials have the same outcome again"):
        again = _outcomes(executor, drawn, golden)
        hold(all(_close(a, b) for a, b in zip(first, again, strict=True)), "they differ")
    with rule(executor, "a fault in a parameter has the outcome of editing the stored word"):
        for trial in np.flatnonzero(~np.isin(drawn.site, [i for i, s in enumerate(drawn.sites) if s.is_activation])):
            expected = leaves(_edited_in_place(model, data, drawn, int(trial)))
            mine = [leaf[trial : trial + 1] for leaf in first]
            hold(all(_close(a, b) for a, b in zip(mine, expected, strict=True)), f"trial {trial} differs")
    with rule(executor, "the model is left as it was"):
        hold(all(map(equal, before, model.state_dict().values())), "a stored tensor has changed")


def _outcomes(executor: Executor, trials: Trials, golden: Sequence[Tensor]) -> list[Tensor]:
    """Return the faulty outputs in the order of the trials."""
    found: list[list[Tensor] | None] = [None] * len(trials)
    for lanes in executor.run(trials):
        hold((trials.inputs[lanes.trial] == lanes.inputs).all(), "a trial ran on another input")
        rows_of = [leaf[torch.from_numpy(lanes.inputs)] for leaf in golden]
        hold(all(_close(a, b) for a, b in zip(leaves(lanes.golden), rows_of, strict=True)), "golden rows differ")
        for row, trial in enumerate(lanes.trial.tolist()):
            hold(found[trial] is None, f"trial {trial} came out twice")
            found[trial] = [leaf[row] for leaf in leaves(lanes.outputs)]
    missing = [trial for trial, outputs in enumerate(found) if outputs is None]
    hold(not missing, f"trials {missing[:3]} never came out")
    return [torch.stack(column) for column in zip(*(o for o in found if o is not None), strict=True)]


def _edited_in_place(model: nn.Module, data: Data, trials: Trials, trial: int) -> Tree:
    """Return the output for one trial's input, with the word of a parameter edited and put back by hand."""
    stored = model.state_dict()[trials.sites[trials.site[trial]].name].view(-1)
    fmt = WORDS[trials.sites[trials.site[trial]].word]
    place = slice(int(trials.element[trial]), int(trials.element[trial]) + 1)
    keep, toggle = (masks_to_words(m[trial : trial + 1], fmt) for m in (trials.keep, trials.toggle))
    saved = stored[place].clone()
    with torch.no_grad():
        stored[place] = decode((encode(saved, fmt) & keep) ^ toggle, fmt)
        outputs = call(model, rows(data.inputs, slice(int(trials.inputs[trial]), int(trials.inputs[trial]) + 1)))
        stored[place] = saved
    return outputs


def _close(one: Tensor, two: Tensor) -> bool:
    """Whether two computations agree up to the order of additions, in proportion to the largest value of each lane."""
    a, b = (x.double().reshape(len(x), -1) for x in (one, two))
    scale = torch.where(b.isfinite(), b, 0).abs().amax(1, keepdim=True)
    near = ((a - b).abs() <= 1e-4 * scale + 1e-6) | (a == b) | (a.isnan() & b.isnan())
    # Near the end of the range a sum overflows in one order of additions and not in another.
    return bool((near | (scale > 1e30) | ~a.isfinite() & ~b.isfinite()).all())
