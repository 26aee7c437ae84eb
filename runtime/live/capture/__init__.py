"""Cameras and streams: readers of each kind, and the thread that keeps the newest frame."""
