"""Models that do not run as a plain chain of layers: by values, on one input alone, changing what they were given."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchfault as tf
from tests.support.agreement import assert_agree, collect, random_trials
from tests.support.reference import reference
from torchfault.data import Data, leaves
from torchfault.errors import ModelError, SpaceError
from torchfault.model.conduct import Conduct, conduct_of
from torchfault.model.discover import find
from torchfault.space import Fault


class Switch(nn.Module):
    """One of two layers, by the mean of a hidden one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        return self.a(h) if h.mean() > 0.4 else self.b(h)


class EarlyExit(nn.Module):
    """Three heads behind three layers; the first that is sure answers. Only for one input at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = F.gelu(layer(x))
            scores = head(x)
            if scores.softmax(1).amax(1) > 0.45:
                return scores
        return scores


class Halting(nn.Module):
    """A layer that is repeated as often as the input says."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 + int(x.abs().sum().nan_to_num(0, 9, 9)) % 3):
            x = torch.tanh(self.step(x))
        return self.head(x)


PATHS = {"switch": Switch, "early exit": EarlyExit, "halting": Halting}


def network(name: str) -> tuple[nn.Module, Data]:
    torch.manual_seed(3)
    return PATHS[name]().eval(), Data(torch.randn(12, 6))


@pytest.mark.parametrize("name", PATHS)
def test_a_site_that_an_input_does_not_reach_is_masked_on_it(name: str) -> None:
    model, data = network(name)
    engine = tf.Engine(model, data)
    assert engine.executor == "hooks"
    known = {"switch": "b:output", "early exit": "heads.2:output", "halting": "step@2:output"}
    assert known[name] in engine.space.names
    trials = random_trials(engine.space, len(data), 250, faults=2)
    assert_agree(collect(engine, trials), leaves(reference(model, data, trials, reached=False)))


def test_the_sites_of_all_paths_stand_in_an_order_that_fits_each() -> None:
    model, data = network("early exit")
    names = [name for name in tf.Engine(model, data).space.names if name.endswith(":output") and "heads" in name]
    assert names == ["heads.0:output", "heads.1:output", "heads.2:output"]


def test_a_campaign_on_activations_ends_where_paths_differ() -> None:
    model, data = network("switch")
    engine = tf.Engine(model, data)
    found = tf.run(tf.Campaign(engine, engine.space.select("b:*"), stop=tf.MaxTrials(100)))
    assert 0 < found.estimate().value < 1


def test_a_monitor_looks_on_where_paths_differ() -> None:
    model, data = network("switch")
    engine = tf.Engine(model, data)
    monitor = tf.Monitor(engine.space)
    trials = random_trials(engine.space, len(data), 40)
    for _ in engine.run(trials, monitor=monitor):
        pass
    table = monitor.table().set_index("site")
    assert table.lanes.tolist() == [40] * len(table)
    assert table.loc["stem:output", "changed"] > 0


class Alone(nn.Module):
    """A head that squeezes everything away but the classes, and gives them back their row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)).view(4)).unsqueeze(0)


def test_a_model_for_one_input_alone_runs_lane_by_lane() -> None:
    torch.manual_seed(0)
    model, data = Alone().eval(), Data(torch.randn(5, 1, 6, 6))
    assert conduct_of(model, data.inputs) == Conduct(alone=True)
    engine = tf.Engine(model, data)
    assert engine.space.site("conv:output").shape == (4, 4, 4)
    trials = random_trials(engine.space, len(data), 120)
    assert_agree(collect(engine, trials), leaves(reference(model, data, trials)))


LAZY = {
    "0.weight": lambda: nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3)),
    "1.running_mean": lambda: nn.Sequential(nn.Linear(6, 6), nn.LazyBatchNorm1d(affine=False)),
    "0.0.weight": lambda: nn.Sequential(nn.Sequential(nn.LazyLinear(4, bias=False)), nn.LazyLinear(3)),
}


@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_module_is_told_and_left_as_it_was(name: str) -> None:
    model, data = LAZY[name]().eval(), Data(torch.randn(5, 6))
    for look in (
        lambda: tf.Engine(model, data),
        lambda: tf.Engine(model, data, executor="hooks"),
        lambda: find(model, data),
    ):
        with pytest.raises(ModelError, match=f"'{name}' has no shape yet; run the model once"):
            look()
    assert model(data.inputs).shape[0] == 5
    assert tf.Engine(model, data).space.names


class Renormed(nn.Module):
    """Rows of a table with a largest norm, which reading them brings about."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(9, 4, max_norm=0.5, mode="sum")
        self.more, self.fc = nn.Embedding(9, 4, max_norm=0.7), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.embed(ids) + self.more(ids).mean(1))


