"""Measurements, each a program of its own: ``python benchmarks/engine.py --json``."""
