"""Many videos in one go: what is to do, who does it, and what became of it."""
