"""Audit of a data set: its faults, and unambiguous repairs."""
