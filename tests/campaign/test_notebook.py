"""What notebooks show: tables of spaces, engines, campaigns and results, a bar that moves, what an interrupt kept."""

import sys
from types import SimpleNamespace

import pytest
import torch

import torchfault
from tests.support.page import read_page
from tests.support.stored import NET, drawn
from torchfault.campaign import CampaignInterrupted
from torchfault.campaign.notebook import in_notebook
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.space import FaultSpace, Site
from torchfault.testing import example_campaign


def test_values_show_themselves_as_tables():
    campaign = example_campaign()
    shown = {
        "4": read_page(NET._repr_html_()).tables[""],
        "engine": read_page(campaign.engine._repr_html_()).tables[""],
        "campaign": read_page(campaign._repr_html_()).tables[""],
        "results": read_page(drawn()._repr_html_()).tables[""],
    }
    assert [row[0] for row in shown["4"]] == ["site", *NET.names]
    assert ["faults", str(len(campaign.engine.space))] in shown["engine"]
    assert ["executor", "hooks"] in shown["engine"]
    assert ["faults", "384"] in shown["campaign"]
    assert ["criterion", "Top1Change(axis=None, share=0.0, output=None)"] in shown["campaign"]
    assert [row[0] for row in shown["results"]] == ["key", "conv1", "fc"]


def test_names_do_nothing_in_a_notebook():
    bad = "<script>\x1b[2J"
    space = FaultSpace((Site(f"{bad}.weight", (2,), module=bad),))
    for html in (space._repr_html_(), drawn(bad, space)._repr_html_()):
        assert "<script>" not in html
        assert "\x1b" not in html
    assert "and 5 sites more" in FaultSpace(tuple(Site(f"s{n}", (1,)) for n in range(45)))._repr_html_()


def test_a_bar_moves_in_one_place(monkeypatch):
    told: list[str] = []
    handle = SimpleNamespace(update=told.append)
    display = SimpleNamespace(HTML=str, display=lambda shown, **_: told.append(shown) or handle)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert in_notebook()
    torchfault.run(example_campaign(trials=600), progress=True)
    assert len(told) >= 2
    assert told[-1].startswith('<progress max="600" value="600"></progress> 600 of 600 trials')
    shell.__dict__.clear()
    assert not in_notebook()


def test_an_interrupt_keeps_what_is_done():
    def stop(standing):
        if standing.done >= 300:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    engine = Engine(torch.nn.Linear(4, 3).eval(), Data(torch.randn(5, 4)), executor="hooks")
    with pytest.raises(CampaignInterrupted) as caught:
        torchfault.run(engine, trials=5000, progress=stop)
    kept = caught.value.results
    assert 0 < len(kept) < 5000
    assert kept.record.status == "interrupted"
    assert 0 <= kept.estimate().value <= 1
