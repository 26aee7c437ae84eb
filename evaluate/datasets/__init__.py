"""Readers of evaluation data sets."""
