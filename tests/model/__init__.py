"""Tests of torchfault.model."""
