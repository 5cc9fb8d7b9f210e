"""Fault-aware training by Lightning and by Hugging Face's trainer: what a loop by hand does, also after a resume."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from torchfault.data import Data
from torchfault.hardening import FaultDraws, FaultySteps, Refreshed
from torchfault.model.discover import find
from torchfault.sampling import Uniform

lightning = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from torchfault.hardening import huggingface  # noqa: E402
from torchfault.hardening import lightning as with_lightning  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of Lightning, about workers and loggers
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
STEPS, BATCH = 12, 10


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        self.fails_at = -1

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        if batch_idx == self.fails_at:
            raise RuntimeError("no more")
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Rows(torch.utils.data.Dataset):
    """Token numbers, and a label that they tell."""

    def __init__(self):
        self.tokens = torch.randint(0, 32, (STEPS * BATCH, 5), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index, 0] % 3}


@pytest.fixture
def images():
    inputs = torch.randn(STEPS * BATCH, 6, generator=torch.Generator().manual_seed(0))
    return Data(inputs, inputs[:, :4].argmax(1))


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Net()


@pytest.fixture
def bert():
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    rest = {"vocab_size": 32, "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **rest))


def draws_of(model, data, *, pool=None):
    space = find(copy.deepcopy(model).eval(), data).space.select(
        ["*.weight", "*:output"], types=["Linear"], bits=range(20, 31)
    )
    return FaultDraws(space, share=0.7, sampler=Uniform(faults=2), pool=pool, seed=3)


def largest(space):
    """Return a search for bit 30 of the largest weight of the first site: another one as training goes on."""

    def search(model):
        site = space.sites[0]
        held = model.get_parameter(site.name).detach().abs().flatten()
        return space.number(np.zeros(3, dtype=np.int64), held.topk(3).indices.numpy(), np.full(3, 25))

    return search


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def by_hand(model, data, draws, *, gradient, losses, optimizer, accumulate=1, mean=True):
    """Train a copy by a loop; *losses* tells the loss of the model on the n-th batch, whose *mean* or sum counts."""
    twin = copy.deepcopy(model).train()
    optimizer, steps = optimizer(twin), FaultySteps(twin, data, draws, gradient=gradient)
    for step in range(STEPS // accumulate):
        optimizer.zero_grad()
        for part in range(step * accumulate, (step + 1) * accumulate):
            steps.begin(step)
            loss = losses(twin, part) / (accumulate if mean else 1)
            steps.computed(loss)
            loss.backward()
            steps.end()
        if steps.bound(twin.parameters()):
            optimizer.step()
    return twin


def fitted(net, images, callback, *, folder, epochs=1, resume=None, accumulate=1):
    twin = copy.deepcopy(net)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        callbacks=[callback],
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer.fit(twin, DataLoader(TensorDataset(images.inputs, images.labels), batch_size=BATCH), ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return twin


@pytest.mark.parametrize("gradient", ["faulty", "clean"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_trains_as_a_loop_by_hand(net, images, tmp_path, gradient, accumulate):
    draws = draws_of(net, images)

    def loss(model, part):
        rows = slice(part * BATCH, (part + 1) * BATCH)
        return F.cross_entropy(model(images.inputs[rows]), images.labels[rows])

    sgd = lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # noqa: E731
    options = {"gradient": gradient, "losses": loss, "optimizer": sgd, "accumulate": accumulate}
    expected = by_hand(net, images, draws, **options)
    callback = with_lightning.FaultTraining(draws, images, gradient=gradient)
    found = fitted(net, images, callback, folder=tmp_path, accumulate=accumulate)
    assert same(found, expected)
    assert not same(found, by_hand(net, images, None, **options))


def test_lightning_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(net, images, tmp_path):
    space = draws_of(net, images).space
    draws = FaultDraws(space, pool=Refreshed(largest(space), every=5), seed=3)
    whole = fitted(net, images, with_lightning.FaultTraining(draws, images), folder=tmp_path, epochs=2)
    fitted(net, images, with_lightning.FaultTraining(draws, images), folder=tmp_path)
    held = torch.load(tmp_path / "1.ckpt", weights_only=True)["callbacks"]["FaultTraining"]
    assert held["period"] == 2  # in the middle of steps 10 to 14, which share a pool
    callback = with_lightning.FaultTraining(draws, images)
    rest = fitted(net, images, callback, folder=tmp_path, epochs=2, resume=tmp_path / "1.ckpt")
    assert same(whole, rest)
    assert callback.state_dict()["period"] == 4


def test_lightning_leaves_no_fault_behind_an_exception(net, images):
    draws = FaultDraws(draws_of(net, images).space.select("*.weight"), faults=5)
    net.fails_at = 0
    plain, twin = copy.deepcopy(net), net
    with pytest.raises(RuntimeError, match="no more"):
        lightning.Trainer(
            max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[with_lightning.FaultTraining(draws, images)],
        ).fit(twin, DataLoader(TensorDataset(images.inputs, images.labels), batch_size=BATCH))  # fmt: skip
    assert same(plain, twin)


def trained(bert, callback, *, folder, steps=STEPS, resume=None, accumulate=1):
    twin = copy.deepcopy(bert)
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS // accumulate,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        learning_rate=0.05,
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="steps",
        save_steps=8,
    )
    callbacks = [callback] if steps == STEPS else [callback, _Stop(steps)]
    trainer = transformers.Trainer(twin, args, train_dataset=Rows(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return twin


class _Stop(transformers.TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **others):  # noqa: ARG002
        control.should_training_stop = state.global_step >= self.steps


@pytest.mark.parametrize("gradient", ["faulty", "clean"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_hugging_face_trains_as_a_loop_by_hand(bert, tmp_path, gradient, accumulate):
    rows = Rows()
    example = Data({"input_ids": rows.tokens[:4]})
    draws = draws_of(bert, example)

    def loss(model, part):
        tokens = rows.tokens[part * BATCH : (part + 1) * BATCH]
        return model(input_ids=tokens, labels=tokens[:, 0] % 3).loss

    sgd = lambda model: torch.optim.SGD(model.parameters(), lr=0.05)  # noqa: E731
    options = {"gradient": gradient, "losses": loss, "optimizer": sgd, "accumulate": accumulate, "mean": False}
    expected = by_hand(bert, example, draws, **options)
    callback = huggingface.FaultTraining(draws, example, gradient=gradient)
    assert same(trained(bert, callback, folder=tmp_path, accumulate=accumulate), expected)
    assert not same(expected, by_hand(bert, example, None, **options))


def test_hugging_face_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(bert, tmp_path):
    example = Data({"input_ids": Rows().tokens[:4]})
    space = draws_of(bert, example).space
    draws = FaultDraws(space, pool=Refreshed(largest(space), every=5), seed=3)
    whole = trained(bert, huggingface.FaultTraining(draws, example), folder=tmp_path / "whole")
    trained(bert, huggingface.FaultTraining(draws, example), folder=tmp_path / "half", steps=8)
    again, place = huggingface.FaultTraining(draws, example), str(tmp_path / "half" / "checkpoint-8")
    assert same(whole, trained(bert, again, folder=tmp_path / "half", resume=place))
    assert again.state()["attributes"]["period"] == 2


def test_hugging_face_puts_words_right_after_an_exception(bert, tmp_path):
    example = Data({"input_ids": Rows().tokens[:4]})
    draws = FaultDraws(draws_of(bert, example).space.select("*.weight"), faults=5)
    callback = huggingface.FaultTraining(draws, example)

    def stop(*_):
        raise RuntimeError("no more")

    before = [parameter.clone() for parameter in bert.parameters()]
    struck = {}
    original = callback.on_step_begin

    def begin(args, state, control, **others):
        original(args, state, control, **others)
        struck["model"] = others["model"]
        others["model"].classifier.register_forward_hook(stop)

    callback.on_step_begin = begin
    with pytest.raises(RuntimeError, match="no more"):
        trained(bert, callback, folder=tmp_path)
    now = list(struck["model"].parameters())
    assert not all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    callback.close()
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
