"""Tests of torchfault.hardware."""
