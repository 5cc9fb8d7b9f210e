"""What is printed: text of others comes out as text, whatever it holds, in every format and on every path."""

import ast
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.support.nasty_names import NAMES, printable
from torchfault.cli import main, screen
from torchfault.errors import SpaceError
from torchfault.site import Site
from torchfault.text import visible

CLI = Path(screen.__file__).parent


@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=40))
def test_visible_text_prints_and_plain_text_stays(text):
    shown = visible(text)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert shown.replace("\xa0", " ").replace("\u3000", " ").isprintable()
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("name", NAMES)
def test_lines_facts_and_errors_show_names_as_they_are(name, capsys):
    text = NAMES[name]
    screen.say(text, (text, "bold"), out=True)
    screen.facts([(text, text), ("left out", "")])
    screen.complain("error", text)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = screen.warned
        warnings.warn(text, UserWarning, stacklevel=1)
    out, err = capsys.readouterr()
    assert printable(out)
    assert printable(err)
    assert out == visible(text) * 2 + "\n"
    assert err.startswith(f"  {visible(text):<8}  {visible(text)}\n")
    assert err.count("\n") == 3


@pytest.mark.parametrize("name", NAMES)
def test_tables_show_names_as_they_are(name, monkeypatch):
    text, stream = NAMES[name], io.StringIO()
    for terminal in (False, True):
        console = Console(file=stream, force_terminal=terminal, width=80, no_color=True, soft_wrap=True)
        monkeypatch.setattr(screen, "_stdout", lambda console=console: console)
        columns = [screen.Column("layer"), screen.Column(text, right=True)]
        screen.show_table(screen.Table(columns, [[text, "1.00"]], title=text, notes=(text,)))
        shown = stream.getvalue()
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown) if terminal else shown
        assert printable(plain)
        whole = 2 * len(visible(text)) + 3 <= 80  # names are cut for a narrow terminal, and nothing else is
        assert plain.count(visible(text).strip()[:40]) >= (4 if whole else 3)
        assert whole or "…" in plain
        assert text.isprintable() or text not in shown
        stream.seek(0), stream.truncate()


IN_FRAMES = [name for name in NAMES if name != "a lone surrogate"]  # which pandas cannot hold, and no site is called by


def test_no_site_has_a_name_that_cannot_be_written():
    for bad in ("conv\ud800.weight", "\udfff", "a:b\udc80"):
        with pytest.raises(SpaceError, match=r"a site has a name that can be written, got '.*\\ud[8cf]..*'; rename"):
            Site(bad, (2,))
    with pytest.raises(SpaceError, match="rename the module"):
        Site("weight", (2,), module="\udabc")


@pytest.mark.parametrize("name", IN_FRAMES)
def test_frames_are_read_back_as_tables(name, capsys):
    text = NAMES[name]
    frame = pd.DataFrame({"key": [text, "b"], text: [1.5, np.nan], "n": [1, 2]})
    screen.print_frame(frame, "csv")
    out = capsys.readouterr().out
    assert printable(out.replace("\r", "\\r"))
    back = pd.read_csv(io.StringIO(out))
    assert back["key"].tolist() == [visible(text), "b"]
    screen.print_frame(frame, "json")
    assert json.loads(capsys.readouterr().out)[0] == {"key": visible(text), visible(text): 1.5, "n": 1}
    screen.print_frame(frame, "markdown")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {4}
    assert all(map(printable, lines))
    cell = re.split(r"(?<!\\)(?:\\\\)*\|", lines[2])[1].strip()
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]<>~]", cell)


@pytest.mark.parametrize("name", IN_FRAMES)
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plots_show_names_as_they_are(name, suffix, tmp_path):
    from torchfault.report import plot_tables, save

    text = NAMES[name][:60]
    rows = {"trials": [100, 90], "value": [0.02, 0.1], "low": [0.005, 0.05], "high": [0.07, 0.18]}
    layers, bits = (pd.DataFrame({"key": key} | rows) for key in ([text, "fc"], [30, 31]))
    figure = plot_tables({"layer": layers, "bit": bits}, title=text, word="float32")
    save(figure, tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").stat().st_size > 1000
    label = figure.axes[0].get_yticklabels()[0].get_text()
    assert label.replace("\\$", "$") == visible(text)


def test_what_a_model_prints_is_kept_out_of_results(capsys):
    with screen.strays_aside():
        print("from a model")
        screen.say("a result", out=True)
        with screen.strays_aside():
            print("from within")
            screen.print_frame(pd.DataFrame({"a": [1]}), "csv")
    print("after")
    out, err = capsys.readouterr()
    assert out == "a result\na\n1\nafter\n"
    assert err == "from a model\nfrom within\n"


def test_nothing_else_prints():
    """Text that reaches a terminal past `screen` would not be escaped."""
    wrong = []
    for path in sorted(CLI.parent.rglob("*.py")):
        if path == CLI / "screen.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if re.search(r"(^|\.)(print|print_exc|echo|secho|pprint)$|std(out|err)\.write$", called):
                wrong.append(f"{path.relative_to(CLI.parent)}:{node.lineno}: {called}")
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rich") and path.parent == CLI:
                wrong.append(f"{path.relative_to(CLI.parent)}:{node.lineno}: {ast.unparse(node)}")
    allowed = ("cli/app.py", "cli/progress.py")  # the version; for type checkers alone
    assert [line for line in wrong if not line.startswith(allowed)] == []
    assert all("typer.echo" in line or "rich.live" in line for line in wrong)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "much"])
@pytest.mark.parametrize("command", [["show"], ["sites", "--model"], ["run", "--set"], ["export", "--store"], []])
def test_commands_that_fail_repeat_names_as_they_are(name, command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, NAMES[name]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert printable(err)
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
