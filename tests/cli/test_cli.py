"""The command line: every command end to end, what it prints, and that its documents are true."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
import yaml

from tests.support.digits import save_digits
from torchfault.cli import main, screen
from torchfault.cli.app import app
from torchfault.cli.flags import RECIPE_FLAGS, SITE_FLAGS, flags_of
from torchfault.cli.screen import Column, Table, count, duration, show_table
from torchfault.cli.tables import Row, _Strip, join_bits
from torchfault.config import leaf_keys

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run every test in a folder with a small data set of its own."""
    monkeypatch.chdir(tmp_path)
    save_digits(tmp_path, 30)
    return tmp_path


BASE = ["--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--executor", "hooks", "--kinds", "weight"]


def run(capfd, *arguments: str) -> tuple[str, str]:
    """Run a command that succeeds; return its standard output and standard error."""
    capfd.readouterr()
    status = main(list(arguments))
    out, err = capfd.readouterr()
    assert status == 0, err
    return out, err


def loaded_by(*arguments: str) -> set[str]:
    """Return the packages that a fresh process has imported after running a command."""
    call = f"from torchfault.cli import main; main({list(arguments)!r})"
    program = f"import sys; {call}; sys.stderr.write(repr(set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in re.findall(r"'([\w.]+)'", done.stderr.splitlines()[-1])}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["--version"]])
def test_help_is_quick(arguments):
    assert loaded_by(*arguments).isdisjoint(
        {"torch", "numpy", "pandas", "scipy", "sqlalchemy", "matplotlib", "sklearn"}
    )


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_shows_flags_without_a_value_and_words_as_they_are_written(capfd, command):
    out, _ = run(capfd, *command, "--help")
    assert re.search(r"--help\s+-h\s+Show", out)
    assert not re.search(r"bool|<\w|\[\[|\.\.\.\]\.", out)  # Python's types, brackets and dots twice
    assert not re.search(r"[^\x00-\x7f\u2500-\u257f]", out)  # rich makes a picture of :zero:, for one


def test_show_and_export_need_no_torch(capfd):
    run(capfd, "run", *BASE, "--trials", "100")
    run(capfd, "search", *BASE, "--trials", "100", "--side", "50", "--set", "search.block=50")
    for name in ("digits_cnn", "digits_cnn-search"):
        assert "torch" not in loaded_by("show", name, "--by", "bit", "--plot", f"{name}.svg")
        assert "torch" not in loaded_by("export", name)
    for command in (("status",), ("report", "digits_cnn"), ("evidence", "digits_cnn")):
        assert "torch" not in loaded_by(*command)


def test_run_tells_what_it_does_and_ends_with_tables(capfd):
    out, err = run(capfd, "run", *BASE, "--trials", "600", "--name", "first", "--seed", "4")
    for fact in (r"model\s+torchfault.zoo:digits_cnn, 13,706 parameters", r"golden\s+[\d.]+ % accuracy on 30 inputs"):
        assert re.search(fact, err), err
    assert re.search(r"faults\s+flip; 434,688 in 4 sites", err), err
    assert re.search(r"executor\s+hooks", err)
    assert re.search(r"first  [\d.]+ % \[[\d.]+, [\d.]+\] of 600 trials fail  \(95 % interval, wilson\)", out), out
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        assert re.search(rf"^{layer}\s+[\d,]+\s+\d+\s", out, re.MULTILINE), out
    assert re.search(r"^31     sign\s+\d+\s", out, re.MULTILINE)
    assert "torchfault show first --by channel --top 10" in err
    assert "torchfault export first" in err


def test_a_fallback_is_told_with_its_reason(capfd):
    Path("stubborn_net.py").write_text(
        "import torch\nfrom torchfault.zoo import DigitsCNN\n"
        "class Stubborn(DigitsCNN):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) if x.sum().item() < 1e9 else super().forward(-x)\n"
        "def make(): return Stubborn().eval()\n"
    )
    flags = ["--model", "stubborn_net:make", "--data", "digits.npz", "--kinds", "bias", "--trials", "20"]
    _, err = run(capfd, "run", *flags)
    assert re.search(r"executor\s+hooks; no graph: \S+", err), err


LOUD = """
import warnings
from torchfault.zoo import DigitsCNN
class Loud(DigitsCNN):
    def forward(self, x):
        print("a forward pass")
        return super().forward(x)
def make():
    print("a factory")
    warnings.warn("weights are\\nold \x1b[2J", stacklevel=1)
    warnings.warn("not for users", DeprecationWarning, stacklevel=1)
    return Loud().eval()
"""


