"""Tests of torchfault.adapters."""
