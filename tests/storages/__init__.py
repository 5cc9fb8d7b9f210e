"""Tests of torchfault.storages."""
