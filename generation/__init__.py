"""Samples of trained networks; `--mode=sample`."""
