"""Options of a tracker as plain data, which can be sent to another process."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from corrflow.runtime.tracking.tracker import Tracker


@dataclass(frozen=True)
class ModelOptions:
    """Arguments of `Tracker.from_model`; see there."""

    model: str | None = None
    backend: str = "auto"
    short_side: int | None = None
    memory_frames: int | None = None
    redetect: bool = True
    threads: int = 0

    def open(self) -> Tracker:
        """Open the model; the caller closes the tracker."""
        return Tracker.from_model(**asdict(self))
