"""Tables and figures for papers: the numbers of the results, in columns that LaTeX aligns, in widths of journals."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.support.nasty_names import NAMES
from tests.support.stored import drawn
from torchfault.cli.screen import print_frame
from torchfault.report import (
    DOUBLE,
    SINGLE,
    bit_figure,
    convergence_figure,
    difference_figure,
    heat_figure,
    latex_table,
    layer_figure,
    markdown_table,
    save,
)


def test_latex_rows_are_those_of_the_table(capsys):
    frame = drawn().table("layer")
    print_frame(frame, "latex", level=0.9)
    text = capsys.readouterr().out
    assert r"\multicolumn{2}{c}{90\,\% interval}" in text
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.startswith(("conv1", "fc"))]
    for row, known in zip(rows, frame.itertuples(index=False), strict=True):
        assert row[:3] == [known.key, str(known.trials), str(known.failures)]
        told = [float(cell) / 100 for cell in row[3:]]
        assert told == pytest.approx([known.due, known.value, known.low, known.high], abs=6e-5)
    reserved = re.findall(r"table-format=-?(\d+)\.(\d+)", text)
    assert len(reserved) == len(rows[0]) - 1
    for row in rows:
        for cell, (before, behind) in zip(row[1:], reserved, strict=True):
            whole, _, part = cell.removeprefix("-").partition(".")
            assert (len(whole), len(part)) <= (int(before), int(behind))


def test_what_is_no_number_and_what_is_negative_has_its_place():
    frame = pd.DataFrame(
        {"key": ["a", "b"], "value": [-0.02, np.nan], "low": [-0.03, -np.inf], "high": [-0.01, np.inf]}
    )
    assert latex_table(frame).splitlines()[5:7] == [
        r"a & -2.00 & -3.00 & -1.00 \\",
        r"b & {--} & {$-\infty$} & {$\infty$} \\",
    ]
    assert "table-format=-1.2" in latex_table(frame)
    assert markdown_table(frame).splitlines()[2:] == ["| a | -2.00 | [-3.00, -1.00] |", "| b | - | [-∞, ∞] |"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "a lone surrogate"])
def test_names_are_set_as_they_are(name):
    frame = pd.DataFrame({"key": [NAMES[name]], "value": [0.5], "low": [0.4], "high": [0.6]})
    row = latex_table(frame).splitlines()[5]
    plain = re.sub(r"\\text(backslash|asciitilde|asciicircum)\{\}|\\[&%$#_{}]", "", row[: row.rindex(" & 40.0")])
    assert not re.search(r"[\\&%$#_{}~^]", plain.rsplit(" & ", 1)[0])
    assert len(markdown_table(frame).splitlines()) == 3


@pytest.mark.parametrize("width", [SINGLE, DOUBLE])
def test_figures_have_the_width_that_was_asked_for_and_the_numbers_of_the_results(width, tmp_path):
    results = drawn()
    figures = [make(results, width=width) for make in (layer_figure, bit_figure, heat_figure, convergence_figure)]
    figures.append(difference_figure(results, drawn("other", failing=0.1), width=width))
    assert [figure.get_size_inches()[0] for figure in figures] == [width] * 5
    dots = {line.get_label(): line.get_xdata() for line in figures[0].axes[0].lines}
    table = results.table(("layer", "kind"))
    assert dots["weights"] == pytest.approx(100 * table[table["kind"] == "weight"]["value"].to_numpy())
    assert np.nanmax(figures[2].axes[0].images[0].get_array()) == pytest.approx(
        100 * results.table(("layer", "bit"))["value"].max()
    )
    save(figures[0], tmp_path / "layers.pdf")
    save(figures[2], tmp_path / "heat.svg")
    assert b"/Type3" not in (tmp_path / "layers.pdf").read_bytes(), "text is text, in fonts that journals take"
    assert "conv1</text>" in (tmp_path / "heat.svg").read_text()


def test_latex_needs_no_torch():
    program = "import sys; from torchfault.report.tables import latex_table; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
