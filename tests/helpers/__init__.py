"""Helpers that tests share, imported as `helpers.NAME`."""
