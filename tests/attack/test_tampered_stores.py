"""Stores in which somebody changed what they say, checksums and all: refused in one line, or shown within reason."""

import json
import math
import random
import sqlite3
from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest

from tests.support.digits import save_digits
from torchfault.cli import main
from torchfault.store import Columns, pack, unpack
from torchfault.store.record import batch_checksum, row_checksum

MODEL = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz"]
RECIPES = {
    "run": ["run", *MODEL, "--kinds", "weight", "--trials", "300"],
    "metric": ["run", *MODEL, "--include", "fc2.*", "--metric", "accuracy", "--trials", "40"],
    "adaptive": ["run", *MODEL, "--include", "fc*", "--sampler", "adaptive", "--half-width", "0.2", "--trials", "3000"],
    "search": ["search", *MODEL, "--include", "fc*.weight", "--trials", "400"],
    "vulnerability": ["vulnerability", *MODEL, "--include", "fc2.*", "--share", "10%", "--weights", "2"],
    "ra": ["ra", *MODEL, "--trials", "400"],
}
READERS = [
    ["report", "--output", "x.html", "--force"],
    ["evidence", "--output", "pack", "--force"],
    ["status"],
    ["protect", "--budget", "5%"],
]
NASTY = [
    -1, 0, 1, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e-300, 1e308, -1e308, float("inf"), float("-inf"),
    float("nan"), None, True, "", "x", "1e9", "[bold]", "\x1b[2J", [], [[]], {}, {"a": 1}, [1, 2, 3], "failed", "word",
]  # fmt: skip
VALUES = [-(2**40), -2, -1, 0, 1, 5, 99, 2**31 - 1, 2**40, math.nan, math.inf, -math.inf, 1e300, -0.5, 0.25]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return the contents of a store of every recipe."""
    folder = tmp_path_factory.mktemp("stores")
    save_digits(folder, 8)
    held = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for recipe, command in RECIPES.items():
            assert main([*command, "--store", f"{recipe}.db"]) == 0
            held[recipe] = (folder / f"{recipe}.db").read_bytes()
    return held


def leaves(tree, above=()):
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*above, key)
        if len(above) < 6:
            yield from leaves(value, (*above, key))


def tampered_row(row, rng):
    """Change something that the row of a campaign says, and sign it."""
    name = rng.choice(["design", "design", "space", "golden", "configuration", "seed", "faults", "inputs", "status"])
    if name in ("design", "space", "golden", "configuration"):
        tree = json.loads(row[name])
        *above, last = rng.choice(list(leaves(tree)))
        inner = tree
        for key in above:
            inner = inner[key]
        if rng.random() < 0.15:
            del inner[last]
        elif rng.random() < 0.15 and isinstance(inner[last], list):
            inner[last] = inner[last] * 2
        else:
            inner[last] = rng.choice(NASTY)
        row[name] = json.dumps(tree)
    else:
        row[name] = rng.choice([-1, 0, 3, 2**62, "x", "-7", 1e300])
    plain = {key: json.loads(value) if key in ("space", "design", "golden", "configuration", "versions") else value
             for key, value in row.items()}  # fmt: skip
    row["checksum"] = row_checksum(plain)


def tampered_batch(row, rng):
    """Change some of the numbers of a batch, and sign it."""
    columns = unpack(row["data"])
    names = [part.name for part in fields(Columns) if isinstance(getattr(columns, part.name), np.ndarray)]
    name = rng.choice([*names, *columns.flags, "seconds"])
    if name == "seconds":
        row["seconds"] = rng.choice([-1.0, 1e308, math.inf])
    else:
        column = np.array(getattr(columns, name, columns.flags.get(name)))
        with np.errstate(all="ignore"):
            changed = np.array([rng.choice(VALUES)]).astype(column.dtype)
        column[rng.sample(range(len(column)), rng.choice([1, len(column)]))] = changed
        if name in columns.flags:
            columns = replace(columns, flags={**columns.flags, name: column})
        elif name == "counts":
            return
        else:
            columns = replace(columns, **{name: column})
        row["data"] = pack(columns)
    row["checksum"] = batch_checksum(row["first"], row["trials"], row["seconds"], row["data"])


def tamper(path, rng):
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        table, change = rng.choice([("torchfault_campaigns", tampered_row), ("torchfault_batches", tampered_batch)])
        rows = [dict(row) for row in connection.execute(f"SELECT rowid AS at, * FROM {table}")]
        row = rng.choice(rows)
        at = row.pop("at")
        with np.errstate(all="ignore"):
            change(row, rng)
        sets = ", ".join(f'"{name}" = ?' for name in row)
        connection.execute(f"UPDATE {table} SET {sets} WHERE rowid = ?", (*row.values(), at))
        connection.commit()


def nonsense(text):
    """Return the first number of a table that cannot be."""
    for row in json.loads(text):
        bounds = [row.get(name) for name in ("low", "value", "high")]
        for one in bounds:
            if one is not None and not (isinstance(one, int | float) and math.isfinite(one) and abs(one) <= 1 + 1e-9):
                return row
        if None not in bounds and not bounds[0] - 1e-9 <= bounds[1] <= bounds[2] + 1e-9:
            return row
    return None


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def attack(seed, stores, tmp_path, capfd, tried):
    rng = random.Random(seed)
    recipe = rng.choice(list(stores))
    path = tmp_path / "a.db"
    path.write_bytes(stores[recipe])
    tamper(path, rng)
    by = {"search": ["recall", "site"], "vulnerability": ["site", "channel", "model"], "ra": ["summary", "type"]}.get(
        recipe, ["site", "bit"]
    )
    commands = [["show", "--by", one, "--format", "json"] for one in (rng.choice(by), by[0])]
    commands += [["show"], ["export", "--output", str(tmp_path / "x.csv"), "--force"]]
    commands.append(READERS[seed % len(READERS)])
    with tried("a store tampered with, checksums and all") as found:
        for command in commands:
            status = main([*command, "--store", str(path)])
            out, err = capfd.readouterr()
            odd = nonsense(out) if status == 0 and "json" in command else None
            found.said(status, err, nonsense=odd is not None, what=(seed, recipe, command, odd))


@pytest.mark.parametrize("seed", range(24))
def test_what_a_tampered_store_says_is_refused_or_within_reason(seed, stores, tmp_path, capfd, tried):
    attack(seed, stores, tmp_path, capfd, tried)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(13))
def test_what_many_tampered_stores_say(block, stores, tmp_path, capfd, tried):
    for seed in range(24 + 10 * block, 34 + 10 * block):
        attack(seed, stores, tmp_path, capfd, tried)
