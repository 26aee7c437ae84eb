"""What people change in a running session, whichever way they reach it: objects, the recording, the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.live.object_editor import Frozen
from corrflow.runtime.live.outputs.recorders import LiveVideoSink
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.live.reference import Prompt, save_prompt
from corrflow.runtime.live.session import Session
from corrflow.runtime.live.strokes import LONGEST_NAME, drawn_mask, parse_points, parse_strokes
from corrflow.runtime.types import KeypointsObject, MaskObject, TrackedObject

MOST_CLICKS = 64


class SessionApi:
    """Any thread may call; whatever is wrong with the arguments is an InputError.

    recording_path: where the record button writes; a taken name gets a number
    reference_path: where what is seen is kept
    """

    def __init__(self, session: Session, recording_path: Path, reference_path: Path) -> None:
        self._session, self._recording_path, self._reference_path = session, recording_path, reference_path
        self._output: SinkWorker | None = None
        self._lock = Lock()

    def frozen(self, number: Any) -> Frozen:
        """A frozen frame; its image and tracks do not change."""
        return self._session.call(lambda: self._session.editing.frozen(_whole(number, "the number of a frozen frame")))

    def release(self, number: int) -> None:
        """Let a frozen frame go, if it is still there."""
        self._session.call(lambda: self._session.editing.release(number))

    def mask(self, values: dict[str, Any]) -> np.ndarray:
        """What {"frozen": number, "strokes": [...]} means: [H, W] bool."""
        frozen = self.frozen(values.get("frozen"))
        return drawn_mask(frozen.image, frozen.tracks.mask, parse_strokes(values.get("strokes")))

    def give(self, values: dict[str, Any]) -> int:
        """Add an object, or correct the one named by "object"; returns its id.

        values: {"frozen": number, "strokes": [...] or "points": [[x, y], ...], "object": id or null, "name": text}
        """
        editing = self._session.editing
        number, name = _whole(values.get("frozen"), "the number of a frozen frame"), _name(values.get("name", ""))
        corrected = values.get("object")
        if corrected is not None and not 1 <= _whole(corrected, "the id of an object") <= 255:
            raise InputError("expected the id of an object from 1 to 255, got another; choose an object of the list")
        if values.get("points") is not None:
            points = parse_points(values["points"], MOST_CLICKS)
            names = tuple(str(index + 1) for index in range(len(points)))
            given: TrackedObject = KeypointsObject(corrected or 1, points, names, name)
        else:
            given = MaskObject(corrected or 1, self.mask(values), name)

        def hand_over() -> int:
            one = replace(given, id=corrected or editing.free_id())
            editing.give(number, one if one.name else replace(one, name=f"object {one.id}"))
            return one.id

        return self._session.call(hand_over)

    def rename(self, object_id: int, name: Any) -> None:
        text = _name(name)
        self._session.call(lambda: self._session.editing.rename(object_id, text))

    def remove(self, object_id: int) -> None:
        self._session.call(lambda: self._session.editing.remove(object_id))

    @property
    def recording(self) -> bool:
        return self._output is not None

    def record(self, on: bool) -> bool:
        """Begin or end a recording; returns whether there is one now."""
        with self._lock:
            if on and self._output is None:
                self._output = SinkWorker(str(self._recording_path), lambda: LiveVideoSink(self._recording_path))
                self._session.outputs.append(self._output)
            elif not on and self._output is not None:
                output, self._output = self._output, None
                self._session.outputs.remove(output)
                output.close(5.0)
            return self.recording

    def save_prompt(self) -> dict[str, Any]:
        """Keep the newest frame with all objects that are seen on it, for --prompt-file."""
        result = self._session.latest.result
        objects: list[TrackedObject] = []
        hidden = []
        for track in result.tracks.objects if result is not None else ():
            if track.visible and track.points is not None:
                objects.append(KeypointsObject(track.id, track.points, track.point_names, track.name))
            elif track.visible and result is not None and (mask := result.tracks.mask == track.id).any():
                objects.append(MaskObject(track.id, mask, track.name))
            else:
                hidden.append(track.name)
        if result is None or not objects:
            raise InputError("expected an object that is seen, got none to keep; draw one first")
        with self._lock:
            save_prompt(Prompt(result.frame.image, tuple(objects)), self._reference_path)
        return {"path": str(self._reference_path), "objects": len(objects), "hidden": hidden}


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise InputError(f"expected {what}, got something else; freeze the stream again")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        raise InputError(f"expected a name of at most {LONGEST_NAME} letters, got another; choose a shorter one")
    return value.strip()
