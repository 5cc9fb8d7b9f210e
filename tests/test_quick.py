"""One call for a model and data: words of the configuration stand for values, and what does not fit is told."""

import re

import pytest
import torch
from torch import nn

from torchfault import Campaign, Data, Engine, MaxTrials, run
from torchfault.criteria import Misclassified, TopK
from torchfault.errors import CampaignError, ConfigError, CriterionError, FaultError
from torchfault.faults import Burst
from torchfault.sampling import Uniform


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    inputs = torch.randn(20, 6)
    return Engine(model, Data(inputs, model(inputs).argmax(1)), executor="hooks")


def failed(results):
    return results.columns.failed.tolist()


def test_words_mean_values(engine):
    text = {"fault": "burst:3", "sampler": "uniform:2", "criterion": "topk:2", "verdicts": {"wrong": "misclassified"}}
    values = {"fault": Burst(3), "sampler": Uniform(2), "criterion": TopK(2), "verdicts": {"wrong": Misclassified()}}
    words = run(engine, kinds="weight", trials=300, seed=5, **text)
    assert failed(words) == failed(run(engine, kinds="weight", stop=MaxTrials(300), seed=5, **values))
    assert words.columns.flag("wrong").any()
    assert any(failed(words))
    same = run(engine.model, (engine.data.inputs, engine.data.labels), kinds="weight", trials=300, seed=5, **text)
    assert failed(same) == failed(words)


def test_pools_by_a_word_find_what_single_lanes_find(engine):
    alone = run(engine, kinds="weight", trials=400, seed=1)
    assert failed(run(engine, kinds="weight", trials=400, seed=1, resolver="pooled:8,audit=1.0")) == failed(alone)
    assert len(alone) == 400


def test_a_metric_needs_no_criterion_that_fits(engine):
    assert run(engine, metric="accuracy", trials=20).columns.values is not None
    one, data = nn.Linear(6, 1), (torch.randn(5, 6), torch.tensor([0, 1, 1, 0, 1]))
    assert len(run(one, data, metric="accuracy:threshold=0", trials=20)) == 20
    with pytest.raises(CriterionError, match="one logit"):
        run(one, data, metric="accuracy", trials=20)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "topk:9"}, CriterionError, "9"),
        ({"criterion": "tokens"}, CriterionError, "tokens are whole numbers"),
        ({"verdicts": {"odd": "tokens"}}, CriterionError, "tokens are whole numbers"),
        ({"fault": "burts:3"}, FaultError, "did you mean 'burst'"),
        ({"sampler": "unifrom"}, ConfigError, "did you mean 'uniform'"),
        ({"resolver": ["pooled:1"]}, ConfigError, "at least 2"),
        ({"metric": "accuracy", "criterion": "topk:2"}, CampaignError, "criterion beside it would have no say"),
        ({"metric": "accuracy", "verdicts": {"wrong": "misclassified"}}, CampaignError, "verdicts beside it"),
        ({"metric": "accuracy", "inputs_per_fault": 4}, CampaignError, "inputs_per_fault beside it"),
        ({"stop": "soon"}, CampaignError, "a number of trials or a rule"),
        ({"data": torch.zeros(3, 6)}, CampaignError, "an engine has its own data"),
    ],
)
def test_what_does_not_fit_is_told(engine, options, error, message):
    with pytest.raises(error, match=message):
        run(engine, **options)


def test_a_campaign_takes_no_other_options(engine):
    campaign = Campaign(engine, engine.space.select(kinds="bias"), stop=MaxTrials(50))
    assert len(run(campaign)) == 50
    with pytest.raises(CampaignError, match="got seed beside it"):
        run(campaign, seed=3)
    with pytest.raises(CampaignError, match=re.escape("pass a torch.nn.Module")):
        run("model")
    with pytest.raises(CampaignError, match="a model runs on data, got none"):
        run(engine.model)