@pytest.mark.parametrize("command", [["sites"], ["run", "--trials", "20"], ["plan", "--margin", "0.5"]])
def test_what_a_model_prints_and_warns_of_is_kept_out_of_results(command, capfd):
    Path("loud_net.py").write_text(LOUD)
    flags = ["--model", "loud_net:make", *BASE[2:], "--include", "conv1.*", "--format", "json"]
    out, err = run(capfd, *command, *flags)
    assert isinstance(json.loads(out), list)
    assert "a factory\n" in err
    assert err.count("warning: weights are old \\x1b[2J\n") == 1
    assert "not for users" not in err
    if command[0] != "sites":
        assert "a forward pass\n" in err
        run(capfd, "run", *flags, "--trials", "20", "--name", "kept")
        out, err = run(capfd, "resume", "kept", "--trials", "40", "--format", "csv")
        assert out.startswith("key,trials,")
        assert "print" not in out
        assert "a forward pass\n" in err


def test_flags_and_file_describe_the_same_campaign(capfd):
    file = {"model": "torchfault.zoo:digits_cnn", "data": "digits.npz", "executor": "hooks", "stop": 300, "seed": 2}
    file |= {"sites": [{"kinds": "input", "types": "Conv2d", "bits": "28-31"}], "fault": "stuck-at-1"}
    Path("file.yaml").write_text(yaml.safe_dump(file))
    run(capfd, "run", "file.yaml")
    flags = [*BASE[:6], "--kinds", "input", "--types", "Conv2d", "--bits", "28-30,sign", "--fault", "stuck-at-1"]
    run(capfd, "run", *flags, "--trials", "300", "--seed", "2", "--name", "flags")
    tables = [run(capfd, "show", name, "--by", "site", "--format", "csv")[0] for name in ("file", "flags")]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 3


def test_set_reaches_every_key(capfd):
    out, _ = run(capfd, "run", *BASE, "--set", "stop.trials=50", "--set", "level=0.5", "--set", "sampler.faults=3")
    assert "of 50 trials fail  (50 % interval" in out


def test_every_flag_sets_a_key_and_every_common_key_has_a_flag():
    flags = {flag.key for recipe in RECIPE_FLAGS for panel in flags_of(recipe).values() for flag in panel}
    wholes = {"sampler", "resolver"}  # with all their keys, as in --sampler importance:floor=0.2
    keys = {key.partition(".")[0] if key.partition(".")[0] in wholes else key for key in leaf_keys()}
    assert flags <= keys
    rare = {"model.kwargs", "model.pretrained", "checkpoint.prefix", "data.factory", "data.kwargs", "data.size"}
    rare |= {"data.grey", "training", "buffers", "recipe", "measure", "monitor", "verdicts", "search.block"}
    rare |= {"vulnerability.fresh", "vulnerability.audit", "generation.end", "generation.pad"}
    assert keys - flags == rare


def test_common_flags_are_the_same_everywhere():
    common = {"--trials", "--half-width", "--time", "--level", "--method", "--seed", "--store", "--name", "--memory"}
    common |= {
        "--executor",
        "--device",
        "--threads",
        "--model",
        "--data",
        "--by",
        "--flag",
        "--top",
        "--format",
        "--plot",
    }
    for name in RECIPE_FLAGS:
        assert common <= options_of(name), name
    for flag in common & options_of("resume"):
        (own,) = [one for one in COMMANDS["resume"].params if flag in one.opts]
        (other,) = [one for one in COMMANDS["run"].params if flag in one.opts]
        assert own.metavar == other.metavar


def test_sites_lists_what_run_would_strike(capfd):
    out, _ = run(capfd, "sites", *BASE)
    assert re.search(r"^conv1.weight\s+weight\s+Conv2d\s+16x1x3x3\s+float32\s+32\s+144\s+4,608$", out, re.MULTILINE), (
        out
    )
    assert re.search(r"^all\s+4\s+13,584\s+434,688$", out, re.MULTILINE), out
    rows = json.loads(run(capfd, "sites", *BASE, "--format", "json")[0])
    assert sum(row["faults"] for row in rows) == 434_688
    frame = pd.read_csv(io.StringIO(run(capfd, "sites", *BASE, "--format", "csv")[0]))
    assert list(frame["site"]) == [row["site"] for row in rows]


