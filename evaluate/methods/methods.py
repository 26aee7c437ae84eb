"""Ways of making masks for a sequence: trackers with any encoder, baselines without one, and masks from a folder.

Each is plain data that can be sent to a worker process, and describes itself for reports and for the key of a result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import VOID, MaskSequence, distinct
from corrflow.evaluate.methods.encoders import LabBackend, OnnxEncoder, OnnxEncoderBackend
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.formats.mask_png import read_indexed_png
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.geometry import indexed_mask
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject


@dataclass(frozen=True)
class MaskPrediction:
    """A mask [H, W] uint8 of object ids, and the seconds it took; None where nothing was computed."""

    mask: np.ndarray
    seconds: float | None = None


class MaskPredictor(Protocol):
    """Makes the masks of a sequence."""

    def describe(self) -> dict[str, Any]:
        """What the masks depend on besides the sequence, JSON-ready, with the hash of every file."""
        ...

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        """One per frame, in order; an object is in it from the frame on that it is given on."""
        ...


@dataclass(frozen=True)
class Identity:
    """Repeats the given masks: what a score is worth without any tracking."""

    def describe(self) -> dict[str, Any]:
        return {"kind": "identity"}

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        mask = np.zeros(sequence.size(0), np.uint8)
        for index in range(len(sequence)):
            mask = _with_given(mask, sequence.objects(index))
            yield MaskPrediction(mask)


@dataclass(frozen=True)
class FlowWarp:
    """Warps each object's soft label from frame to frame by dense optical flow (OpenCV's DIS, medium preset).

    The flow runs from a frame back to the one before it, so that every pixel looks up where it came from.
    """

    def describe(self) -> dict[str, Any]:
        return {"kind": "flow", "opencv": cv2.__version__, "flow": "DIS, medium preset, backward"}

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        # OpenCV reads 0 as "no threading" and a negative number as its default, every core.
        cv2.setNumThreads(threads or -1)
        # OpenCV's type stubs do not have it.
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore[reportAttributeAccessIssue]
        ids: list[int] = []
        labels = np.zeros((0, *sequence.size(0)), np.float32)
        before = np.zeros(0, np.uint8)
        for frame in sequence.frames():
            begin = time.perf_counter()
            grey = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)
            if frame.index and ids:
                back = flow.calc(grey, before, np.zeros((*grey.shape, 2), np.float32))
                y, x = np.mgrid[: grey.shape[0], : grey.shape[1]].astype(np.float32)
                labels = np.stack(
                    [cv2.remap(label, x + back[..., 0], y + back[..., 1], cv2.INTER_LINEAR) for label in labels]
                )
            seconds = time.perf_counter() - begin
            given = sequence.objects(frame.index)
            ids += [item.id for item in given]
            labels = np.concatenate([labels, *(item.mask[None].astype(np.float32) for item in given)])
            before = grey
            yield MaskPrediction(_with_given(indexed_mask(ids, labels), given), seconds if frame.index else None)


class FeatureExtractor(Protocol):
    """Where a tracker's features come from."""

    def describe(self) -> dict[str, Any]: ...

    def open(self, settings: TrackingSettings, threads: int) -> Backend: ...


@dataclass(frozen=True)
class ArtifactEncoder:
    """An artifact's own encoder."""

    path: Path

    def describe(self) -> dict[str, Any]:
        artifact = load_artifact(self.path)
        return {"kind": "artifact", "path": str(self.path), **artifact.description}

    def open(self, settings: TrackingSettings, threads: int) -> Backend:
        return open_backend("auto", load_artifact(self.path), threads)


@dataclass(frozen=True)
class LabPatches:
    """Raw Lab patches."""

    def describe(self) -> dict[str, Any]:
        return {"kind": "lab", "name": "lab"}

    def open(self, settings: TrackingSettings, threads: int) -> Backend:
        return LabBackend("lab", settings, {}, threads)


