"""Fault-aware training as a callback of Hugging Face's ``Trainer``; needs ``pip install torchfault[huggingface]``."""

from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from torchfault.data import Data, leaves
from torchfault.hardening.draws import FaultDraws
from torchfault.hardening.faulty_steps import FaultySteps, Gradient

__all__ = ["FaultTraining"]


class FaultTraining(TrainerCallback, ExportableState):
    """Lets a ``Trainer`` train under the faults of *draws*, as :func:`torchfault.hardening.train_with_faults` does.

    Sites are those that :func:`torchfault.model.discover.find` shows of the model on *data*, a few inputs. All batches
    that gradients are accumulated from before one step of the optimiser have the faults of that step. Gradients are
    bounded by *clip* behind the trainer's own ``max_grad_norm``. What it takes to go on stands in
    ``trainer_state.json`` of each checkpoint; leave ``restore_callback_states_from_checkpoint`` off, which would make
    the callback anew without its draws. The trainer tells callbacks of no exception: after one, :meth:`close` puts all
    words right.

    >>> import torch
    >>> from torchfault.space import FaultSpace, Site
    >>> draws = FaultDraws(FaultSpace((Site("classifier.weight", (2, 3)),)), share=0.5)
    >>> FaultTraining(draws, Data(torch.zeros(1, 3))).state()["attributes"]
    {}
    """

    def __init__(self, draws: FaultDraws, data: Data, *, gradient: Gradient = "faulty", clip: float = 1.0) -> None:
        self.draws, self.data, self.gradient, self.clip = draws, data, gradient, clip
        self.steps: FaultySteps | None = None
        self._watch = ExitStack()

    @property
    def skipped(self) -> int:
        """How many steps a fault has left without finite gradients."""
        return 0 if self.steps is None else self.steps.skipped

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Find the sites, and take up what a checkpoint held."""
        del args, control
        self.steps = FaultySteps(others["model"], self.data, self.draws, gradient=self.gradient, clip=self.clip)
        stored: Any = state.stateful_callbacks
        if state.global_step and (held := (stored or {}).get(type(self).__name__)):
            self.steps.resume(held["attributes"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Strike the faults of the step."""
        del args, control, others
        self._begin(state.global_step)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Strike them for the next batch of the same step."""
        del args, control, others
        self._begin(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Put all words right, and bound the gradients, or drop them."""
        del args, state, control, others
        self.close()
        self._running.bound(self._running.model.parameters())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Put all words right."""
        del args, state, control, others
        self.close()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {} if self.steps is None else self.steps.state()}

    def close(self) -> None:
        """Put all words right, whatever came in between."""
        self._watch.close()
        if self.steps is not None:
            self.steps.end()

    def _begin(self, step: int) -> None:
        self.close()
        self._running.begin(step)
        # the trainer calls nothing between the passes; a hook that came after those of the faults sees the outputs last
        self._watch.callback(self._running.model.register_forward_hook(self._computed).remove)

    def _computed(self, model: nn.Module, given: Any, outputs: Any) -> None:
        del model, given
        self._running.computed(outputs["loss"] if "loss" in outputs else leaves(outputs)[0])

    @property
    def _running(self) -> FaultySteps:
        assert self.steps is not None, "the trainer calls on_train_begin before any step"
        return self.steps
