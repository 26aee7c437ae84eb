"""Files of a report: written atomically, with names that are valid on any file system."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from corrflow.errors import InputError


def file_name(label: str) -> str:
    """Convert a method's label to the name of a folder; different labels have different names."""
    plain = re.sub(r"[^A-Za-z0-9._=-]+", "-", label).strip(".-") or "method"
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def prepare_folder(folder: Path) -> None:
    """Create a folder for results. Raises InputError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"expected a folder to write to, got {folder} ({error.strerror}); name another") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"expected a folder that can be written to, got {folder}; name another")
