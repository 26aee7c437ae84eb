"""Tracking while a camera runs: sources that may block and come back, and outputs that cannot stop the tracker."""
