"""Destinations of live results: recordings, networks, other programs."""
