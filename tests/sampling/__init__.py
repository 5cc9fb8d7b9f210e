"""Tests of torchfault.sampling."""
