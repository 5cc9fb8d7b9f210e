"""Counts instead of trials: the same tables, for every axis and outcome, and only where counts suffice."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.support.stored import drawn
from torchfault.errors import SpaceError
from torchfault.results import Results
from torchfault.results.counter import counter_of
from torchfault.results.intervals import estimates
from torchfault.sampling import Design


def listed(results: Results) -> Results:
    """Return the same results with weights of 1 that are written out, so that nothing is counted."""
    return Results(results.record, replace(results.columns, weights=np.ones(len(results))))


@pytest.mark.parametrize(
    "by", ["model", "site", "layer", "channel", "bit", "kind", "step", ("layer", "bit"), ("kind", "bit")]
)
@pytest.mark.parametrize("flag", ["failed", "due"])
def test_tables_of_counts_are_those_of_trials(by, flag):
    results = drawn()
    assert results.question("site", flag).counts is not None
    assert listed(results).question("site", flag).counts is None
    pd.testing.assert_frame_equal(results.table(by, flag), listed(results).table(by, flag))


def test_draws_without_replacement_know_what_is_left():
    results = drawn(trials=3000)
    plain = results.design.plain() | {"replacement": False}
    known = Results(replace(results.record, design=plain), results.columns)
    assert known.question("site", "failed").counts is not None
    pd.testing.assert_frame_equal(known.table("layer"), listed(known).table("layer"))


def test_other_outcomes_of_the_same_trials_are_counted_anew():
    results = drawn()
    every = results.with_flags({"every": np.ones(len(results), dtype=bool)})
    assert every.table("layer", "every")["failures"].tolist() == results.table("layer")["trials"].tolist()
    asked = results.question("layer", "failed")
    flags = {**asked.columns.flags, "failed": ~asked.columns.failed}
    turned = replace(asked, columns=replace(asked.columns, flags=flags))
    values = [[one.value for one in estimates(question)] for question in (asked, turned)]
    assert np.add(*values).tolist() == pytest.approx([1, 1])


def test_nothing_is_counted_where_counts_do_not_suffice():
    results = drawn()
    one = {"repeats": 1}
    assert counter_of(results.space, results.design, results.columns, repeats=2) is None
    for other in ({"looks": "every"}, {"enumerates": True}, {"sample": (0,)}, {"clusters": "channel"}):
        design = Design(**{**vars(results.design), **other})
        assert counter_of(results.space, design, results.columns, **one) is None
    for column in ({"weights": np.ones(4000)}, {"strata": np.zeros(4000, np.int32)}, {"values": np.zeros(4000)}):
        assert counter_of(results.space, results.design, replace(results.columns, **column), **one) is None


def test_channels_cross_nothing():
    with pytest.raises(SpaceError, match="groups of channel are smaller"):
        drawn().table(("channel", "bit"))
