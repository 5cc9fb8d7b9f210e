"""Tests of torchfault.names."""
