"""Labels of one video on the page: objects of its frames, saved files, and tracking from the displayed frame."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import dropwhile
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import numpy as np

from corrflow.atomic_files import write_errors, write_file
from corrflow.errors import CorrflowError, InputError
from corrflow.output_paths import fitting, unique_folder, unique_path
from corrflow.runtime.formats.background_writer import write_behind
from corrflow.runtime.formats.mask_png import write_mask_png
from corrflow.runtime.formats.overlay_video import VideoSink
from corrflow.runtime.live.object_editor import Frozen
from corrflow.runtime.live.prompt import Prompt, save_prompt
from corrflow.runtime.live.strokes import drawn_mask, parse_integer, parse_name, parse_object, parse_strokes
from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import (
    Frame,
    FrameResult,
    KeypointsObject,
    MaskObject,
    ObjectResult,
    TrackedObject,
    check_objects,
)
from corrflow.runtime.video.frame_reader import FrameReader
from corrflow.runtime.video.open_source import open_source
from corrflow.runtime.video.overlay import draw_overlay
from corrflow.runtime.video.prefetch import read_ahead
from corrflow.stopping import finish_files, seconds_left

_MAX_UNDO = 20
_CLOSING_SECONDS = 10.0
_STOP_SECONDS = 0.6  # for a step to end after a signal

_Objects = dict[int, TrackedObject]  # by id


class LabelApi:
    """Operations of corrflow-label. Any thread may call them; wrong arguments raise InputError.

    source:       what `open_source` takes
    frame:        index of the first frame on display
    folder:       folder of the saved files
    prompt_path:  file for --prompt-file of corrflow-track; None saves none
    open_tracker: opens the model once tracking starts
    """

    def __init__(
        self, source: str, frame: int, folder: Path, prompt_path: Path | None, open_tracker: Callable[[], Tracker]
    ) -> None:
        self.done = Event()
        self._source, self._folder, self._prompt_path, self._open_tracker = source, folder, prompt_path, open_tracker
        self._reader = FrameReader(source)
        self._frame = self._reader.read(frame)
        self._names = {self._frame.index: self._frame.name}
        self._labels: dict[int, _Objects] = {}  # by the index of the frame
        self._history: list[tuple[int, _Objects]] = []  # a frame's objects before each change
        self._paths: dict[Path, Path] = {}  # files of this session by their name without a number
        self.saved: list[Path] = []
        self.next_command = ""  # command line that tracks the saved labels; empty before the first save
        self._changes = self._saved_changes = 0
        self._run: TrackingRun | None = None
        self._lock = Lock()

    # What the page displays

    def state(self) -> dict[str, Any]:
        """Return what the page displays; `objects` are TrackedObject."""
        with self._lock:
            run = self._run
            return {
                "mode": "label",
                "name": self._reader.name,
                "frame": self._frame.index,
                "frame_count": self._reader.frame_count,
                "size": list(self._frame.image.shape[1::-1]),
                "objects": list(self._objects.values()),
                "image": f"{self._frame.index}-{self._changes}-{run.frames if run and run.running else ''}",
                "can_undo": bool(self._history),
                "tracking": None if run is None else run.record(),
                "saved": [str(path) for path in self.saved],
                "next": self.next_command,
            }

    def overlay(self) -> np.ndarray:
        """Draw the newest tracked frame while tracking runs, otherwise the displayed frame: [H, W, 3] uint8, BGR."""
        with self._lock:
            run = self._run
            result = run.newest if run is not None and run.running else None
            result = result or self._result()
        return draw_overlay(result)

    def seek(self, index: Any) -> None:
        """Display another frame."""
        index = parse_integer(index, "the index of a frame")
        with self._lock:
            self._seek(index)

    # Drawing

    def freeze(self) -> Frozen:
        """Return the displayed frame; its number is its index."""
        with self._lock:
            return Frozen(self._frame.index, self._result())

    def frozen(self, number: Any) -> Frozen:
        """Return the displayed frame, which `number` has to name."""
        frozen = self.freeze()
        if number != frozen.number:
            raise InputError(f"expected a drawing on frame {frozen.number}, got another frame; reload the page")
        return frozen

    def release(self, number: int) -> None:
        """Do nothing; the displayed frame stays."""

    def keep(self, number: int) -> None:
        """Do nothing; the displayed frame stays."""

    def mask(self, values: dict[str, Any], check: Callable[[], None] = lambda: None) -> np.ndarray:
        """Return the mask [H, W] bool of {"frozen": frame, "strokes": [...]}."""
        result = self.frozen(values.get("frozen")).result
        return drawn_mask(result.frame.image, result.mask, parse_strokes(values.get("strokes")), check)

    def submit(self, values: dict[str, Any], check: Callable[[], None] = lambda: None) -> int:
        """Add an object, or correct the one that "object" names; return its id. A new mask covers earlier masks.

        values: {"frozen": frame} and what `parse_object` reads
        """
        result = self.frozen(values.get("frozen")).result
        prompt = parse_object(values, result.frame.image, result.mask, check)
        with self._lock:
            free = next((number for number in range(1, 256) if number not in self._objects), 0)
            object_id = prompt.id or free
            if not object_id:
                raise InputError("expected at most 255 objects, got one more; remove an object first")
            prompt = replace(prompt, id=object_id, name=prompt.name or f"object {object_id}")
            check_objects([prompt], result.mask.shape, ())
            objects = {**self._objects, object_id: prompt}
            if isinstance(prompt, MaskObject):
                for other in self._objects.values():
                    if isinstance(other, MaskObject) and other.id != object_id and (other.mask & prompt.mask).any():
                        objects[other.id] = replace(other, mask=other.mask & ~prompt.mask)
                        if (other.mask <= prompt.mask).all():
                            raise InputError(f"expected pixels left of {other.name!r}, got a mask over all of it")
            self._change(objects)
        return object_id

    def rename(self, object_id: int, name: Any) -> None:
        """Rename an object."""
        name = parse_name(name) or f"object {object_id}"
        with self._lock:
            self._change({**self._objects, object_id: replace(self._object(object_id), name=name)})

    def remove(self, object_id: int) -> None:
        """Remove an object."""
        with self._lock:
            self._object(object_id)
            self._change({number: one for number, one in self._objects.items() if number != object_id})

    def undo(self) -> None:
        """Undo the last change, and display its frame."""
        with self._lock:
            if not self._history:
                raise InputError("expected a change to undo, got none")
            index, objects = self._history.pop()
            self._labels[index] = objects
            self._changes += 1
            self._seek(index)

    # Saving

    def save(self) -> list[Path]:
        """Save the objects of every labelled frame; return the paths.

        Labels of the first frame alone are NAME_mask.png and NAME_points.csv, for corrflow-track. Labels of other
        frames are NAME_labels/NAME/FRAME.png and NAME_labels/NAME.csv, for corrflow-batch. A file that this session
        did not write is never replaced: the new file or folder gets a number.
        """
        with self._lock:
            labels = {index: list(objects.values()) for index, objects in sorted(self._labels.items()) if objects}
            if not labels:
                raise InputError("expected an object to save, got none; draw one first")
            name, first_alone = self._reader.name, set(labels) == {0}
            folder = (
                self._folder if first_alone else self._own_path(self._folder / fitting(name, "_labels"), unique_folder)
            )
            source = f"./{self._source}" if self._source.startswith("-") else self._source
            command = ["corrflow-track", source]
            saved = []
            for index, objects in labels.items():
                if (mask := _indexed_mask(objects)) is not None:
                    path = folder / name / f"{self._names[index]}.png"
                    path = self._own_path(folder / fitting(name, "_mask.png")) if first_alone else path
                    write_mask_png(path, mask)
                    saved.append(path)
                    command += ["--init", str(path)]
            if table := _points_table(labels):
                path = self._own_path(folder / fitting(name, "_points.csv")) if first_alone else folder / f"{name}.csv"
                write_file(path, table)
                saved.append(path)
                command += ["--keypoints", str(path)]
            if not first_alone:
                command = ["corrflow-batch", source, "--labels", str(folder), "--out", fitting(name, "_results")]
            if self._prompt_path is not None:
                index = self._frame.index if self._objects else min(labels)
                path = self._own_path(self._prompt_path)
                save_prompt(Prompt(self._read(index).image, tuple(labels[index])), path)
                saved.append(path)
            self.saved, self.next_command, self._saved_changes = saved, shlex.join(command), self._changes
            return saved

    def save_changes(self) -> None:
        """Save if there are objects that are not saved yet."""
        if self.unsaved:
            self.save()

    @property
    def unsaved(self) -> bool:
        """True if objects changed since the last save."""
        return self._changes > self._saved_changes and any(self._labels.values())

    # Tracking

    def track(self) -> None:
        """Start tracking from the displayed frame to the end of the video, into NAME_tracked.mp4."""
        with self._lock:
            if self._run is not None and self._run.running:
                raise InputError("expected one tracking run at a time, got another; stop the first")
            if not self._objects:
                raise InputError("expected an object on this frame, got none; draw one first")
            start = self._frame.index
            suffix = f"_{self._frame.name}" if start else ""
            path = _reserved(self._folder / fitting(self._reader.name, f"{suffix}_tracked.mp4"))
            number = 1 if self._run is None else self._run.number + 1
            objects = list(self._objects.values())
            self._run = TrackingRun(number, self._source, start, objects, path, self._open_tracker)

    def stop_tracking(self) -> None:
        """End tracking early; the video holds the frames so far."""
        if self._run is not None:
            self._run.stop()

    def result_path(self) -> Path:
        """Return the overlay video of the last tracking run."""
        if self._run is None or self._run.running or not self._run.path.exists():
            raise InputError("expected a tracked video, got none yet; press Track")
        return self._run.path

    def close(self) -> None:
        """End tracking and close the video."""
        if self._run is not None:
            self._run.stop()
            left = seconds_left()
            self._run.thread.join(_CLOSING_SECONDS if left is None else min(left, _STOP_SECONDS))
            finish_files()  # of a step that goes on
        self._reader.close()

    # Under the lock

    @property
    def _objects(self) -> _Objects:
        return self._labels.get(self._frame.index, {})

    def _object(self, object_id: int) -> TrackedObject:
        if object_id not in self._objects:
            raise InputError(f"expected an object among {sorted(self._objects)}, got {object_id}; reload the page")
        return self._objects[object_id]

    def _change(self, objects: _Objects) -> None:
        self._history = [*self._history, (self._frame.index, self._objects)][-_MAX_UNDO:]
        self._labels[self._frame.index] = objects
        self._changes += 1

    def _seek(self, index: int) -> None:
        if index != self._frame.index:
            self._frame = self._read(index)
            self._names[index] = self._frame.name

    def _read(self, index: int) -> Frame:
        return self._frame if index == self._frame.index else self._reader.read(index)

    def _result(self) -> FrameResult:
        """Return the objects of the displayed frame as a tracker would."""
        objects = sorted(self._objects.values(), key=lambda one: one.id)
        mask = _indexed_mask(objects)
        if mask is None:
            mask = np.zeros(self._frame.image.shape[:2], np.uint8)
        return FrameResult(mask, tuple(map(_object_result, objects)), self._frame)

    def _own_path(self, path: Path, reserve: Callable[[Path], Path] = unique_path) -> Path:
        """Return this session's file or folder of that name, with a number if the name was taken."""
        if path not in self._paths:
            self._paths[path] = _reserved(path, reserve)
        return self._paths[path]


