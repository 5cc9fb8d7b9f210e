"""Accelerators: how likely their upsets strike each variable, what they reach, and what a network is then worth."""
