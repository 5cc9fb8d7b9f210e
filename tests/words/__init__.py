"""Tests of torchfault.words."""
