"""Reports: what a campaign found, for the eye; from data frames alone, without torch."""

from torchfault.report.plots import plot_vulnerability, save

__all__ = ["plot_vulnerability", "save"]
