"""Audit of a dataset: its faults, and unambiguous repairs."""
