"""Tests of torchfault.store."""
