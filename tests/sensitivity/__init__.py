"""Tests of torchfault.sensitivity."""