@pytest.mark.parametrize("kind", ["auto", "hooks"])
def test_weights_that_reading_renormalises_come_back(kind: str) -> None:
    torch.manual_seed(0)
    model, data = Renormed().eval(), Data(torch.randint(0, 9, (6, 3)))
    twin = copy.deepcopy(model)
    engine = tf.Engine(model, data, executor=kind)
    trials = random_trials(engine.space.select("*.weight"), len(data), 80)
    faulty = collect(engine, trials)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    expected = []
    for i in range(len(trials)):
        one = trials.take(torch.tensor([i]).numpy())
        expected += leaves(reference(copy.deepcopy(twin), data, one))
    assert_agree(faulty, [torch.cat(expected)])


class Decaying(nn.Module):
    """A weight that shrinks with every run."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.fc.weight.data *= 0.99
        return self.fc(x)


class Functional(nn.Module):
    """A renormalising table that no module owns."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4) * 3)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table, max_norm=1.0).sum(1)


@pytest.mark.parametrize("kind", ["auto", "hooks"])
@pytest.mark.parametrize(
    ("build", "name", "inputs"),
    [(Decaying, "fc.weight", torch.randn(4, 4)), (Functional, "table", torch.randint(0, 9, (4, 3)))],
)
def test_a_model_that_changes_its_own_weights_is_told(
    build: type[nn.Module], name: str, inputs: Tensor, kind: str
) -> None:
    with pytest.raises(ModelError, match=f"changes its own '{name}' whenever it runs"):
        tf.Engine(build().eval(), Data(inputs), executor=kind)


class Shared(nn.Module):
    """Two parameters in one memory: a table, and the layer that reads it backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.d = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.d.weight.data = self.e.weight.data

    def forward(self, ids: Tensor) -> Tensor:
        return self.d(self.e(ids).mean(1))


@pytest.mark.parametrize("kind", ["graph", "hooks"])
@pytest.mark.parametrize("name", ["d.weight", "e.weight"])
def test_one_memory_under_two_names_is_struck_for_all_its_readers(kind: str, name: str) -> None:
    torch.manual_seed(0)
    model, data = Shared().eval(), Data(torch.randint(0, 9, (6, 3)))
    engine = tf.Engine(model, data, executor=kind)
    trials = random_trials(engine.space.select(name), len(data), 60)
    expected = []
    for i in range(len(trials)):
        one = trials.take(torch.tensor([i]).numpy())
        expected += leaves(reference(model, data, one))
    assert_agree(collect(engine, trials), [torch.cat(expected)])


class Next(nn.Module):
    """Scores of the next token, for every token of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.m, self.h = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.h(torch.tanh(self.m(self.e(ids))))


def generated(model: nn.Module, ids: Tensor, seen: list[Tensor]) -> Tensor:
    """Return *ids* with three tokens more: the sequence first, then one token at a time; *seen* gets all scores."""
    given = ids
    for _ in range(3):
        seen.append(model(given))
        given = seen[-1][:, -1:].argmax(-1)
        ids = torch.cat((ids, given), 1)
    return ids


