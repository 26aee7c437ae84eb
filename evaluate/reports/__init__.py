"""Score tables, JSON, images and HTML pages."""