@dataclass(frozen=True)
class NamedOnnx:
    """An ONNX encoder that the user named."""

    encoder: OnnxEncoder

    def describe(self) -> dict[str, Any]:
        options = {name: value for name, value in asdict(self.encoder).items() if name != "path"}
        return {
            "kind": "encoder",
            "name": self.encoder.path.stem,
            "path": str(self.encoder.path),
            "sha256": self.encoder.sha256,
            **options,
        }

    def open(self, settings: TrackingSettings, threads: int) -> Backend:
        return OnnxEncoderBackend(self.encoder, settings, threads)


@dataclass(frozen=True)
class TrackerMethod:
    """The tracker on an encoder's features.

    watched: whether strays are dropped and objects taken for lost and found again, where the back end can, as
             corrflow-track does it
    """

    encoder: FeatureExtractor
    settings: TrackingSettings
    redetect: bool = True

    def describe(self) -> dict[str, Any]:
        return {**self.encoder.describe(), "settings": asdict(self.settings), "redetect": self.redetect}

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        backend = self.encoder.open(self.settings, threads)
        try:
            presence = occlusion_settings_for(backend, self.settings) if self.redetect else None
            tracker = Tracker(backend, self.settings, presence)
            for frame in sequence.frames():
                given = sequence.objects(frame.index)
                if frame.index == 0:
                    yield MaskPrediction(tracker.start(frame.image, given).mask)
                    continue
                begin = time.perf_counter()
                mask = tracker.step(frame.image).mask
                if given:
                    tracker.add(given)
                yield MaskPrediction(_with_given(mask, given), time.perf_counter() - begin)
        finally:
            backend.close()


@dataclass(frozen=True)
class Predictions:
    """Masks made by anything: FOLDER/<sequence>/<frame>.png, object ids or 0 and 255 as the truth has them.

    The first frame, which is given, may be missing. Raises InputError, naming the file, for a frame that is missing or
    cut short, of another size than the truth, or with an object id that the truth does not have.
    """

    folder: Path

    def describe(self) -> dict[str, Any]:
        return {"kind": "predictions", "path": str(self.folder)}

    def check(self, sequence: MaskSequence) -> None:
        """Raise InputError where frames are missing, before anything is read."""
        folder = self.folder / sequence.name
        if not folder.is_dir():
            raise InputError(f"expected a folder of masks for sequence {sequence.name}, found none at {folder}")
        needed = sorted({index for frames in sequence.scored.values() for index in frames})
        names = [f"{sequence.image_paths[index].stem}.png" for index in needed]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            raise InputError(
                f"expected a mask for each of the {len(names)} scored frames in {folder}, missing"
                f" {', '.join(missing[:4])}{more}; complete the predictions"
            )

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        self.check(sequence)
        scored = {index for frames in sequence.scored.values() for index in frames}
        known = {0, *sequence.object_ids}
        mask = np.zeros(sequence.size(0), np.uint8)
        for index in range(len(sequence)):
            if index in scored:
                mask = self._read(sequence, index, known)
            else:
                mask = _with_given(np.zeros_like(mask), sequence.objects(index))
            yield MaskPrediction(mask)

    def _read(self, sequence: MaskSequence, index: int, known: set[int]) -> np.ndarray:
        path = self.folder / sequence.name / f"{sequence.image_paths[index].stem}.png"
        mask = read_indexed_png(path)
        height, width = sequence.size(index)
        if mask.shape != (height, width):
            raise InputError(
                f"expected a mask of the truth's size {width}x{height}, got {mask.shape[1]}x{mask.shape[0]} in {path};"
                " write masks at the size of the frames"
            )
        found = set(distinct(mask))
        if found <= {0, VOID} and known == {0, 1}:
            return (mask == VOID).astype(np.uint8)
        strange = sorted(found - known)
        if strange:
            raise InputError(
                f"expected the truth's object ids {sorted(known - {0})}, got {strange[:8]} in {path};"
                " give the objects the ids of the first frame's mask"
            )
        return mask


def _with_given(mask: np.ndarray, given: tuple[MaskObject, ...]) -> np.ndarray:
    """A mask with the objects given on its frame drawn in, as they were given."""
    if not given:
        return mask
    drawn = mask.copy()
    for item in given:
        drawn[item.mask] = item.id
    return drawn
