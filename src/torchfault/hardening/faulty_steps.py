"""The faults of a training, step by step: struck, bounded, and gone again; what every trainer does alike."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.data import Data
from torchfault.engine import inject
from torchfault.errors import FaultError, did_you_mean
from torchfault.hardening.draws import FaultDraws, Refreshed
from torchfault.model.discover import find
from torchfault.trials import Trials

__all__ = ["FaultySteps", "Gradient"]

Gradient = Literal["faulty", "clean"]


class FaultySteps:
    """Strikes a model for the forward and backward passes of one step after another, as *draws* say.

    A step goes ``begin``, forward pass, ``computed``, backward pass, ``end``, then ``bound`` and the optimiser; with
    several backward passes before the optimiser all but ``bound`` for each. *data* shows the sites of *model*: a few
    inputs are enough.

    *gradient* says at which words derivatives are taken. ``faulty``: at those that the pass ran with, so that they are
    the gradients of the faulty network; a struck weight gets none, since it would be the slope at a value that the
    weight does not have. ``clean``: the faulty outputs are taken back through the words without faults (a
    straight-through estimate), so that nothing large multiplies the gradients of the layers before, and a struck weight
    learns too. A struck activation passes its gradient on in both. ``bound`` limits the norm of all gradients to
    *clip*, and drops those that are no finite number; *skipped* counts the latter.

    >>> from torchfault.model.discover import parameter_sites
    >>> from torchfault.space import FaultSpace
    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> draws = FaultDraws(FaultSpace(tuple(parameter_sites(model))))
    >>> steps, kept = FaultySteps(model, Data(torch.ones(1, 2)), draws), model[0].weight.tolist()
    >>> steps.begin(0)
    >>> loss = model(torch.ones(1, 2)).sum()
    >>> steps.computed(loss)
    >>> loss.backward()
    >>> steps.end()
    >>> kept == model[0].weight.tolist()
    True
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        draws: FaultDraws | None,
        *,
        gradient: Gradient = "faulty",
        clip: float = 1.0,
    ) -> None:
        if gradient not in get_args(Gradient):
            raise FaultError(
                f"gradients go through 'faulty' or 'clean' words, got '{gradient}'"
                f"{did_you_mean(gradient, get_args(Gradient))}"
            )
        if not clip > 0:
            raise FaultError(f"the bound of gradients is above 0, got {clip:g}; float('inf') leaves them as they are")
        self.model, self.draws, self.gradient, self.clip = model, draws, gradient, clip
        self.skipped = 0
        self._scope, self._finite = ExitStack(), True
        self._period, self._pool = -1, np.zeros(0, dtype=np.int64)
        device = next((parameter.device for parameter in model.parameters()), "cpu")
        with _at_rest(model):
            self._found = find(model, data.to(device))
        shapes = {site.name: site.shape for site in self._found.space.sites}
        for site in draws.space.sites if draws else ():
            if (mine := shapes.get(site.name, site.shape)) != site.shape:
                raise FaultError(
                    f"'{site.name}' is {site.shape} in the draws and {mine} in the model; draw from its sites"
                )

    def begin(self, step: int) -> None:
        """Strike the faults of *step*; what an earlier step left struck is put right first."""
        self.end()
        if self.draws is None:
            return
        self._refresh(self.draws.pool, step)
        trial = self.draws.trial(step, self._pool)
        if trial is not None:
            self._scope.enter_context(inject(self.model, trial, space=self._found))
            if self.gradient == "faulty":
                self._scope.enter_context(_without_gradients(self.model, trial))

    def computed(self, loss: Tensor) -> None:
        """Take note of the *loss* of a forward pass, whose gradients are due next."""
        self._finite = self._finite and bool(loss.isfinite().all())
        if self.gradient == "clean":
            self.end()

    def end(self) -> None:
        """Put all words right."""
        self._scope.close()

    def bound(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Bound the gradients of *parameters*; return whether they are finite, and drop them where they are not."""
        held = [one for one in parameters if one.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(held, self.clip)
        fine, self._finite = self._finite and bool(norm.isfinite()), True
        if not fine:
            self.skipped += 1
            for one in held:
                one.grad = None
        return fine

    def state(self) -> dict[str, Any]:
        """Return what a training needs to go on as if it had never stopped, as plain JSON."""
        return {"skipped": self.skipped, "period": self._period, "pool": self._pool.tolist()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.skipped, self._period = int(state["skipped"]), int(state["period"])
        self._pool = np.array(state["pool"], dtype=np.int64)

    def _refresh(self, pool: "NDArray[np.int64] | Refreshed | None", step: int) -> None:
        if isinstance(pool, Refreshed) and step // pool.every != self._period:
            self._period = step // pool.every
            with _at_rest(self.model):
                self._pool = np.asarray(pool.search(self.model), dtype=np.int64)


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Let *model* be in evaluation mode, and what is random in torch stay as it is, in this scope."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _without_gradients(model: nn.Module, trial: Trials) -> Iterator[None]:
    """Let struck weights get no gradient in this scope; those of other passes that they have already stay."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with ExitStack() as hooks:
        for site in np.unique(trial.site):
            held = parameters.get(trial.sites[site].name)
            if held is not None and held.requires_grad:
                elements = torch.from_numpy(trial.element[trial.site == site])
                hooks.callback(held.register_hook(lambda gradient, at=elements: _zeroed(gradient, at)).remove)
        yield


def _zeroed(gradient: Tensor, elements: Tensor) -> Tensor:
    changed = gradient.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[elements.to(changed.device)] = 0
    return changed
