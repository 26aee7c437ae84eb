"""Operations of users on a running session: objects, the recording, the saved prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.live.object_editor import Frozen
from corrflow.runtime.live.outputs.recorders import LiveVideoSink
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.live.prompt import Prompt, save_prompt
from corrflow.runtime.live.session import Session
from corrflow.runtime.live.strokes import drawn_mask, parse_integer, parse_name, parse_object, parse_strokes
from corrflow.runtime.types import KeypointsObject, MaskObject, TrackedObject


class SessionApi:
    """Operations that any thread may call. Wrong arguments raise InputError.

    recording_path: file of the record button; a taken name gets a number
    prompt_path:    file of `save_prompt`
    """

    def __init__(self, session: Session, recording_path: Path, prompt_path: Path) -> None:
        self._session, self._recording_path, self._prompt_path = session, recording_path, prompt_path
        self._recording: SinkWorker | None = None
        self._lock = Lock()

    def freeze(self) -> Frozen:
        """Freeze the newest frame. Raises CorrflowError before the first frame."""
        return self._session.freeze()

    def frozen(self, number: Any) -> Frozen:
        """Return a frozen frame, whose image and objects do not change."""
        number = parse_integer(number, "the number of a frozen frame")
        return self._session.call(lambda: self._session.editing.frozen(number))

    def release(self, number: int) -> None:
        """Forget a frozen frame, if there is one of that number."""
        self._session.call(lambda: self._session.editing.release(number))

    def keep(self, number: int) -> None:
        """Note that a frozen frame is still being drawn on."""
        self._session.editing.keep(number)

    def mask(self, values: dict[str, Any], check: Callable[[], None] = lambda: None) -> np.ndarray:
        """Return the mask [H, W] bool of {"frozen": number, "strokes": [...]}."""
        result = self.frozen(values.get("frozen")).result
        return drawn_mask(result.frame.image, result.mask, parse_strokes(values.get("strokes")), check)

    def submit(self, values: dict[str, Any], check: Callable[[], None] = lambda: None) -> int:
        """Add an object, or correct the one that "object" names; return its id.

        values: {"frozen": number} and what `parse_object` reads
        """
        frozen, editing = self.frozen(values.get("frozen")), self._session.editing
        prompt = parse_object(values, frozen.result.frame.image, frozen.result.mask, check)

        def add() -> int:
            object_id = prompt.id or editing.free_id()
            editing.submit(frozen.number, replace(prompt, id=object_id, name=prompt.name or f"object {object_id}"))
            return object_id

        return self._session.call(add)

    def rename(self, object_id: int, name: Any) -> None:
        """Rename an object."""
        text = parse_name(name)
        self._session.call(lambda: self._session.editing.rename(object_id, text))

    def remove(self, object_id: int) -> None:
        """Stop tracking an object."""
        self._session.call(lambda: self._session.editing.remove(object_id))

    @property
    def recording(self) -> bool:
        """True while a recording is written."""
        return self._recording is not None

    def record(self, on: bool) -> bool:
        """Start or end a recording; return the new value of `recording`."""
        with self._lock:
            if on and self._recording is None:
                self._recording = SinkWorker(str(self._recording_path), lambda: LiveVideoSink(self._recording_path))
                self._session.outputs.append(self._recording)
            elif not on and self._recording is not None:
                recording, self._recording = self._recording, None
                self._session.outputs.remove(recording)
                recording.close(5.0)
            return self.recording

    def save_prompt(self) -> dict[str, Any]:
        """Save the newest frame with all visible objects, for --prompt-file."""
        result = self._session.latest.result
        objects: list[TrackedObject] = []
        hidden = []
        for one in result.objects if result is not None else ():
            if one.visible and one.points is not None:
                objects.append(KeypointsObject(one.id, one.points, one.point_names, one.name))
            elif one.visible and result is not None and (mask := result.mask == one.id).any():
                objects.append(MaskObject(one.id, mask, one.name))
            else:
                hidden.append(one.name)
        if result is None or not objects:
            raise InputError("expected a visible object to save, got none; draw one first")
        with self._lock:
            save_prompt(Prompt(result.frame.image, tuple(objects)), self._prompt_path)
        return {"path": str(self._prompt_path), "objects": len(objects), "hidden": hidden}
