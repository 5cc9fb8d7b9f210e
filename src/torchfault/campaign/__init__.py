"""Campaigns: draw faults, run them, record the outcomes, estimate, stop; resumable, and reproducible trial by trial."""

from torchfault.campaign.assist import assisted
from torchfault.campaign.plan import Campaign, check, population, reach, total
from torchfault.campaign.results import Results, load
from torchfault.campaign.runner import CampaignInterrupted, check_resumable, run
from torchfault.campaign.standing import Standing

__all__ = [
    "Campaign",
    "CampaignInterrupted",
    "Results",
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