@dataclass
class TrackingRun:
    """One tracking run in a thread of its own, from a labelled frame to the end of the source."""

    number: int
    source: str
    start: int
    objects: list[TrackedObject]
    path: Path
    open_tracker: Callable[[], Tracker]

    def __post_init__(self) -> None:
        self.newest: FrameResult | None = None
        self.frames, self.total, self.error, self.running = 0, 0, "", True
        self._stop = Event()
        self.thread = Thread(target=self._run, name="corrflow-tracking", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Ask the run to end after its frame."""
        self._stop.set()

    def record(self) -> dict[str, Any]:
        """Return the run's progress for the page."""
        path = str(self.path) if not self.running and self.path.exists() else None
        progress = {"number": self.number, "running": self.running, "frames": self.frames, "total": self.total}
        return progress | {"path": path, "error": self.error}

    def _run(self) -> None:
        try:
            self._track()
        except CorrflowError as error:
            self.error = str(error)
        except Exception as error:  # a library's own error; the page displays it
            self.error = f"{type(error).__name__}: {error}"
        finally:
            with suppress(OSError):
                if not self.path.stat().st_size:  # the reserved name, without a video
                    self.path.unlink()
            self.running = False

    def _track(self) -> None:
        with self.open_tracker() as tracker, open_source(self.source) as source:
            self.total = max(0, (source.frame_count or 0) - self.start)
            rate = source.frames_per_second or NOMINAL_FRAMES_PER_SECOND
            begin = None
            with (
                write_behind([VideoSink(self.path, rate, source.sample_aspect_ratio)], close=True) as write,
                read_ahead(dropwhile(lambda frame: frame.index < self.start, source)) as frames,
            ):
                for frame in frames:
                    if self._stop.is_set():
                        break
                    begin = frame.time if begin is None else begin
                    frame = replace(frame, time=frame.time - begin)  # the video starts with the labelled frame
                    self.newest = tracker.step(frame) if self.frames else tracker.start(frame, self.objects)
                    write(self.newest)
                    self.frames += 1


def _object_result(prompt: TrackedObject) -> ObjectResult:
    if isinstance(prompt, KeypointsObject):
        certain = np.ones(len(prompt.points), np.float32)
        return ObjectResult(prompt.id, prompt.name, 1.0, True, None, prompt.points, prompt.point_names, certain)
    rows, columns = (np.flatnonzero(prompt.mask.any(axis)) for axis in (1, 0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return ObjectResult(prompt.id, prompt.name, 1.0, True, box)


def _indexed_mask(objects: list[TrackedObject]) -> np.ndarray | None:
    """Return the ids of the mask objects as [H, W] uint8, or None without a mask object."""
    mask: np.ndarray | None = None
    for one in objects:
        if isinstance(one, MaskObject):
            mask = np.zeros(one.mask.shape, np.uint8) if mask is None else mask
            mask[one.mask] = one.id
    return mask


def _points_table(labels: dict[int, list[TrackedObject]]) -> str:
    """Return the CSV name,x,y,object,frame of all keypoints, frame by index; empty without keypoints."""
    rows = []
    for index, objects in labels.items():
        names = [one.name for one in objects]
        for one in objects:
            if isinstance(one, KeypointsObject):
                name = one.name if names.count(one.name) == 1 else f"{one.name} {one.id}"  # a name is one object
                for point, (x, y) in zip(one.point_names, one.points, strict=True):
                    rows.append([point, f"{x:.2f}", f"{y:.2f}", name, index])
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([["name", "x", "y", "object", "frame"], *rows])
    return text.getvalue() if rows else ""


def _reserved(path: Path, reserve: Callable[[Path], Path] = unique_path) -> Path:
    """Reserve a free name at the path. Raises CorrflowError."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return reserve(path)