@pytest.mark.parametrize(
    ("name", "element", "call"),
    [
        ("m:output", (2, 3), 0),
        ("m:output", 17, 0),
        ("m@2:output", (0, 3), 2),
        ("m@1:input", 5, 1),
        ("tanh@2:output", 3, 2),
    ],
)
def test_one_pass_of_many_is_struck(name: str, element: int | tuple[int, int], call: int) -> None:
    torch.manual_seed(0)
    model, ids = Next().eval(), torch.tensor([[3, 4, 5]])
    golden: list[Tensor] = []
    faulty: list[Tensor] = []
    with torch.no_grad():
        generated(model, ids, golden)
        with tf.inject(model, Fault(name, element, bit=30)):
            generated(model, ids, faulty)
    assert [torch.equal(a, b) for a, b in zip(golden[:call], faulty, strict=False)] == [True] * call
    assert not torch.equal(golden[call], faulty[call])


def test_every_pass_is_struck_where_every_one_has_the_element() -> None:
    torch.manual_seed(0)
    model = Next().eval()
    golden, faulty = model(torch.tensor([[1, 2]])), []
    with torch.no_grad(), tf.inject(model, Fault("m:output", (0, 3), bit=30)):
        for _ in range(2):
            faulty.append(model(torch.tensor([[1, 2]])))
    assert not torch.equal(golden, faulty[0])
    assert torch.equal(faulty[0], faulty[1])


def test_an_element_that_no_pass_has_is_told() -> None:
    model = Next().eval()
    with (
        torch.no_grad(),
        pytest.raises(SpaceError, match=r"element \(7, 0\) is outside"),
        tf.inject(model, Fault("m:output", (7, 0), bit=30)),
    ):
        generated(model, torch.tensor([[3, 4, 5]]), [])


class Inner(nn.Module):
    """Operations inside a module of its own, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x) * 2) + x


class Outer(nn.Module):
    """A nest of modules with children, and operations at each height."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(Inner(), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(x)) - 1).abs()


@pytest.mark.parametrize("kind", ["graph", "hooks"])
def test_an_operation_belongs_to_the_module_in_whose_forward_it_is(kind: str) -> None:
    torch.manual_seed(0)
    engine = tf.Engine(Outer().eval(), Data(torch.randn(4, 4)), executor=kind)
    modules = {site.name.partition(":")[0]: site.module for site in engine.space.sites if site.kind == "output"}
    assert modules == {
        "block.0.fc": "block.0.fc", "block.0.mul": "block.0", "block.0.tanh": "block.0", "block.0.add": "block.0",
        "block.1": "block.1", "block.0.fc@1": "block.0.fc", "block.0@1.mul": "block.0", "block.0@1.tanh": "block.0",
        "block.0@1.add": "block.0", "block.1@1": "block.1", "sub": "", "head": "head", "abs": "",
    }  # fmt: skip


class Guarded(nn.Module):
    """Decides by values, and counts how many inputs it has seen in all."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.layer, self.level = nn.Linear(6, 3), level

    def forward(self, x: Tensor) -> Tensor:
        Guarded.seen += len(x)
        h = self.layer(x)
        return h if bool(h[0, 0] > self.level) else torch.relu(h)

    seen = 0


@pytest.mark.parametrize(("level", "relu"), [(-1e9, False), (1e9, True), (0.0, True)])
def test_inputs_that_take_a_known_path_are_looked_at_once(level, relu):
    torch.manual_seed(0)
    counts = []
    for inputs in (1, 16):
        Guarded.seen = 0
        found = find(Guarded(level).eval(), Data(torch.randn(16, 6)[:inputs]))
        assert ("relu:output" in found.space.names) == relu or inputs == 1
        counts.append(Guarded.seen)
    # One more run each for 15 more inputs, and four more inputs for a second path.
    assert counts[1] - counts[0] <= 15 + 4 * (level == 0)
