"""Frame sources and video files: reading, writing, drawing."""
