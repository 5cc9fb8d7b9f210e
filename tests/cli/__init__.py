"""Tests of torchfault.cli."""
