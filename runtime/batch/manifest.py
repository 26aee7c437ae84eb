"""manifest.json: the state of every item of a batch, for people and for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from corrflow.atomic_files import write_file

State = Literal["pending", "running", "done", "failed"]
_PAUSE = 1.0  # seconds between two versions of the file; thousands of items are not written once for each


@dataclass
class Entry:
    """frames: tracked, of a finished item; reason: why one failed, a sentence."""

    name: str
    source: str
    state: State = "pending"
    frames: int = 0
    reason: str = ""


class Manifest:
    """Holds the entries and writes them, whole, by renaming. What is done is decided by the results, never by this."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self.path = path
        self.entries = {entry.name: entry for entry in entries}
        self._written = 0.0
        self.write()

    def set(self, name: str, state: State, frames: int = 0, reason: str = "") -> None:
        entry = self.entries[name]
        entry.state, entry.frames, entry.reason = state, frames, reason
        if time.monotonic() - self._written > _PAUSE:
            self.write()

    def write(self) -> None:
        """Raises OSError where the disk fails."""
        items = [asdict(entry) for entry in self.entries.values()]
        write_file(self.path, json.dumps({"items": items}, indent=1, ensure_ascii=False) + "\n", exclusive=True)
        self._written = time.monotonic()

    def count(self, state: State) -> int:
        return sum(entry.state == state for entry in self.entries.values())
