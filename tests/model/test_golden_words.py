"""What sites hold without faults, also where a model takes another way, or looks at all inputs at once."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchfault.campaign import run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.model.golden_words import golden_words
from torchfault.recipes import vulnerability
from torchfault.results import factors


class Ways(nn.Module):
    """Goes by one of two layers, as the values of each input say."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if x.sum() > 0 else self.second(x)


class Relative(nn.Module):
    """Divides by the largest value of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x / x.abs().max().clamp(min=1e-3))


@pytest.fixture(params=[Ways, Relative])
def engine(request) -> Engine:
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    assert 2 < int((x.sum(1) > 0).sum()) < 10
    return Engine(request.param().eval(), Data(x))


def one_by_one(engine: Engine, name: str) -> np.ndarray:
    """Return what goes into a layer, by hooks of its own, for one input at a time; 0 where nothing does."""
    held = np.zeros((len(engine.data), 3), dtype=np.uint32)
    for number, x in enumerate(engine.data.inputs):

        def look(_: nn.Module, args: tuple[Tensor, ...], row: int = number) -> None:
            held[row] = args[0].detach().reshape(-1).numpy().view(np.uint32)

        handle = engine.model.get_submodule(name).register_forward_pre_hook(look)
        engine.model(x[None])
        handle.remove()
    return held


def test_words_are_those_of_each_input_by_itself(engine):
    assert engine.batch == 1
    names = [site.name for site in engine.space.sites if site.name.endswith(":input") and "." not in site.name]
    found = golden_words(engine.model, engine.data, engine.space.select(names), batch=engine.batch)
    for name in {"first:input", "second:input", "layer:input"} & set(names):
        np.testing.assert_array_equal(found[name], one_by_one(engine, name.removesuffix(":input")))


@pytest.mark.slow
def test_factors_of_sites_that_few_inputs_reach_are_those_of_enumeration(engine):
    """Flips where nothing comes by are masked, and count."""
    from torchfault.campaign import Campaign
    from torchfault.sampling import Exhaustive

    found = factors(run(vulnerability(engine, weights=None, neurons=None, audit=1.0)), by="channel")
    truth = run(Campaign(engine, vulnerability(engine).space, sampler=Exhaustive())).table("channel")
    value = dict(zip(truth["key"], truth["value"], strict=True))
    for row in found.itertuples():
        assert row.value == pytest.approx(value[f"{row.site}[{row.channel}]"], abs=1e-12)
