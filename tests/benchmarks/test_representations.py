"""The benchmark of representations: each of its parts on networks of a few words, and the exact shape of its JSON."""

import json
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from torchfault.adapters.represent import represent
from torchfault.data import Data
from torchfault.model.discover import find

pytest.importorskip("torch.ao.quantization")

from benchmarks import error_rates, overhead, representations
from benchmarks.representations import ACTIVATIONS, CURVES, INDICES, REPRESENTATIONS, STATIC, WEIGHTS, Representation

# Torch warns that its own quantisation will go one day.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Images(nn.Module):
    """Two layers for images (N, 3, 32, 32), the first of which gives 2,048 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def network() -> tuple[nn.Module, Data]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model, inputs = Images().eval(), torch.randn(12, 3, 32, 32)
    return model, Data(inputs, model(inputs).argmax(1))


def sparse() -> tuple[nn.Module, Data]:
    model, data = network()
    return represent(model, {"fc.weight": "csr"}), data


def static() -> tuple[nn.Module, Data]:
    model, data = network()
    return representations.quantised(model, data.inputs), data


SMALL = {
    "float32": Representation(network, {"weights": WEIGHTS, "activations": ACTIVATIONS}, struck=CURVES, base=network),
    "sparse": Representation(sparse, {"weights": WEIGHTS, "indices": INDICES}, struck=("weights",), base=network),
    "int8": Representation(static, STATIC, struck=CURVES, base=None),
    "absent": Representation(network, {"weights": WEIGHTS}, needs=("no_such_package",)),
}


@pytest.fixture
def small(monkeypatch):
    """Let the benchmark run on small networks, under few concurrent faults and rates."""
    plain = representations.overhead_of
    models = {
        "float32": (lambda _: network()[0], ACTIVATIONS),
        "int8": (lambda images: representations.quantised(network()[0], images), ACTIVATIONS),
    }
    monkeypatch.setattr(representations, "REPRESENTATIONS", SMALL)
    monkeypatch.setattr(representations, "OVERHEAD", models)
    monkeypatch.setattr(representations, "overhead_of", lambda name, **_: plain(name, 500, batch=2, repeats=2))
    monkeypatch.setattr(error_rates, "RATES", (0.0, 1e-3, 0.3, 1.0))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


OPTIONS = ["--lanes", "12", "--trials", "12", "--repeats", "2"]


@pytest.mark.usefixtures("small")
def test_json_has_the_rows_and_the_overhead_and_nothing_else(capsys):
    representations.main(["--json", *OPTIONS])
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert list(found) == ["rows", "overhead"]
    targets = [(name, target) for name, what in SMALL.items() if not what.needs for target in what.targets]
    assert [(row["representation"], row["target"]) for row in found["rows"]] == targets
    for row in found["rows"]:
        assert row["executor"] == "graph"
        counts = [row[key] for key in ("faults", "lanes_per_second", "trials", "disagreements", "detected", "ties")]
        assert all(type(value) is int for value in counts)
        assert row["ratio"] is None if row["representation"] == "int8" else row["ratio"] > 0
        assert row["trials"] == 12
        assert row["disagreements"] == 0
        assert min(row["faults"], row["lanes_per_second"]) > 0
    assert found["rows"][0]["faults"] == 32 * (2 * 27 + 2 * 4)
    assert found["rows"][3]["faults"] == 32 * (5 + 2 * 4)  # row starts and columns of fc
    assert list(found["overhead"]) == ["float32", "int8"]
    assert all(type(ratio) is float and ratio > 0 for ratio in found["overhead"].values())
    assert "absent is left out: no_such_package not installed" in printed.err


@pytest.mark.usefixtures("small")
def test_text_has_the_tables_of_the_docs_and_the_plot_is_drawn(capsys, tmp_path):
    representations.main(["--plot", str(tmp_path / "rates.png"), *OPTIONS])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "100 % of 12" in line]) == 7
    drawn = [line for line in lines if line.startswith(("| float32, ", "| sparse, ", "| int8, "))]
    assert len(drawn) == 5
    assert all(line.split("|")[2].strip() == "100.0" for line in drawn if "float32" in line)
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small")
def test_a_network_is_chosen_by_its_name(capsys):
    representations.main(["--json", "--only", "sparse", *OPTIONS])
    found = json.loads(capsys.readouterr().out)
    assert {row["representation"] for row in found["rows"]} == {"sparse"}
    assert found["overhead"] == {}


def test_disagreements_are_counted():
    def wrong(model: nn.Module, data: Data, trials: object) -> Tensor:
        scores = representations.reference(model, data, trials)
        return nn.functional.one_hot(scores.argmin(1), scores.shape[1]).float()

    what = Representation(network, {"weights": WEIGHTS}, slow=wrong, base=None)
    row = next(representations.measured("float32", what, lanes=4, trials=10))
    assert row.disagreements == 10


@pytest.mark.usefixtures("small")
def test_a_curve_starts_at_the_accuracy_and_has_intervals():
    model, data = network()
    one = error_rates.curve("float32", "weights", model, data, WEIGHTS, repeats=3)
    assert [point.rate for point in one.points] == [0.0, 1e-3, 0.3, 1.0]
    assert one.points[0].low == one.points[0].mean == one.points[0].high == 1.0
    assert all(point.low <= point.mean <= point.high for point in one.points)
    assert one.points[2].mean < 1.0
    assert one.words == 2 * 27 + 2 * 4


@pytest.mark.usefixtures("small")
def test_a_cost_is_that_of_a_pass_under_all_faults(monkeypatch):
    struck = []
    plain = overhead.cost

    def noted(model, images, trial, found, *, repeats):
        struck.append((len(images), len(trial.element), len(trial)))
        return plain(model, images, trial, found, repeats=repeats)

    monkeypatch.setattr(overhead, "cost", noted)
    assert representations.overhead_of("int8", repeats=1) > 0
    assert struck == [(2, 500, 1)]


def test_the_table_has_what_it_is_to_show():
    targets = {target for what in REPRESENTATIONS.values() for target in what.targets}
    assert {"weights", "activations", "state", "indices", "scales"} <= targets
    curves = {name for name, what in REPRESENTATIONS.items() if {"weights", "activations"} <= set(what.struck)}
    assert curves == {"float32", "int8 torch static", "80 % sparse, CSR", "spiking snnTorch"}
    assert list(representations.OVERHEAD) == ["float32", "int8 torch static", "spiking snnTorch"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_every_representation_agrees_with_its_reference(name):
    what = REPRESENTATIONS[name]
    for package in what.needs:
        pytest.importorskip(package)
    rows = list(representations.measured(name, what, lanes=8, trials=6))
    assert [row.target for row in rows] == list(what.targets)
    assert sum(row.disagreements for row in rows) == 0


@pytest.mark.slow
def test_the_sparse_network_has_lost_80_percent_of_its_weights_and_little_of_its_accuracy():
    model, data = representations.sparse("csr")
    layers = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in layers) / sum(weight.numel() for weight in layers)
    assert zeros == pytest.approx(0.8, abs=1e-3)
    assert error_rates.accuracy(model, data) > 0.75


@pytest.mark.parametrize(("border", "tie"), [(2.1, True), (2.9, False), (1.9, False)])
def test_ties_are_proven_by_the_reference_and_errors_are_not(border, tie):
    model, data = network()
    kept = represent(model, activations={"conv:output": "mxfp4"})
    with torch.no_grad():
        for parameter in kept.parameters():
            parameter.zero_()
        # Halfway between the words of 2 and 3, and below by less than sums err: some of its pixels may be either.
        kept.conv.bias[0] = 2.5 * (1 - 2.0**-23)
        kept.fc.weight[0, 0], kept.fc.bias[1] = 1.0, border
    trials = representations.random_trials(find(kept, data).space.select("fc.bias", bits=[0]), len(data), 1, seed=0)
    slow = partial(representations.reference, kept, data)
    theirs, golden = slow(trials), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    assert theirs[0, :2].tolist() == [2.0, pytest.approx(border)]
    failed = ~representations.outcomes(golden, theirs)  # of an engine that says the opposite
    found = representations.rounding_ties(slow, trials, golden, failed, torch.tensor([True]))
    assert found.tolist() == [tie]
    assert representations.rounding_ties(slow, trials, golden, failed, torch.tensor([False])).tolist() == [False]
    assert torch.equal(slow(trials), theirs)
