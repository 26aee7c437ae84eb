"""Training data: video and image files, shards, clips."""
