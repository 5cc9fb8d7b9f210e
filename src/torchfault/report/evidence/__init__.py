"""The evidence pack: rows for an FMEDA from stored trials, with bounds, assumptions and a trace; needs no torch."""

from torchfault.report.evidence.check import check_folder
from torchfault.report.evidence.folder import check_place, write_folder
from torchfault.report.evidence.pack import Asked, pack

__all__ = ["Asked", "check_folder", "check_place", "pack", "write_folder"]
