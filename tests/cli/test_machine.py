"""What programs and newcomers need of every command: examples in its help, a documented JSON object, completion."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from torchfault.cli import main
from torchfault.cli.app import app
from torchfault.cli.examples import EXAMPLES, epilog

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands
KEYS = {  # documented: | `key`, `key` | of | ...
    key
    for cells in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", DOCUMENT.partition("## For programs")[2], re.MULTILINE)
    for key in re.findall(r"\w+", cells)
}
DEMO = ["--model", "torchfault.demo:model", "--data", "torchfault.demo:data", "--limit", "20", "--executor", "hooks"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_two_or_three_examples(name, capfd):
    assert 2 <= len(EXAMPLES[name]) <= 3
    assert COMMANDS[name].epilog == epilog(name)
    assert main([name, "--help"]) == 0
    told = " ".join(capfd.readouterr().out.split())
    assert "Examples" in told
    assert all(line.replace("-", "")[:30] in told.replace("-", "") for line, _ in EXAMPLES[name])


@pytest.mark.parametrize("line", [line for held in EXAMPLES.values() for line, _ in held])
def test_examples_parse(line):
    program, name, *rest = shlex.split(line)
    assert program == "torchfault"
    assert COMMANDS[name].make_context(name, rest).params


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json_on_demand(name):
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert f"`{name}`" in DOCUMENT.partition("## For programs")[2].partition("\n## ")[0]


@pytest.fixture
def spoken(tmp_path, monkeypatch, capfd):
    """Return a function that runs a command with --json, and returns the object."""
    monkeypatch.chdir(tmp_path)

    def speak(*arguments: str, status: int = 0) -> dict:
        assert main([*arguments, "--json"]) == status, capfd.readouterr().err
        told = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
        assert set(told) <= KEYS, "document these keys in docs/command-line.md"
        return told

    return speak


def test_a_campaign_is_one_object_from_its_run_to_its_export(spoken):
    ran = spoken("run", *DEMO, "--kinds", "weight", "--trials", "200", "--name", "first", "--plot", "a.svg")
    assert (ran["kind"], ran["plot"]) == ("campaign", "a.svg")
    assert (ran["campaign"]["name"], ran["campaign"]["trials"], ran["campaign"]["recipe"]) == ("first", 200, "run")
    assert set(ran["tables"]) == {"layer", "bit"}
    assert sum(row["trials"] for row in ran["tables"]["layer"]) == 200
    failures = sum(row["failures"] for row in ran["tables"]["bit"])
    assert ran["estimate"]["value"] == failures / 200
    shown = spoken("show", "first", "--by", "channel", "--top", "3", "--level", "0.9")
    assert list(shown["tables"]) == ["channel"]
    assert len(shown["tables"]["channel"]) == 3
    assert shown["estimate"]["level"] == 0.9
    assert spoken("resume", "first", "--trials", "250")["campaign"]["trials"] == 250
    written = spoken("export", "first", "--output", "all.csv")
    assert (written["rows"], written["file"]) == (250, "all.csv")
    page = spoken("report", "first", "-o", "first.html")
    assert [one["name"] for one in page["campaigns"]] == ["first"]
    assert page["bytes"] == Path("first.html").stat().st_size
    spoken("run", *DEMO, "--kinds", "bias", "--trials", "60", "--name", "second")
    assert [one["name"] for one in spoken("show")["campaigns"]] == ["first", "second"]


def test_sites_and_plan_are_objects(spoken):
    sites = spoken("sites", *DEMO)
    assert sites["faults"] == sum(row["faults"] for row in sites["sites"]) == sites["kinds"][-1]["faults"]
    assert sum(kind["sites"] for kind in sites["kinds"][:-1]) == len(sites["sites"])
    plan = spoken("plan", *DEMO, "--kinds", "weight", "--speed", "1000", "--margin", "0.1")
    assert (plan["margin"], plan["lanes_per_second"], plan["measured"]) == (0.1, 1000, False)
    assert {row["method"] for row in plan["methods"]} >= {"network-wise", "exhaustive"}


def test_shares_without_trials_are_null(spoken):
    spoken("run", *DEMO, "--trials", "3", "--name", "few")
    rows = spoken("show", "few", "--by", "channel")["tables"]["channel"]
    assert None in {row["value"] for row in rows if not row["trials"]}


def test_errors_stay_lines_and_two_formats_are_refused(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["show", "none", "--json"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert main(["show", "--json", "--format", "csv"]) == 2
    assert "give one of them" in capfd.readouterr().err


def completed(words: str) -> subprocess.CompletedProcess[str]:
    """Return what the shell is told to offer after *words*, and which heavy modules that took."""
    program = (
        "import sys\nfrom torchfault.cli import main\nstatus = main()\n"
        "sys.stderr.write(' '.join({'torch', 'numpy', 'pandas', 'scipy'} & set(sys.modules)))\nsys.exit(status)"
    )
    asked = {"_TORCHFAULT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    environment = {**os.environ, **asked}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


TYPED = {"torchfault vul": "vulnerability", "torchfault run --tri": "--trials"}


@pytest.mark.parametrize(("words", "expected"), TYPED.items())
def test_the_shell_completes_commands_and_options_without_torch(words, expected):
    done = completed(words)
    assert expected in done.stdout.split(), done.stderr
    assert done.stderr == ""
