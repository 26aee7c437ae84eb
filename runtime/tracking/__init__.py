"""The tracker: search windows, memory updates, occlusion handling, mask refinement."""
