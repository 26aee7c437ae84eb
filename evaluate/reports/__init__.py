"""Score tables as JSON, pictures and HTML."""
