"""Campaigns: which faults to run, in what order, and when to stop; one loop for every method."""

from torchfault.campaign.campaign import Campaign, Machine, UpsetModel
from torchfault.campaign.progress import Standing
from torchfault.campaign.runner import CampaignInterrupted, check_resumable, run

__all__ = ["Campaign", "CampaignInterrupted", "Machine", "Standing", "UpsetModel", "check_resumable", "run"]
