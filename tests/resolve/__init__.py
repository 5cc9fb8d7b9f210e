"""Tests of torchfault.resolve."""
