"""Tracking of keypoints in a crop around them, at the resolution of the video."""
