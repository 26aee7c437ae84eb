"""Metrics of masks and points."""
