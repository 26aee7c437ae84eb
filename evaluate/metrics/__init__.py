"""Measures of masks and points."""
