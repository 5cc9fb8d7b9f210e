"""Tests of torchfault.testing."""