def test_weights_may_be_stored_in_another_way(capfd):
    out, _ = run(capfd, "sites", *BASE[:-2], "--storage", "csr", "--kinds", "weight", "--kinds", "index")
    assert re.search(r"^fc1.weight:col_indices\s+index\s+Linear\s+8192\s+int32\s+32", out, re.MULTILINE), out
    flags = (*BASE, "--set", "storage.conv*=int8", "--sampler", "data-aware:0.2", "--bits", "sign")
    _, err = run(capfd, "run", *flags, "--include", "conv*", "--name", "mixed")
    assert "mixed" in err
    out, _ = run(capfd, "sites", *BASE[:-2], "--activations", "bfp8:16", "--include", "*.exponent")
    assert "conv1:output.exponent" in out
    out, _ = run(capfd, "sites", *BASE[:-2], "--set", "activations.conv1:*=int8", "--include", "conv1:*")
    assert "int8[" in out
    assert main(["sites", *BASE, "--activations", "csr"]) == 2
    assert "activations cannot be kept as 'csr'; use a number format" in capfd.readouterr().err
    assert main(["sites", *BASE, "--storage", "int88"]) == 2
    assert "no storage is called 'int88'; use int8" in capfd.readouterr().err
    assert main(["sites", *BASE, "--set", "storage.convl*=int8"]) == 2
    assert "no site matches 'convl*'; did you mean" in capfd.readouterr().err


def test_sites_needs_only_a_shape(capfd):
    out, _ = run(capfd, "sites", "--model", "torchfault.zoo:resnet20", "--shape", "3,32,32", "--executor", "hooks")
    assert re.search(r"^conv1:input\s+input\s+Conv2d\s+3x32x32", out, re.MULTILINE), out


def test_plan_tells_what_run_will_draw(capfd):
    weights = [*BASE, "--kinds", "weight"]
    out, err = run(capfd, "plan", *weights, "--margin", "0.1", "--speed", "50")
    assert "margin ±10 % at 95 %; 50 lanes per second, as given" in err
    frame = pd.read_csv(io.StringIO(run(capfd, "plan", *weights, "--margin", "0.1", "--format", "csv")[0]))
    assert frame["method"].tolist() == ["network-wise", "layer-wise", "data-unaware", "data-aware", "exhaustive"]
    assert frame["lanes"].iloc[-1] == frame["trials"].iloc[-1] * 30  # each fault on each input
    assert (frame["seconds"] > 0).all()
    for method, trials in zip(frame["method"][:2], frame["trials"][:2], strict=True):
        assert re.search(rf"^{method}\s.*\s{trials}\s+[\d.]+ ", out, re.MULTILINE), out
        run(capfd, "run", *weights, "--sampler", f"{method}:0.1", "--name", method)
        rows = json.loads(run(capfd, "show", method, "--by", "site", "--format", "json")[0])
        assert sum(row["trials"] for row in rows) == trials


def test_data_aware_injection_is_about_weights(capfd):
    flags = ["--sampler", "data-aware:margin=0.2", "--name", "aware"]
    _, err = run(capfd, "run", *BASE, "--kinds", "weight", "--types", "Linear", *flags)
    assert "data-aware:margin=0.2, samples for a margin of ±20 %" in err
    rows = json.loads(run(capfd, "show", "aware", "--by", "bit", "--format", "json")[0])
    trials = {row["key"]: row["trials"] for row in rows}
    assert trials[30] >= max(trials.values()) - 2 > 10 * trials[0] > 0  # sizes are rounded by running sums
    assert main(["run", *BASE, *flags[:-1], "other", "--kinds", "input"]) == 2
    assert "choose weights alone" in capfd.readouterr().err


