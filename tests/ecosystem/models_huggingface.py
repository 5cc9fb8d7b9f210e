"""Hugging Face models with random weights, each built from a configuration: text, key-value cache, boxes, masks."""

import pytest
import torch
from torch import Tensor, nn

import torchfault as tf
from tests.ecosystem.common import agrees, images, tokens
from tests.support.agreement import collect, random_trials
from torchfault.adapters.generation import at_step, greedy, next_tokens
from torchfault.criteria import BoxChange, PerplexityRise, perplexity
from torchfault.data import Data
from torchfault.errors import ModelError

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def llama() -> nn.Module:
    """Return a Llama of two layers with grouped queries."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes, **heads)).eval()


class NextToken(nn.Module):
    """One step of generation: a token and the key-value cache (rows, layers, heads, steps, width) to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache = transformers.DynamicCache(zip(keys.unbind(1), values.unbind(1), strict=True))
        return self.model(ids, past_key_values=cache, use_cache=True).logits[:, -1]


class Greedy(nn.Module):
    """Greedy generation of a few tokens: the logits of each step (rows, steps, words)."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, ids: Tensor) -> Tensor:
        cache, given, found = transformers.DynamicCache(), ids, []
        for _ in range(self.steps):
            result = self.model(given, past_key_values=cache, use_cache=True)
            cache, given = result.past_key_values, result.logits[:, -1:].argmax(-1)
            found.append(result.logits[:, -1])
        return torch.stack(found, 1)


def test_language_model_by_perplexity_and_tokens() -> None:
    ids = tokens(4, 6)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, use_cache=False, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip
    data = Data({"input_ids": ids}, ids)
    engine = agrees(model, data)
    assert 10 < perplexity(engine.golden(), ids, shift=True) < 200
    space = engine.space.select("transformer.wte.weight", bits=[30])
    for criterion in (PerplexityRise(1.1, shift=True), tf.Top1Change(axis=-1)):
        campaign = tf.Campaign(engine, space, criterion=criterion, stop=tf.MaxTrials(200))
        assert 0 < tf.run(campaign).estimate().value < 1


def test_attention_scores_are_struck() -> None:
    engine = agrees(llama(), Data({"input_ids": tokens(4, 6), "use_cache": False}))
    assert any("scaled_dot_product_attention:input" in name for name in engine.space.names)


def test_key_value_cache_is_struck_where_it_is_stored() -> None:
    model, ids = llama(), tokens(4, 6)
    with torch.no_grad():
        layers = model(ids, use_cache=True).past_key_values.layers
    keys, values = torch.stack([x.keys for x in layers], 1), torch.stack([x.values for x in layers], 1)
    engine = agrees(NextToken(model), Data({"ids": ids[:, :1], "keys": keys, "values": values}))
    assert engine.space.site("keys:data").shape == (2, 1, 6, 8)
    cached = tf.Campaign(engine, engine.space.select("*:data", bits=[30]), stop=tf.MaxTrials(100))
    assert tf.run(cached).estimate().trials == 100


def test_a_fault_in_the_cache_reaches_later_tokens() -> None:
    engine = agrees(Greedy(llama(), 3), Data({"ids": tokens(4, 6)}))
    assert any("self_attn@2.cat:input" in name for name in engine.space.names)


def gpt2() -> nn.Module:
    """Return a GPT-2 of two layers."""
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends)).eval()


@pytest.mark.parametrize("build", [gpt2, llama])
def test_greedy_generation_from_padded_texts_is_that_of_the_library(build) -> None:
    model, ids = build(), tokens(4, 6) % 49 + 1
    mask = (torch.arange(6) >= torch.tensor([0, 2, 4, 1])[:, None]).long()
    given = {"input_ids": ids * mask, "attention_mask": mask}
    generated = greedy(model, tokens=3)
    theirs = model.generate(**given, do_sample=False, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert torch.equal(generated(**given)["sequences"], theirs[:, 6:])
    engine = agrees(generated, Data(given))
    assert len({len(at_step(engine.space, step).sites) for step in (1, 2)}) == 1
    later = random_trials(at_step(engine.space, 2), 4, 40)
    assert torch.equal(collect(engine, later)[0][:, :2], engine.golden()["sequences"][later.inputs][:, :2])


def test_perplexity_of_padded_texts_is_that_of_each_alone() -> None:
    model, ids = gpt2(), tokens(3, 6)
    mask = (torch.arange(6) >= torch.tensor([0, 2, 3])[:, None]).long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    with torch.no_grad():
        wholes = model(**given, use_cache=False).logits
        losses = [model(row[m > 0][None], labels=row[m > 0][None]).loss for row, m in zip(ids, mask, strict=True)]
    counts = mask.sum(1) - 1
    expected = float(((torch.stack(losses) * counts).sum() / counts.sum()).exp())
    assert perplexity(wholes, next_tokens(ids, mask), shift=True) == pytest.approx(expected, rel=1e-5)


def test_text_classifier() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **sizes)
    ids = tokens(4, 6)
    agrees(transformers.BertForSequenceClassification(config), Data({"input_ids": ids, "attention_mask": ids >= 0}))


def test_detector_by_its_boxes() -> None:
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[32, 32],
        patch_size=8, num_detection_tokens=5, num_labels=3,
    )  # fmt: skip
    engine = agrees(transformers.YolosForObjectDetection(config), Data({"pixel_values": images(3, 32)}))
    criterion = BoxChange(boxes="pred_boxes", scores="logits", form="cxcywh", background=-1)
    campaign = tf.Campaign(
        engine, engine.space.select("*.weight", bits=[30]), criterion=criterion, stop=tf.MaxTrials(200)
    )
    assert 0 < tf.run(campaign).estimate().value < 1


def test_segmenter_by_its_pixels() -> None:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3],
        strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
    )  # fmt: skip
    engine = agrees(transformers.SegformerForSemanticSegmentation(config), Data({"pixel_values": images(3, 16)}))
    criterion = tf.Top1Change(axis=1, share=0.1)
    campaign = tf.Campaign(engine, engine.space.select(bits=[30]), criterion=criterion, stop=tf.MaxTrials(100))
    assert tf.run(campaign).estimate().trials == 100


def test_a_key_value_cache_among_the_outputs_is_told_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"it gives a key-value cache; put use_cache=False among the inputs, or set"):
        tf.Engine(llama(), Data({"input_ids": tokens(4, 6)}), executor="graph")
    fallen = tf.Engine(llama(), Data({"input_ids": tokens(4, 6)}))
    assert fallen.executor == "hooks"
    assert "use_cache=False" in str(fallen.fallback)
