"""Tests of torchfault.engine."""
