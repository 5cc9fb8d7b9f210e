"""Upsets of an accelerator's flip-flops: what Resiliency Accuracy, failures in time and what-ifs are told from."""

from torchfault.campaign import Campaign
from torchfault.criteria import Misclassified, Top1Change
from torchfault.engine import Engine
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.layers import Layers, layers_in
from torchfault.hardware.measure import UpsetMeasure
from torchfault.hardware.samplers import ByCells, TwoPhase, pilot_block
from torchfault.hardware.upset_space import upset_space
from torchfault.hardware.upsets import Upset
from torchfault.statistics import MaxTrials, Rule

__all__ = ["upsets"]

_BLOCKS = 4  # unless told otherwise: a pilot, and three times as many after it


def upsets(
    engine: Engine,
    accelerator: Accelerator,
    *,
    proposal: str = "strata",
    inputs_per_fault: int | None = 1,
    stop: Rule | None = None,
    layers: Layers | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Campaign:
    """Return the campaign that strikes flip-flops of *accelerator* while it runs the model of *engine*.

    Upsets are drawn as *proposal* says: from ``strata`` of such as a pilot found alike
    (:class:`torchfault.hardware.samplers.TwoPhase`), or by a published one, ``UNIFORM``, ``MAC``, ``IS`` or ``IS-B``
    (:class:`torchfault.hardware.samplers.ByCells`). Each strikes *inputs_per_fault* random inputs, or all (``None``).
    Control is never struck: its upsets are crashes, and counted as such. It ends after four blocks, 4,096 upsets for
    most models, unless *stop* says otherwise. :func:`torchfault.run` it, then ask
    :func:`torchfault.results.resiliency`, :func:`torchfault.results.fit` and :func:`torchfault.results.what_if`.
    *layers*, if given, is :func:`torchfault.hardware.layers.layers_in` this engine.

    Raises :class:`torchfault.errors.ModelError` where the model cannot be captured,
    :class:`torchfault.errors.CriterionError` for data without labels, :class:`torchfault.errors.HardwareError` for a
    model that does no such work, and :class:`torchfault.errors.SamplingError` for another *proposal*. Source: Tyagi et
    al., arXiv 2212.02649.

    >>> import torch
    >>> from torchfault import Data
    >>> from torchfault.hardware.accelerator import OUTPUT_STATIONARY
    >>> from torchfault.zoo import digits_cnn
    >>> campaign = upsets(Engine(digits_cnn(), Data(torch.rand(4, 1, 8, 8), torch.arange(4))), OUTPUT_STATIONARY)
    >>> campaign.sampler, campaign.stop
    (TwoPhase(block=1024), MaxTrials(n=4096))
    """
    layers = layers_in(engine) if layers is None else layers
    space, measure = upset_space(accelerator, layers.works, layers.space), UpsetMeasure(in_use=True)
    block, repeats = pilot_block(space, measure), inputs_per_fault or len(engine.data)
    return Campaign(
        engine,
        space,
        sampler=TwoPhase(block) if proposal == "strata" else ByCells(proposal, block),
        measure=measure,
        fault=Upset(layers),
        criterion=Top1Change(),
        verdicts={"wrong": Misclassified()},
        inputs_per_fault=inputs_per_fault,
        stop=stop or MaxTrials(_BLOCKS * block * repeats),
        level=level,
        seed=seed,
    )
