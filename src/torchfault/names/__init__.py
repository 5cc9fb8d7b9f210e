"""Names of sites: their parts, and the patterns that choose among them; NumPy is not needed, nor torch."""

from torchfault.names.patterns import listed, matching
from torchfault.names.site_name import CONSTANT, SiteName, site_name

__all__ = ["CONSTANT", "SiteName", "listed", "matching", "site_name"]
