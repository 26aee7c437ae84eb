"""Paths of the clone, of the development data, and of the tests' own files."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
HELPERS = TESTS / "helpers"
NATIVE = TESTS / "native"
SHARED_DATA = ROOT.parent / "shared" / "data"
"""Data that users do not have; tests that need it are skipped without it."""
