"""Campaigns: draw faults, run them, record the outcomes, estimate, stop; resumable, and reproducible trial by trial."""

from torchfault.campaign.plan import Campaign, population, total
from torchfault.campaign.results import Results, load
from torchfault.campaign.runner import CampaignInterrupted, run
from torchfault.campaign.standing import Standing

__all__ = ["Campaign", "CampaignInterrupted", "Results", "Standing", "load", "population", "run", "total"]
