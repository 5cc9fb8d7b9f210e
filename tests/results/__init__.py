"""Tests of torchfault.results."""
