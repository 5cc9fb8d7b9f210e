"""Tests of torchfault.criteria."""
