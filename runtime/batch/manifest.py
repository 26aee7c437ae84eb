"""Manifest: the state of every item of a batch as JSON, for users and programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from corrflow.atomic_files import write_file

State = Literal["pending", "running", "done", "failed"]
_INTERVAL = 1.0  # seconds between two writes, because a batch may have thousands of items


@dataclass
class Entry:
    """Item of the manifest.

    frames: tracked frames of a finished item
    reason: cause of a failure, a sentence
    """

    name: str
    source: str
    state: State = "pending"
    frames: int = 0
    reason: str = ""


class Manifest:
    """Entries and their file. Only completion records decide whether an item is done, never the manifest."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        """Write the file. Raises CorrflowError."""
        self.path = path
        self.entries = {entry.name: entry for entry in entries}
        self._written = 0.0
        self.write()

    def set(self, name: str, state: State, frames: int = 0, reason: str = "") -> None:
        """Set the state of an item. Raises CorrflowError."""
        entry = self.entries[name]
        entry.state, entry.frames, entry.reason = state, frames, reason
        if time.monotonic() - self._written > _INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the file. Raises CorrflowError."""
        items = [asdict(entry) for entry in self.entries.values()]
        write_file(self.path, json.dumps({"items": items}, indent=1, ensure_ascii=False) + "\n", exclusive=True)
        self._written = time.monotonic()

    def count(self, state: State) -> int:
        """Return the number of items in a state."""
        return sum(entry.state == state for entry in self.entries.values())
