"""Tracking without torch: artifacts, back ends, the tracker, and where frames come from and go to."""
