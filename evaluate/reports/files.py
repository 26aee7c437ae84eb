"""Files of a report: written atomically, with names that are valid on any file system."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from corrflow.errors import InputError
from corrflow.output_paths import check_folder_of


def file_name(label: str) -> str:
    """Convert a method's label to the name of a folder; different labels have different names."""
    plain = re.sub(r"[^A-Za-z0-9._=-]+", "-", label).strip(".-") or "method"
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


MARKS = (
    "scores", "masks", "models", "sets", "report.html", "scores.json", "settings.json", "search.json", "report.json"
)  # fmt: skip
"""Entries of a folder of results; a folder with others alone is not ours to add to."""


def prepare_folder(folder: Path, marks: Sequence[str] = MARKS) -> None:
    """Create a folder for results. Raises InputError where nothing can be written to it, or it has other files.

    marks: names by which an earlier run's folder is known; () allows any content
    """
    if marks:
        check_folder_of(folder, *marks)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected a folder to write to, got {folder} ({error.strerror}); name another") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"expected a folder that can be written to, got {folder}; name another")