def test_importance_sampling_runs_and_resumes(capfd):
    given = ["--sampler", "importance", "--kinds", "weight", "--seed", "3"]
    run(capfd, "run", *BASE, *given, "--trials", "300", "--name", "weighed")
    out, _ = run(capfd, "resume", "weighed", "--trials", "700")
    run(capfd, "run", *BASE, *given, "--trials", "700", "--name", "whole")
    both = [run(capfd, "show", name, "--format", "csv")[0] for name in ("weighed", "whole")]
    assert both[0] == both[1]
    assert "weighted-" in out
    part = ["--kinds", "weight", "--sampler", "importance:GBIN,floor=0", "--trials", "200", "--name", "part"]
    _, err = run(capfd, "run", *BASE, *part)
    assert re.search(r"note: .*can draw [\d.]+ % of the faults", err), err
    for wrong in (["--sampler", "uniform:score=GBIN"], ["--sampler", "importance:GBXN"], ["--set", "sampler.floor=1"]):
        assert main(["run", *BASE, *wrong]) == 2
        assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_adaptive_sampling_ends_by_itself(capfd):
    out, err = run(capfd, "run", *BASE, "--sampler", "adaptive", "--half-width", "0.03", "--name", "itself")
    assert "adaptive, until intervals are ±3 % by model" in err
    assert "anytime" in out
    rows = json.loads(run(capfd, "show", "itself", "--by", "model", "--format", "json")[0])
    assert rows[0]["trials"] % 1024 == 0
    assert rows[0]["high"] - rows[0]["low"] <= 0.06
    assert main(["run", *BASE, "--sampler", "adaptive", "--name", "wrong"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: sampler adaptive draws towards half-widths, got none")  # no flag by itself is wrong


@pytest.mark.parametrize("sampler", ["uniform", "adaptive", "adaptive:deviations", "importance"])
def test_half_widths_by_any_grouping_end_any_sampler(capfd, sampler):
    flags = ["--half-width", "site=0.2", "--half-width", "model=0.1", "--trials", "50000", "--include", "fc*"]
    _, err = run(capfd, "run", *BASE, "--sampler", sampler, *flags, "--name", "by")
    assert "until intervals are ±20 % by site and ±10 % by model or 50,000 trials" in err
    rows = json.loads(run(capfd, "show", "by", "--by", "site", "--format", "json")[0])
    assert len(rows) == 2
    assert all(row["high"] - row["low"] <= 0.4 for row in rows)
    assert sum(row["trials"] for row in rows) < 50_000


def test_outcomes_are_found_with_fewer_lanes(capfd):
    flags = ["--sampler", "adaptive:deviations", "--half-width", "site=0.1", "--trials", "20000", "--include", "fc*"]
    out, err = run(capfd, "run", *BASE, *flags, "--resolver", "pooled:32", "--resolver", "monotone")
    assert "adaptive:strata=deviations by pooled:size=32 by monotone" in err
    lanes, trials = (int(re.search(rf"([\d,]+) {what}", out)[1].replace(",", "")) for what in ("lanes", "outcomes"))
    assert lanes < trials / 2
    assert "assume that errors of pooled faults do not cancel; smaller flips of a word" in out
    assert "audited are wrong (at most" in out


def test_each_fault_may_run_on_several_inputs(capfd):
    for given, each in (("5", 5), ("all", 30)):
        flags = ["--inputs-per-fault", given, "--trials", "300", "--name", f"on-{given}"]
        _, err = run(capfd, "run", *BASE, *flags)
        assert f"uniform on {given} inputs" in err
        run(capfd, "export", f"on-{given}")
        frame = pd.read_csv(f"on-{given}.csv")
        assert (frame.groupby(np.arange(300) // each)["element"].nunique() == 1).all()
        assert (frame.groupby(np.arange(300) // each)["input"].nunique() == each).all()


def test_further_verdicts_are_recorded_shown_and_exported(capfd):
    run(capfd, "run", *BASE, "--trials", "300", "--set", "verdicts.wrong=misclassified", "--bits", "exponent")
    wrong = pd.read_csv(io.StringIO(run(capfd, "show", "--by", "site", "--flag", "wrong", "--format", "csv")[0]))
    failed = pd.read_csv(io.StringIO(run(capfd, "show", "--by", "site", "--format", "csv")[0]))
    assert wrong["failures"].sum() > failed["failures"].sum(), "the labels are random"
    out, _ = run(capfd, "show", "--flag", "wrong")
    assert "of 300 trials are 'wrong'" in out
    run(capfd, "export", "--flag", "wrong")
    frame = pd.read_csv("digits_cnn.csv")
    assert len(frame) == wrong["failures"].sum()
    assert frame["wrong"].all()
    assert main(["show", "--flag", "wrnog"]) == 2
    assert "did you mean 'wrong'" in capfd.readouterr().err


@pytest.fixture
def shown(capfd):
    run(capfd, "run", *BASE, "--trials", "400", "--name", "one")
    return lambda *arguments: run(capfd, "show", "one", *arguments)[0]


@pytest.mark.parametrize("by", ["model", "kind", "layer", "site", "channel", "bit"])
def test_all_groupings_count_all_trials(shown, by):
    frame = pd.read_csv(io.StringIO(shown("--by", by, "--format", "csv")))
    assert list(frame.columns) == ["key", "trials", "failures", "due", "value", "low", "high"]
    assert frame["trials"].sum() == 400
    assert (frame["low"] <= frame["high"]).all()


def test_formats_hold_the_same_numbers(shown):
    from_csv = pd.read_csv(io.StringIO(shown("--by", "site", "--format", "csv")))
    from_json = pd.DataFrame(json.loads(shown("--by", "site", "--format", "json")))
    pd.testing.assert_frame_equal(from_csv, from_json, check_dtype=False)
    lines = shown("--by", "site", "--format", "markdown").splitlines()
    assert lines[1] == "|" + " --- |" * 7
    assert [line.split(" | ")[1] for line in lines[2:]] == [str(n) for n in from_csv["trials"]]


def test_top_shows_the_most_vulnerable(shown):
    every = pd.read_csv(io.StringIO(shown("--by", "bit", "--format", "csv")))
    most = pd.read_csv(io.StringIO(shown("--by", "bit", "--format", "csv", "--top", "3")))
    assert list(most["low"]) == sorted(every["low"][every["trials"] > 0], reverse=True)[:3]


def test_level_and_interval_may_be_chosen_afterwards(shown):
    usual = pd.read_csv(io.StringIO(shown("--by", "model", "--format", "csv")))
    wide = pd.read_csv(io.StringIO(shown("--by", "model", "--format", "csv", "--level", "0.999")))
    exact = pd.read_csv(io.StringIO(shown("--by", "model", "--format", "csv", "--method", "clopper-pearson")))
    assert wide["high"][0] > usual["high"][0]
    assert exact["high"][0] > usual["high"][0]
    assert "99.9 % interval, clopper-pearson" in shown("--level", "0.999", "--method", "clopper-pearson")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_plots_are_saved_and_the_same_each_time(shown, name, start):
    shown("--plot", name)
    first = Path(name).read_bytes()
    assert first.startswith(start)
    assert main(["show", "one", "--plot", name]) == 2, "nothing is written over unless told"
    shown("--plot", name, "--force")
    assert Path(name).read_bytes() == first or name.endswith(".svg")  # its element ids are random


def test_several_campaigns_are_listed(capfd):
    for name in ("one", "two"):
        run(capfd, "run", *BASE, "--trials", "20", "--name", name)
    out, err = run(capfd, "show")
    assert re.search(r"^one\s+run\s+finished\s+20\s+434,688\s", out, re.MULTILINE), out
    assert "torchfault show two" in err
    assert [row["name"] for row in json.loads(run(capfd, "show", "--format", "json")[0])] == ["one", "two"]


def test_export_writes_one_row_per_fault(capfd):
    run(capfd, "run", *BASE, "--trials", "30", "--sampler", "uniform:2", "--name", "pairs")
    _, err = run(capfd, "export")
    assert "60 rows of campaign 'pairs' written to pairs.csv" in err
    frame = pd.read_csv("pairs.csv")
    assert list(frame["trial"]) == [trial for trial in range(30) for _ in range(2)]
    run(capfd, "export", "pairs", "--output", "pairs.parquet")
    assert len(pd.read_parquet("pairs.parquet")) == 60
    run(capfd, "export", "--force")
    assert {path.name for path in Path().iterdir()} == {"digits.npz", "torchfault.db", "pairs.csv", "pairs.parquet"}


def test_a_metric_is_shown_as_a_drop(capfd):
    out, _ = run(capfd, "run", *BASE, "--metric", "accuracy", "--bits", "30", "--trials", "12")
    assert "mean drop" in out
    assert "Mean drop of the metric by layer" in out


def test_half_widths_end_metrics_and_enumerations_too(capfd):
    out, _ = run(capfd, "run", *BASE, "--metric", "accuracy", "--bits", "30", "--half-width", "0.2", "--limit", "10")
    drop = pd.read_csv(io.StringIO(run(capfd, "show", "--by", "model", "--format", "csv")[0]))
    assert "half-width" in out
    assert drop["high"][0] - drop["low"][0] <= 0.4
    choice = ["--include", "fc2.bias", "--kinds", "bias", "--sampler", "exhaustive", "--limit", "2", "--name", "every"]
    out, _ = run(capfd, "run", *BASE[:6], *choice, "--half-width", "0.2")
    part = pd.read_csv(io.StringIO(run(capfd, "show", "every", "--by", "model", "--format", "csv")[0]))
    assert part["trials"][0] < 640
    assert part["high"][0] - part["low"][0] == pytest.approx((640 - part["trials"][0]) / 640)


def test_an_enumeration_ends_with_no_doubt(capfd):
    choice = ["--include", "fc2.bias", "--kinds", "bias", "--sampler", "exhaustive", "--limit", "2"]
    out, _ = run(capfd, "run", *BASE[:6], *choice)
    assert "of 640 trials fail  (95 % interval, exhaustive)" in out
    frame = pd.read_csv(io.StringIO(run(capfd, "show", "--by", "model", "--format", "csv")[0]))
    assert frame["low"][0] == frame["value"][0] == frame["high"][0]
    assert "an interval without a width: every fault was tried, on these 2 inputs and no others" in out


def test_a_campaign_extended_is_the_one_run_at_once(capfd):
    run(capfd, "run", *BASE, "--trials", "150", "--name", "parts")
    run(capfd, "resume", "parts", "--trials", "700")
    run(capfd, "run", *BASE, "--trials", "700", "--name", "whole")
    parts, whole = (run(capfd, "show", name, "--by", "channel", "--format", "csv")[0] for name in ("parts", "whole"))
    assert parts == whole


def test_fewer_trials_than_there_are_is_told(capfd):
    run(capfd, "run", *BASE, "--trials", "150")
    for command in (["resume", "--trials", "100"], ["run", *BASE, "--trials", "100"]):
        assert main(command) == 2
        assert "has 150 trials already, more than --trials 100" in capfd.readouterr().err


def test_the_same_command_goes_on_or_shows_what_there_is(capfd):
    first, _ = run(capfd, "run", *BASE, "--trials", "150")
    again, err = run(capfd, "run", *BASE, "--trials", "150")
    assert again == first
    assert "torchfault.db, which holds 150 trials" in err
    longer, _ = run(capfd, "run", *BASE, "--trials", "300")
    assert "of 300 trials fail" in longer
    assert main(["run", *BASE, "--trials", "300", "--seed", "1"]) == 2
    assert re.search(r"begun with another model .*, seed \(was 0, is now 1\)", capfd.readouterr().err)


def test_resume_finds_moved_files(capfd, folder):
    run(capfd, "run", *BASE, "--trials", "50", "--name", "moved")
    (folder / "elsewhere").mkdir()
    (folder / "digits.npz").rename(folder / "elsewhere" / "digits.npz")
    assert main(["resume", "moved", "--trials", "90"]) == 2
    assert "there are no data at" in capfd.readouterr().err
    out, _ = run(capfd, "resume", "moved", "--trials", "90", "--data", "elsewhere/digits.npz")
    assert "of 90 trials fail" in out
    assert "of 95 trials" in run(capfd, "resume", "moved", "--trials", "95")[0], "the new place is kept"


def test_a_campaign_of_python_is_shown_but_not_resumed(capfd):
    import torch

    from torchfault.campaign import Campaign
    from torchfault.campaign import run as run_campaign
    from torchfault.data import Data
    from torchfault.engine import Engine
    from torchfault.statistics import MaxTrials

    engine = Engine(torch.nn.Linear(4, 3).eval(), Data(torch.ones(2, 4)), executor="hooks")
    run_campaign(Campaign(engine, engine.space, stop=MaxTrials(30)), store="torchfault.db", name="own")
    assert "of 30 trials" in run(capfd, "show")[0]
    assert main(["resume"]) == 2
    assert "was not begun by 'torchfault run'; resume it from Python, or by the command" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process")
def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(capfd, folder):
    command = [sys.executable, "-m", "torchfault", "run", *BASE, "--name", "long", "--trials", "2000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "torchfault.db").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    kept = re.search(
        r"stopped: interrupted; ([\d,]+) trials are kept in .*torchfault.db\n\n  next  torchfault resume long", err
    )
    assert kept, err
    done = int(kept[1].replace(",", ""))
    record = json.loads(run(capfd, "show", "--format", "json", "--by", "model")[0])
    assert record[0]["trials"] == done > 0
    run(capfd, "resume", "long", "--trials", str(done + 300))
    run(capfd, "run", *BASE, "--name", "whole", "--trials", str(done + 300))
    resumed, whole = (run(capfd, "show", name, "--by", "site", "--format", "csv")[0] for name in ("long", "whole"))
    assert resumed == whole


def test_progress_is_plain_lines_without_a_terminal(capfd, monkeypatch):
    from torchfault.campaign import Standing
    from torchfault.cli import progress
    from torchfault.statistics import proportion

    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock) * 2)
    with progress.Watch(method="jeffreys") as watch:
        for done in range(0, 1001, 50):
            found = proportion(done // 50, done, level=0.9)
            watch(Standing(done, 1000, 250.0, (1000 - done) / 250, found, done))
    lines = capfd.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 12, "a line for every tenth, not for every call"
    assert re.fullmatch(
        r"  \d+ of 1,000 trials  250/s  [\d.]+ s left  failing [\d.]+ % \[[\d.]+, [\d.]+\]", lines[0]
    ), lines
    assert proportion(19, 950, level=0.9, method="jeffreys").format_percent() in lines[-1]


def test_it_tells_that_more_memory_would_spare_passes_without_faults(capfd):
    graph = [*BASE[:4], "--executor", "graph", "--kinds", "weight", "--trials", "300", "--memory", "1MiB"]
    told = r"note: golden values of \d+ of \d+ inputs fit into 1 MiB of memory, those of all into (\d+) MiB; .*--memory"
    adaptive = ["--sampler", "adaptive", "--half-width", "0.001"]
    out, err = run(capfd, "run", *graph, *adaptive)
    assert "no estimate yet: 300 trials are too few for this way to draw" in out
    found = re.search(told, " ".join(err.split()))
    assert found
    assert "golden values of" not in run(capfd, "run", *graph, "--name", "once")[1], "drawn at once"
    enough = [*graph[:-1], f"{found[1]}MiB", *adaptive, "--name", "enough"]
    assert "golden values of" not in run(capfd, "run", *enough)[1]


def test_progress_of_several_campaigns_tells_which_one_runs(capfd, monkeypatch):
    from torchfault.campaign import Standing
    from torchfault.cli import progress
    from torchfault.statistics import proportion

    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock) * 2)
    with progress.Watch(method="wilson") as watch:
        for part in ("weights before", "weights after"):
            for done in range(0, 501, 100):
                watch(Standing(done, 500, 250.0, None, proportion(done // 50, done), done, part))
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["weights before"] * 5 + ["weights after"] * 5


def test_progress_is_one_live_line_on_a_terminal(monkeypatch):
    from rich.console import Console

    from torchfault.campaign import Standing
    from torchfault.cli import progress
    from torchfault.statistics import proportion

    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(screen, "_stderr", lambda: terminal)
    with progress.Watch(method="wilson") as watch:
        watch(Standing(500, 1000, 250.0, 2.0, proportion(5, 500), 500))
        watch(Standing(900, None, 250.0, None, proportion(5, 500), 900))
    shown = terminal.file.getvalue()
    assert "━" * 14 in shown
    assert "500 of 1,000 trials  250/s  2.0 s left  failing 1.00 % [0.43, 2.32]" in shown
    assert "900 trials  250/s  failing" in shown


def test_an_error_of_torchfault_itself_is_no_bad_input(monkeypatch, capfd):
    monkeypatch.setattr("torchfault.cli.running.build_engine", lambda *_, **__: 1 / 0)
    assert main(["sites", *BASE]) == 1
    err = capfd.readouterr().err
    assert "ZeroDivisionError" in err
    assert err.splitlines()[-1].startswith("error: this is a bug in torchfault; please report it")


def test_a_pipe_that_closes_is_no_error(capfd):
    run(capfd, "run", *BASE, "--trials", "400")
    command = f"{sys.executable} -m torchfault show --by channel --format csv | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "key,trials,failures,due,value,low,high\n"
    assert done.stderr == ""


def test_figures_are_written_as_people_read_them():
    assert [count(n) for n in (0, 1234, 10**12)] == ["0", "1,234", "1.00e+12"]
    assert [duration(s) for s in (0.04, 59.6, 3599, 3600)] == ["0.0 s", "1 min 0 s", "59 min 59 s", "1 h 0 min"]


def test_strips_hold_their_interval_and_estimate():
    rows = [
        Row("a", 1000, 10, 0.0, 0.25, 0.0, 0.5),
        Row("b", 1000, 10, 0.0, 0.75, 0.5, 1.0),
        Row("c", 1, 0, 0.0, 0.0, 0.0, 2.0),
    ]
    strip = _Strip(rows, metric=False)
    first, second, third = (strip.draw(row) for row in rows)
    assert (first.index("●"), second.index("●")) == (7, 20)
    assert len(first.rstrip()) == 14 + 1
    assert second.strip("─●") == " " * 14
    assert third[-1] == "→"


def test_joined_bits_keep_all_trials():
    rows = [Row(bit, 10, int(bit in (30, 5)), 0.0, 0.1, 0.0, 0.3) for bit in range(31, -1, -1)]
    joined = join_bits(rows, word="float32", bound=lambda trials: 4 / trials)
    assert sum(row.trials for row in joined) == 320
    assert [row.key for row in joined] == [
        "31     sign",
        "30     exponent",
        "29-23  exponent",
        "22-6   mantissa",
        "5      mantissa",
        "4-0    mantissa",
    ]
    assert joined[2].high == 4 / 70


def test_fields_of_plots_are_those_of_the_word_formats():
    from torchfault.names.word_names import FIELDS
    from torchfault.words import WORDS

    real = {name: fmt.fields for name, fmt in WORDS.items() if "exponent" in fmt.fields and not fmt.halves}
    sizes = {name: (len(fields.get("mantissa", ())), len(fields["exponent"])) for name, fields in real.items()}
    assert sizes == FIELDS


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_tables_fit_the_terminal_and_no_figure_is_cut_short(width, monkeypatch):
    from rich.console import Console

    columns = [
        Column("layer"),
        Column("trials", True, 3),
        Column("VF %", True),
        Column("interval"),
        Column("last", rank=5),
    ]
    rows = [[f"layer{row}.conv.with.a.long.name", "1,234,567", "10.50", "[10.00, 20.00]", "end"] for row in range(3)]
    console = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=True, soft_wrap=True)
    monkeypatch.setattr(screen, "_stdout", lambda: console)
    show_table(Table(columns, rows, "T", ("what it means",)))
    shown = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())
    lines = shown.splitlines()
    assert max(map(len, lines[1:6])) <= width, shown
    assert sum("10.50   [10.00, 20.00]" in line for line in lines) == 3
    assert ("1,234,567" in shown) == (width >= 80)
    assert ("…" in shown) == (width <= 40)
    assert len({line.split()[0] for line in lines[3:6]}) == 3, "names that are cut short still differ"
    left = {40: "trials, last", 60: "trials, last"}.get(width)
    assert (f"left out for the width of the terminal: {left}; --format csv writes all" in shown) == (width < 80)
    assert lines[-1] == "what it means"


def test_a_terminal_without_utf_8_gets_question_marks(capfd, folder):
    run(capfd, "run", *BASE, "--trials", "50")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "torchfault", "show"]
    done = subprocess.run(command, capture_output=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"of 50 trials fail" in done.stdout
    assert done.stdout.isascii()


def options_of(name: str) -> set[str]:
    return {option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("--")}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name):
    section = re.search(rf"^## torchfault {name}$(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section, f"docs/command-line.md has no section '## torchfault {name}'"
    assert re.search(rf"```sh\ntorchfault {name}", section[1]), "it needs an example"
    told = set(re.findall(r"--[a-z-]+", section[1]))
    shared = set()  # the tables of flags that the commands have in common
    if name in RECIPE_FLAGS or name in ("init", "sites", "plan", "harden"):
        shared |= set(re.findall(r"^\| `(--[a-z-]+)", common("The flags of a campaign"), re.MULTILINE))
    if name in RECIPE_FLAGS or name in ("show", "resume"):
        shared |= set(re.findall(r"^\| `(--[a-z-]+)", common("How results are shown"), re.MULTILINE))
    assert options_of(name) - told - shared - {"--help"} == set()


def common(title: str) -> str:
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)[1]


def test_the_table_of_flags_is_the_one_of_the_program():
    rows = dict(
        re.findall(r"^\| `(--[a-z-]+) [^`]*` \| `([a-z_.]+)` \|", common("The flags of a campaign"), re.MULTILINE)
    )
    assert rows == {flag.name: flag.key for panel in flags_of("run").values() for flag in panel} | {}
    assert {flag.name for flag in SITE_FLAGS} == {"--include", "--exclude", "--kinds", "--types", "--bits", "--steps"}


def examples() -> list[str]:
    """Return the commands in the documents' shell blocks, and in the comments of the example."""
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/command-line.md", "docs/configuration.md")]
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", "\n".join(texts), re.MULTILINE | re.DOTALL))
    comments = (ROOT / "examples" / "resnet20.yaml").read_text()
    return re.findall(r"^(?:#   )?(torchfault .*)$", blocks + comments, re.MULTILINE)


@pytest.mark.parametrize("line", examples())
def test_documented_commands_parse(line):
    name, *rest = shlex.split(line, comments=True)[1:]
    context = COMMANDS[name].make_context(name, rest)
    assert context.params


def test_the_documents_show_commands():
    assert len(examples()) > 15
    assert {shlex.split(line)[1] for line in examples()} == set(COMMANDS)
