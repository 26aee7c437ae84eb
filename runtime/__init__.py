"""Tracking without PyTorch: models, backends, the tracker, sources, formats, live sessions and batches."""
