"""Programs and compiled modules: the module behind them is struck, or one early line says what to give instead."""

import warnings

import pytest
import torch
from torch import nn

import torchfault as tf
from torchfault.adapters.over_time import over_time
from torchfault.adapters.represent import represent
from torchfault.errors import ModelError
from torchfault.model.discover import find
from torchfault.model.wrappers import unwrapped


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def quietly(make):
    """Return what *make* gives, without what torch says about programs of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make()


def programs():
    traced = quietly(lambda: torch.jit.trace(small(), torch.randn(2, 6)))
    scripted = quietly(lambda: torch.jit.script(small()))
    return [traced, scripted, quietly(lambda: torch.jit.freeze(scripted)), nn.Sequential(nn.Linear(6, 6), scripted)]


def compiled(model):
    return quietly(lambda: torch.compile(model))


X = torch.linspace(-1, 1, 24).reshape(4, 6)
USES = {
    "engine": lambda m: tf.Engine(m, X),
    "hooks": lambda m: tf.Engine(m, X, executor="hooks"),
    "weight": lambda m: tf.inject(m, tf.Fault("0.weight", 1, bit=30)).__enter__(),
    "activation": lambda m: tf.inject(m, tf.Fault("0:output", 1, bit=30)).__enter__(),
    "find": lambda m: find(m, X),
    "represent": lambda m: represent(m, "int8"),
    "over time": lambda m: over_time(m, steps=2),
}


@pytest.mark.parametrize("use", USES)
def test_programs_are_refused_early(use):
    for program in programs():
        with pytest.raises(ModelError, match=r"is a ScriptModule, a program that cannot be struck while it runs; give"):
            USES[use](program)


def test_a_submodule_that_is_a_program_is_named():
    with pytest.raises(ModelError, match="'1' is a ScriptModule"):
        unwrapped(programs()[-1])


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_the_module_behind_a_compiled_one_is_struck(executor):
    model = small()
    fault = tf.Fault("2:input", 2, bit=30)
    engine = tf.Engine(compiled(model), (X, torch.arange(4) % 3), executor=executor)
    assert engine.space.names == tf.Engine(model, X, executor=executor).space.names
    assert torch.equal(engine.golden(), model(X))
    with tf.inject(compiled(model), fault) as struck, torch.no_grad():
        got = struck(X)
    with tf.inject(model, fault), torch.no_grad():
        assert torch.equal(got, model(X))
    assert not torch.equal(got, model(X))


@pytest.mark.parametrize("use", USES)
def test_what_is_compiled_in_place_or_inside_is_refused(use):
    inner, whole = nn.Sequential(small(), compiled(small())), small()
    quietly(whole.compile)
    for model in (inner, whole):
        with pytest.raises(ModelError, match="is compiled, and what runs is no longer its modules"):
            USES[use](model)


@pytest.mark.parametrize("given", [lambda x: x, torch.ones(2), None])
def test_what_is_no_module_is_told(given):
    with pytest.raises(ModelError, match=r"a model is a torch.nn.Module, got an object of type"):
        tf.Engine(given, X)


class Squeezed(nn.Module):
    """A head that drops the axis of the inputs where there is one."""

    def __init__(self, squeeze):
        super().__init__()
        self.head, self.squeeze = nn.Linear(6, 1), squeeze

    def forward(self, x):
        return self.squeeze(self.head(x))


@pytest.mark.parametrize("executor", ["hooks", "auto"])
@pytest.mark.parametrize("squeeze", [torch.squeeze, lambda y: y.squeeze().clone()])
def test_a_head_that_squeezes_too_much_is_told_by_both_shapes(squeeze, executor):
    with pytest.raises(
        ModelError, match=r"got shape \(3,\) for 3 inputs and \(\) for 1; keep that axis, as squeeze\(-1"
    ):
        tf.Engine(Squeezed(squeeze).eval(), X, executor=executor)


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_a_head_that_keeps_the_axis_is_taken(executor):
    engine = tf.Engine(Squeezed(lambda y: y.squeeze(-1)).eval(), X, executor=executor)
    assert engine.golden().shape == (4,)


def test_engines_take_what_is_at_hand():
    labels = torch.tensor([0, 1, 2, 0])
    dataset = torch.utils.data.TensorDataset(X, labels)
    for given in ((X, labels), (X.numpy(), labels.tolist()), dataset, torch.utils.data.DataLoader(dataset, 3)):
        data = tf.Engine(small(), given).data
        assert torch.equal(data.inputs, X)
        assert torch.equal(data.labels, labels)
    assert tf.Engine(small(), X).data.labels is None


@pytest.mark.parametrize("name", ["a:input", ":skull:", "conv@1", "a:b@2"])
@pytest.mark.parametrize("use", USES)
def test_names_that_sites_are_parted_by_are_refused(name, use):
    model = nn.Sequential(small())
    model.add_module(name, nn.Linear(3, 3))
    with pytest.raises(ModelError, match=r"has '[:@]' in its name, which parts the names of sites; rename it"):
        USES[use](model)
    model.add_module("a@b", nn.Linear(3, 3))
    del model._modules[name]
    assert unwrapped(model) is model
    model.register_parameter("scale:x", nn.Parameter(torch.ones(1)))
    with pytest.raises(ModelError, match="'scale:x' has ':' in its name"):
        unwrapped(model)
