"""Greedy generation against a loop without cache or padding, its steps struck apart, and labels of padded texts."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchfault as tf
from tests.support.agreement import assert_reference, collect, random_trials
from tests.support.language import LENGTHS, TOKENS, language, padded, texts
from torchfault.adapters.generation import at_step, greedy, next_tokens
from torchfault.criteria import PerplexityRise, TokenChange, perplexity
from torchfault.data import Data, rows
from torchfault.engine import Engine
from torchfault.errors import ModelError, SpaceError
from torchfault.model.states import find_cells


@pytest.fixture(name="language")
def _language() -> nn.Module:
    return language()


def by_hand(model: nn.Module, tokens: int) -> list[list[int]]:
    """Return how each text goes on, read anew as a whole for each token."""
    found = []
    for text in texts():
        whole = text[None]
        for _ in range(tokens):
            with torch.no_grad():
                whole = torch.cat([whole, model(whole)["logits"][:, -1:].argmax(-1)], 1)
        found.append(whole[0, len(text) :].tolist())
    return found


def test_padded_texts_go_on_as_each_does_alone(language):
    expected = by_hand(language, TOKENS)
    assert len({tuple(row) for row in expected}) == len(LENGTHS)
    assert greedy(language, tokens=TOKENS)(**padded(left=True))["sequences"].tolist() == expected
    alone = greedy(language, tokens=TOKENS)(texts()[0][None])["sequences"]
    assert alone.tolist() == expected[:1]


@pytest.mark.parametrize("row", [0, 2])
def test_behind_the_end_there_is_padding(language, row):
    expected = by_hand(language, TOKENS)
    end = expected[row][1]
    found = greedy(language, tokens=TOKENS, end=end, pad=0)(**padded(left=True))["sequences"].tolist()
    for mine, plain in zip(found, expected, strict=True):
        stop = plain.index(end) + 1 if end in plain else TOKENS
        assert mine == plain[:stop] + [0] * (TOKENS - stop)


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_every_step_agrees_with_the_reference(language, executor):
    model, data = greedy(language, tokens=TOKENS), Data(padded(left=True))
    engine = Engine(model, data, executor=executor)
    assert_reference(engine, model, data, random_trials(engine.space, len(data), 150, seed=1))


def test_a_fault_at_a_step_changes_what_comes_behind_and_pays_for_no_more(language):
    model, data = greedy(language, tokens=TOKENS), Data(padded(left=True))
    engine = Engine(model, data, executor="graph")
    golden, costs, changed = engine.golden()["sequences"], [], []
    for step in range(TOKENS):
        space = at_step(engine.space, step).select(bits=[30])
        assert len(space.sites) > 4
        trials = random_trials(space, len(data), 120, seed=step)
        with FlopCounterMode(display=False) as counter:
            sequences = collect(engine, trials)[0]
        differs = sequences != golden[torch.from_numpy(trials.inputs)]
        assert not differs[:, :step].any()
        changed.append(bool(differs[:, step:].any()))
        costs.append(counter.get_total_flops())
    assert all(changed)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[1] / 2


def test_weights_and_activations_are_campaigns_of_tokens(language):
    engine = Engine(greedy(language, tokens=TOKENS), Data(padded(left=True)))
    for space in (engine.space.select(kinds=["weight"], bits=[30]), at_step(engine.space, 2).select(bits=[30])):
        campaign = tf.Campaign(engine, space, criterion=TokenChange(), stop=tf.MaxTrials(200))
        assert 0 < tf.run(campaign).estimate().value < 1


def test_a_step_that_there_is_not_is_told(language):
    engine = Engine(greedy(language, tokens=2), Data(padded(left=True)))
    with pytest.raises(SpaceError, match="steps 0 to 1, got 2"):
        at_step(engine.space, 2)
    with pytest.raises(ModelError, match="1 token or more, got 0"):
        greedy(language, tokens=0)


def test_a_model_without_a_cache_is_told():
    class Forgetful(nn.Module):
        def forward(self, input_ids, attention_mask, past_key_values, use_cache):
            del attention_mask, past_key_values, use_cache
            return {"logits": nn.functional.one_hot(input_ids, 5).float()}

    with pytest.raises(ModelError, match="gave none; take a model that keeps one"):
        greedy(Forgetful(), tokens=2)(torch.ones(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("left", [False, True])
def test_perplexity_of_padded_texts_is_that_of_each_alone(language, left):
    surprise, count = 0.0, 0
    for text in texts():
        with torch.no_grad():
            chances = language(text[None])["logits"][0].double().log_softmax(-1)
        surprise -= float(chances[torch.arange(len(text) - 1), text[1:]].sum())
        count += len(text) - 1
    given = padded(left=left)
    labels = next_tokens(**given)
    assert int((labels >= 0).sum()) == count
    engine = Engine(language, Data(given, labels))
    assert perplexity(engine.golden(), labels, shift=True) == pytest.approx(math.exp(surprise / count), rel=1e-5)
    campaign = tf.Campaign(
        engine,
        engine.space.select("head.weight", bits=[30]),
        criterion=PerplexityRise(1.05, shift=True),
        stop=tf.MaxTrials(200),
    )
    assert 0 < tf.run(campaign).estimate().value < 1


def test_padding_has_no_part_in_what_a_fault_does(language):
    given = padded(left=True)
    other = {**given, "input_ids": given["input_ids"].where(given["attention_mask"] > 0, 7)}
    outcomes = []
    for inputs in (given, other):
        engine = Engine(greedy(language, tokens=TOKENS), Data(inputs), executor="graph")
        trials = random_trials(engine.space.select(kinds=["weight"], bits=[29, 30]), len(LENGTHS), 80, seed=5)
        words = np.array([site.name != "embed.weight" for site in trials.sites])[trials.site]
        outcomes.append(collect(engine, trials.where(words)))
    (tokens, best), (others, scores) = outcomes
    tame = (best.isfinite() & scores.isfinite()).all(1)  # nothing times infinity is no number
    assert int(tame.sum()) > 30
    assert torch.equal(tokens[tame], others[tame])


class Stepwise(nn.Module):
    """Keeps a state of its own, and adds to the list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.zeros(1)

    def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
        self.level = self.level * 0.5 + x
        cache.append(self.level)
        return self.level


def test_states_are_looked_for_without_a_trace_in_a_cache():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.lengths = Stepwise(), []

        def forward(self, x: Tensor) -> Tensor:
            cache: list[Tensor] = []
            for _ in range(3):
                last = self.step(x, cache)
            self.lengths.append(len(cache))
            return last

    model = Loop()
    assert [cell.path for cell in find_cells(model, rows(torch.ones(2, 3), slice(0, 1)))] == ["step"]
    assert set(model.lengths) <= {3}
