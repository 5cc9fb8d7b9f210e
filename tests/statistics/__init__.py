"""Tests of torchfault.statistics."""
