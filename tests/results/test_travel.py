"""How far errors travel, held against a pass of the whole model for each fault, layer by layer."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from torchfault import Data, Engine, report
from torchfault.campaign import Campaign, run
from torchfault.cli import main
from torchfault.cluster import Processes
from torchfault.criteria import accuracy
from torchfault.errors import CampaignError
from torchfault.resolve import Pooled
from torchfault.results import Results, load, travel
from torchfault.sampling import Adaptive, Exhaustive, Uniform, WholeWords
from torchfault.space import FaultSpace
from torchfault.statistics import HalfWidth, MaxTrials
from torchfault.store import Store


def network() -> tuple[nn.Module, Data]:
    torch.manual_seed(3)
    layers = [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)]
    model, inputs = nn.Sequential(*layers).eval(), torch.randn(7, 6)
    inputs[:, 0] = 0.0  # what a weight there becomes nobody sees
    with torch.no_grad():
        model[2].bias -= 0.3  # the second rectifier stops some errors, too
    return model, Data(inputs)


def coarse(engine: Engine) -> FaultSpace:
    """Flips that no rounding hides."""
    return engine.space.select("0.weight", bits=[23, 26, 30, 31])


def by_hand(model: nn.Module, data: Data, space: FaultSpace, faults: np.ndarray, inputs: np.ndarray) -> list[int]:
    """Return for each trial the last layer whose output differs, -1 for none, 5 where the answers do."""
    found = []
    for fault, one in zip(faults.tolist(), inputs.tolist(), strict=True):
        struck, where = copy.deepcopy(model), space.locate(np.array([fault]))
        words = struck[0].weight.detach().view(-1).view(torch.int32)
        words[int(where.element[0])] ^= -(2**31) if where.bit[0] == 31 else 1 << int(where.bit[0])
        golden = faulty = data.inputs[one : one + 1]
        last = -1
        for position, (plain, broken) in enumerate(zip(model, struck, strict=True)):
            golden, faulty = plain(golden), broken(faulty)
            last = position if not torch.equal(golden, faulty) else last
        found.append(5 if last == 4 else last)
    return found


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_each_error_ends_where_a_pass_by_hand_says(executor: str) -> None:
    model, data = network()
    engine = Engine(model, data, executor=executor)
    campaign = Campaign(engine, coarse(engine), sampler=Exhaustive(), inputs_per_fault=None, monitor=True)
    columns = run(campaign).columns
    with torch.inference_mode():
        expected = by_hand(model, data, campaign.space, columns.faults, columns.inputs)
    assert columns.reach is not None
    assert columns.reach.tolist() == expected
    assert {-1, 0, 2, 5} <= set(expected)  # erased at once, behind the first layer, behind the second, never


def test_the_table_counts_what_is_alive() -> None:
    model, data = network()
    engine = Engine(model, data)
    results = run(Campaign(engine, coarse(engine), stop=MaxTrials(400), monitor=True))
    table, reach = travel(results), results.columns.reach
    assert reach is not None
    assert table["site"].tolist() == [*results.record.golden["monitored"], "output"]
    for position, row in enumerate(table.itertuples()):
        alive = int((reach >= position).sum())
        assert (row.trials, row.value) == (alive, alive / 400)
        assert row.low <= row.value <= row.high
    assert table["died"].sum() + table["trials"].iloc[-1] == (reach >= 0).sum()


def test_weighted_draws_count_by_their_weight() -> None:
    """Strata of bits are drawn unevenly: the share alive is that of the space, not that of the trials."""
    model, data = network()
    engine = Engine(model, data)
    whole = run(Campaign(engine, coarse(engine), sampler=Exhaustive(), inputs_per_fault=None, monitor=True))
    truth = travel(whole)["value"].to_numpy()
    adaptive = Adaptive(block=256)
    drawn = run(Campaign(engine, coarse(engine), sampler=adaptive, stop=HalfWidth(0.03), monitor=True))
    table = travel(drawn)
    assert ((table["low"] <= truth) & (truth <= table["high"])).all()


def test_it_is_kept_resumed_and_the_same_from_workers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, data = network()
    engine = Engine(model, data)
    campaign = Campaign(engine, coarse(engine), stop=MaxTrials(600), monitor=True)
    whole = run(campaign)
    with Store(tmp_path / "r.sqlite") as store:
        run(replace(campaign, stop=MaxTrials(300)), store=store, name="a")
        run(campaign, store=store, name="a", workers=Processes(2))
        kept = load(store, "a")
        with pytest.raises(CampaignError, match="another monitor"):
            run(replace(campaign, monitor=False), store=store, name="a")
    assert kept.columns.reach is not None
    assert whole.columns.reach is not None
    assert kept.columns.reach.tolist() == whole.columns.reach.tolist()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"resolver": Pooled(8)}, "leaves lanes out that a monitor would follow"),
        ({"sampler": Adaptive(WholeWords()), "stop": HalfWidth(0.1)}, "follows single faults"),
        ({"metric": accuracy}, "follows single lanes, not a metric"),
    ],
    ids=["pools", "words", "metric"],
)
def test_what_nobody_could_follow_is_refused(changed: dict[str, object], why: str) -> None:
    engine = Engine(*network())
    campaign = Campaign(engine, coarse(engine), sampler=Uniform(), stop=MaxTrials(10), monitor=True)
    with pytest.raises(CampaignError, match=why):
        run(replace(campaign, **changed))  # type: ignore[arg-type]


def test_without_a_monitor_nobody_knows() -> None:
    engine = Engine(*network())
    results = run(Campaign(engine, coarse(engine), stop=MaxTrials(10)))
    with pytest.raises(CampaignError, match="ran without a monitor"):
        travel(results)
    assert "How far errors travel" not in titles(results)


def test_the_report_draws_it() -> None:
    engine = Engine(*network())
    results = run(Campaign(engine, coarse(engine), stop=MaxTrials(200), monitor=True))
    assert "How far errors travel" in titles(results)
    page = report.render([results])
    assert f"{100 * travel(results)['value'].iloc[-1]:.2f}" in page


def titles(results: Results) -> list[str]:
    from torchfault.report.page import sections

    return [part.title for part in sections(results)]


def test_the_command_line_shows_it_and_says_how(tmp_path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    demo = ["--model", "torchfault.demo:model", "--data", "torchfault.demo:data", "--limit", "20"]
    assert main(["run", *demo, "--kinds", "weight", "--trials", "200", "--name", "m", "--set", "monitor=true"]) == 0
    assert "torchfault show m --by travel" in capfd.readouterr().err
    assert main(["show", "m", "--by", "travel"]) == 0
    shown = capfd.readouterr().out
    assert "How far errors travel" in shown
    assert main(["export", "m", "--output", "m.csv"]) == 0
    rows = pd.read_csv("m.csv", keep_default_na=False)
    with Store("torchfault.db") as store:
        kept = load(store, "m")
    reach, names = kept.columns.reach, [*kept.record.golden["monitored"], "output", ""]
    assert reach is not None
    assert rows["last_changed"].tolist() == [names[position] for position in reach]
    last = next(line for line in shown.splitlines() if line.startswith("output "))
    assert f" {(reach == len(names) - 2).sum():,} " in last
