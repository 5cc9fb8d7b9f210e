"""Reports: what campaigns found, for the eye; from results and data frames alone, without torch."""

from torchfault.report.page import render, write_report
from torchfault.report.plots import plot, plot_recall, plot_tables, save

__all__ = ["plot", "plot_recall", "plot_tables", "render", "save", "write_report"]
