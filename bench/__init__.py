"""Measurements: the op, tracking and training beside their peers in one run: corrflow-bench."""
