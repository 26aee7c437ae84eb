"""Trackers and baselines that evaluation compares."""
