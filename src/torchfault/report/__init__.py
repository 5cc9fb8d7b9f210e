"""Reports: what campaigns found, for the eye; from results and data frames alone, without torch."""

from torchfault.report.figures import (
    DOUBLE,
    SINGLE,
    bit_figure,
    convergence_figure,
    difference_figure,
    heat_figure,
    layer_figure,
)
from torchfault.report.page import render, write_report
from torchfault.report.plots import plot, plot_recall, plot_tables, save
from torchfault.report.tables import latex_table, markdown_table

__all__ = [
    "DOUBLE",
    "SINGLE",
    "bit_figure",
    "convergence_figure",
    "difference_figure",
    "heat_figure",
    "latex_table",
    "layer_figure",
    "markdown_table",
    "plot",
    "plot_recall",
    "plot_tables",
    "render",
    "save",
    "write_report",
]
