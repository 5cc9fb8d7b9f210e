"""Tests of torchfault.recipes."""
