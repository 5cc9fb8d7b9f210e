"""Fault-aware training as a callback of Lightning; needs ``pip install torchfault[lightning]``."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from torchfault.data import Data
from torchfault.hardening.draws import FaultDraws
from torchfault.hardening.faulty_steps import FaultySteps, Gradient

__all__ = ["FaultTraining"]


class FaultTraining(Callback):
    """Lets a Lightning trainer train under the faults of *draws*, as :func:`torchfault.hardening.train_with_faults`.

    Sites are those that :func:`torchfault.model.discover.find` shows of the module on *data*, a few inputs. All batches
    that gradients are accumulated from before one step of the optimiser have the faults of that step. Gradients are
    bounded by *clip* before Lightning's own bound. What it takes to go on is saved with every checkpoint.

    >>> from lightning.pytorch import Trainer
    >>> import torch
    >>> from torchfault.space import FaultSpace, Site
    >>> draws = FaultDraws(FaultSpace((Site("net.weight", (2, 3)),)), share=0.5)
    >>> FaultTraining(draws, Data(torch.zeros(1, 3))).state_dict()
    {}
    """

    def __init__(self, draws: FaultDraws, data: Data, *, gradient: Gradient = "faulty", clip: float = 1.0) -> None:
        self.draws, self.data, self.gradient, self.clip = draws, data, gradient, clip
        self.steps: FaultySteps | None = None
        self._state: dict[str, Any] = {}

    @property
    def skipped(self) -> int:
        """How many steps a fault has left without finite gradients."""
        return int(self.state_dict().get("skipped", 0))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the sites, and take up what a checkpoint held."""
        del trainer
        self.steps = FaultySteps(pl_module, self.data, self.draws, gradient=self.gradient, clip=self.clip)
        if self._state:
            self.steps.resume(self._state)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Strike the faults of the step."""
        del pl_module, batch, batch_idx
        self._running.begin(trainer.global_step)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Choose through which words gradients go."""
        del trainer, pl_module
        self._running.computed(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put all words right."""
        del trainer, pl_module
        self._running.end()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Bound the gradients, or drop them."""
        del trainer, pl_module
        self._running.bound(one for group in optimizer.param_groups for one in group["params"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put all words right where the batch had no backward pass."""
        del trainer, pl_module, outputs, batch, batch_idx
        self._running.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put all words right."""
        del trainer, pl_module, exception
        if self.steps is not None:
            self.steps.end()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self._state if self.steps is None else self.steps.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint kept."""
        self._state = state_dict

    @property
    def _running(self) -> FaultySteps:
        assert self.steps is not None, "Lightning calls on_train_start before any batch"
        return self.steps
