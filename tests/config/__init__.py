"""Tests of torchfault.config."""
