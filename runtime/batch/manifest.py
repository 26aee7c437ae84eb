"""Manifest: the state of every item of a batch as JSON, for users and programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from corrflow.atomic_files import write_file

State = Literal["pending", "running", "done", "failed"]
_INTERVAL = 1.0  # seconds between two writes, because a batch may have thousands of items


@dataclass
class Entry:
    """Item of the manifest.

    frames: tracked frames of a finished item
    reason: cause of a failure, a sentence
    labels: files, frames and objects of the labels, and what was left out and why, see `summary_record`
    """

    name: str
    source: str
    state: State = "pending"
    frames: int = 0
    reason: str = ""
    labels: dict[str, Any] = field(default_factory=dict)


class Manifest:
    """Entries and their file. Only completion records decide whether an item is done, never the manifest."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        """Write the file. Raises CorrflowError."""
        self.path = path
        self.entries = {entry.name: entry for entry in entries}
        self._written = 0.0
        self.write()

    def set(
        self, name: str, state: State, frames: int = 0, reason: str = "", labels: dict[str, Any] | None = None
    ) -> None:
        """Set the state of an item. Raises CorrflowError."""
        entry = self.entries[name]
        entry.state, entry.frames, entry.reason, entry.labels = state, frames, reason, labels or {}
        if time.monotonic() - self._written > _INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the file. Raises CorrflowError."""
        items = [asdict(entry) for entry in self.entries.values()]
        write_file(self.path, json.dumps({"items": items}, indent=1, ensure_ascii=False) + "\n")
        self._written = time.monotonic()

    def count(self, state: State) -> int:
        """Return the number of items in a state."""
        return sum(entry.state == state for entry in self.entries.values())
