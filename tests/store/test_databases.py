"""Every database is held to the suite for stores, and gives the campaigns that SQLite gives."""

import pytest

from tests.support.crews import Threads
from tests.support.doubles import SPACE, Double
from torchfault.campaign import Campaign, run
from torchfault.results import load
from torchfault.sampling import Adaptive
from torchfault.statistics import HalfWidth, MaxTrials
from torchfault.store import Store, pack
from torchfault.testing import check_store


def test_sqlite_does_as_a_store(tmp_path):
    check_store(tmp_path / "results.sqlite")


def test_postgresql_does_as_a_store(postgres):
    check_store(postgres.database())


def test_a_store_that_forgets_is_told(tmp_path, monkeypatch):
    append = Store.append

    def forgets(self, name, columns, *, first, **more):
        append(self, name, columns.take(0, len(columns)) if first else columns.take(0, 1), first=first, **more)

    monkeypatch.setattr(Store, "append", forgets)
    with pytest.raises(AssertionError, match="breaks the rule that records and trials come back to the bit"):
        check_store(tmp_path / "results.sqlite")


@pytest.mark.parametrize(
    "options",
    [{"stop": MaxTrials(1500)}, {"sampler": Adaptive(block=128), "stop": HalfWidth(0.05, by="site")}],
    ids=["uniform", "adaptive"],
)
def test_campaigns_are_the_same_in_both_and_resume_in_both(postgres, tmp_path, options):
    begun = Campaign(Double(), SPACE, seed=5, **options)
    whole = run(begun, store=tmp_path / "whole.sqlite", name="c")
    url = postgres.database()
    early = Campaign(Double(), SPACE, seed=5, **(options | {"stop": MaxTrials(700) | options["stop"]}))
    run(early, store=url, name="c", batch=100)
    run(begun, store=url, name="c", workers=Threads(2))
    with Store(url, access="read") as store:
        held = load(store, "c")
    assert pack(held.columns) == pack(whole.columns)
    assert held.table("site").to_csv() == whole.table("site").to_csv()
    assert held.record.reason == whole.record.reason
