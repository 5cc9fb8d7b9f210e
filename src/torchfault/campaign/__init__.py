"""Campaigns: draw faults, run them, record the outcomes, estimate, stop; resumable, and reproducible trial by trial."""

from torchfault.campaign.assist import assisted
from torchfault.campaign.audit import Audit
from torchfault.campaign.diagnostics import Diagnostics
from torchfault.campaign.discovery import Discovery
from torchfault.campaign.plan import Campaign, check, population, reach, total
from torchfault.campaign.results import Results, load
from torchfault.campaign.runner import CampaignInterrupted, check_resumable, run
from torchfault.campaign.shortcuts import Shortcuts
from torchfault.campaign.standing import Standing

__all__ = [
    "Audit",
    "Campaign",
    "CampaignInterrupted",
    "Diagnostics",
    "Discovery",
    "Results",
    "Shortcuts",
    "Standing",
    "assisted",
    "check",
    "check_resumable",
    "load",
    "population",
    "reach",
    "run",
    "total",
]
