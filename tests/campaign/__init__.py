"""Tests of torchfault.campaign."""
