"""Predictors of a sequence's masks: trackers with any features, baselines, and masks from a folder.

Predictors are plain data for worker processes. Their descriptions go into reports and into the keys of cached results.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from corrflow.errors import InputError
from corrflow.evaluate.datasets.masks import VOID, MaskSequence, distinct
from corrflow.evaluate.methods.encoders import LabBackend, OnnxEncoderBackend
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.base import Backend
from corrflow.runtime.backends.onnx_encoder import OnnxEncoder
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.formats.mask_png import read_indexed_png
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.geometry import indexed_mask
from corrflow.runtime.tracking.occlusion import OcclusionSettings, occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject


@dataclass(frozen=True)
class MaskPrediction:
    """Predicted mask [H, W] uint8 of object ids, and the CPU seconds of all threads; None for no computation."""

    mask: np.ndarray
    cpu_seconds: float | None = None


class MaskPredictor(Protocol):
    """Predictor of the masks of a sequence."""

    def describe(self) -> dict[str, Any]:
        """Return all that the masks depend on besides the sequence, as JSON values, with the hash of every file."""
        ...

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        """Predict one mask per frame, in order. An object is in the masks from its prompted frame on."""
        ...


@dataclass(frozen=True)
class Identity:
    """Baseline without tracking: the prompted masks, repeated on every frame."""

    def describe(self) -> dict[str, Any]:
        return {"kind": "identity"}

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        mask = np.zeros(sequence.size(0), np.uint8)
        for index in range(len(sequence)):
            mask = _with_prompts(mask, sequence.prompts(index))
            yield MaskPrediction(mask)


@dataclass(frozen=True)
class FlowWarp:
    """Baseline that warps each object's soft mask by dense optical flow (OpenCV's DIS, medium preset).

    The flow is from each frame back to the previous frame, so that every pixel of the frame has a source.
    """

    def describe(self) -> dict[str, Any]:
        return {"kind": "flow", "opencv": cv2.__version__, "flow": "DIS, medium preset, backward"}

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        # For OpenCV 0 means no threading, and a negative number means every core.
        cv2.setNumThreads(threads or -1)
        # OpenCV's type stubs lack this function.
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore[reportAttributeAccessIssue]
        ids: list[int] = []
        soft_masks = np.zeros((0, *sequence.size(0)), np.float32)
        previous = np.zeros(0, np.uint8)
        for frame in sequence.frames():
            begin = time.process_time()
            grey = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)
            if frame.index and ids:
                back = flow.calc(grey, previous, np.zeros((*grey.shape, 2), np.float32))
                y, x = np.mgrid[: grey.shape[0], : grey.shape[1]].astype(np.float32)
                soft_masks = np.stack(
                    [cv2.remap(mask, x + back[..., 0], y + back[..., 1], cv2.INTER_LINEAR) for mask in soft_masks]
                )
            seconds = time.process_time() - begin
            prompts = sequence.prompts(frame.index)
            ids += [prompt.id for prompt in prompts]
            soft_masks = np.concatenate([soft_masks, *(prompt.mask[None].astype(np.float32) for prompt in prompts)])
            previous = grey
            mask = _with_prompts(indexed_mask(ids, soft_masks), prompts)
            yield MaskPrediction(mask, seconds if frame.index else None)


@dataclass(frozen=True)
class LucasKanade:
    """Baseline for points alone: pyramidal Lucas-Kanade, chained from frame to frame.

    A point is lost for good once the way forward and back misses its start by more than `max_error` pixels. Its
    position is chained further. The check is from Kalal et al., "Forward-Backward Error" (2010).

    window: side of the window in pixels
    levels: highest level of the pyramid, where 0 is the image itself; OpenCV's defaults for both
    """

    window: int = 21
    levels: int = 3
    max_error: float = 1.0

    def describe(self) -> dict[str, Any]:
        return {"kind": "lk", "opencv": cv2.__version__, **asdict(self)}

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        raise InputError("expected a method that predicts masks, got lk; use it where points are tracked")

    def step(self, previous: np.ndarray, grey: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points [P, 2] of one grey image in the next one, and [P] bool: True where they are found."""
        start = points.astype(np.float32)[:, None]
        # OpenCV's type stubs want an output array, which None makes.
        track: Any = cv2.calcOpticalFlowPyrLK
        options = {"winSize": (self.window, self.window), "maxLevel": self.levels}
        moved, found, _ = track(previous, grey, start, None, **options)
        back, found_back, _ = track(grey, previous, moved, None, **options)
        error = np.linalg.norm(back - start, axis=-1)[:, 0]
        is_found = (found[:, 0] > 0) & (found_back[:, 0] > 0) & (error <= self.max_error)
        return np.where(found > 0, moved[:, 0].astype(np.float64), points), is_found


class FeatureExtractor(Protocol):
    """Source of a tracker's features."""

    def describe(self) -> dict[str, Any]:
        """Return all that the features depend on, as JSON values."""
        ...

    def open(self, settings: TrackingSettings, threads: int) -> Backend:
        """Open a backend that encodes frames with these features."""
        ...


@dataclass(frozen=True)
class ArtifactEncoder:
    """A model's own encoder."""

    path: Path

    def describe(self) -> dict[str, Any]:
        artifact = load_artifact(self.path)
        return {"kind": "artifact", "path": str(self.path), **artifact.description}

    def open(self, settings: TrackingSettings, threads: int) -> Backend:
        return open_backend("auto", load_artifact(self.path), threads)


@dataclass(frozen=True)
class LabPatches:
    """Raw Lab patches; see `LabBackend`."""

    def describe(self) -> dict[str, Any]:
        return {"kind": "lab", "name": "lab"}

    def open(self, settings: TrackingSettings, threads: int) -> Backend:
        return LabBackend("lab", settings, {}, threads)


@dataclass(frozen=True)
class OnnxFeatures:
    """User's encoder in ONNX format."""

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
    """The tracker with features of any source.

    redetect:  handle occlusion as corrflow-track does, where the backend supports it
    occlusion: thresholds of occlusion handling
    """

    encoder: FeatureExtractor
    settings: TrackingSettings
    redetect: bool = True
    occlusion: OcclusionSettings = field(default_factory=OcclusionSettings)

    def describe(self) -> dict[str, Any]:
        description = {**self.encoder.describe(), "settings": asdict(self.settings), "redetect": self.redetect}
        if self.redetect and self.occlusion != OcclusionSettings():
            description["occlusion"] = asdict(self.occlusion)
        return description

    def tracker(self, backend: Backend) -> Tracker:
        """Build a tracker on a backend that `encoder` opened."""
        occlusion = occlusion_settings_for(backend, self.settings, self.occlusion) if self.redetect else None
        return Tracker(backend, self.settings, occlusion)

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        with self.tracker(self.encoder.open(self.settings, threads)) as tracker:
            for frame in sequence.frames():
                prompts = sequence.prompts(frame.index)
                if frame.index == 0:
                    yield MaskPrediction(tracker.start(frame.image, prompts).mask)
                    continue
                begin = time.process_time()
                mask = tracker.step(frame.image).mask
                if prompts:
                    tracker.add(prompts)
                yield MaskPrediction(_with_prompts(mask, prompts), time.process_time() - begin)


@dataclass(frozen=True)
class Predictions:
    """Masks from a folder: FOLDER/<sequence>/<frame>.png with the truth's object ids, or with 0 and 255.

    Frames without a score may be missing. Raises InputError, which names the file, for a scored mask that is missing
    or invalid. A valid mask can be decoded, and has the truth's size and object ids.
    """

    folder: Path

    def describe(self) -> dict[str, Any]:
        return {"kind": "predictions", "path": str(self.folder)}

    def check(self, sequence: MaskSequence) -> None:
        """Raise InputError for missing frames, before any mask is read."""
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
        ids = {0, *sequence.object_ids}
        mask = np.zeros(sequence.size(0), np.uint8)
        for index in range(len(sequence)):
            if index in scored:
                mask = self._read(sequence, index, ids)
            else:
                mask = _with_prompts(np.zeros_like(mask), sequence.prompts(index))
            yield MaskPrediction(mask)

    def _read(self, sequence: MaskSequence, index: int, ids: set[int]) -> np.ndarray:
        path = self.folder / sequence.name / f"{sequence.image_paths[index].stem}.png"
        mask = read_indexed_png(path)
        height, width = sequence.size(index)
        if mask.shape != (height, width):
            raise InputError(
                f"expected a mask of the truth's size {width}x{height}, got {mask.shape[1]}x{mask.shape[0]} in {path};"
                " write masks at the size of the frames"
            )
        values = set(distinct(mask))
        if values <= {0, VOID} and ids == {0, 1}:
            return (mask == VOID).astype(np.uint8)
        unknown = sorted(values - ids)
        if unknown:
            raise InputError(
                f"expected the truth's object ids {sorted(ids - {0})}, got {unknown[:8]} in {path};"
                " give the objects the ids of the first frame's mask"
            )
        return mask


def _with_prompts(mask: np.ndarray, prompts: tuple[MaskObject, ...]) -> np.ndarray:
    """Return a frame's mask with the frame's prompts drawn over it."""
    if not prompts:
        return mask
    drawn = mask.copy()
    for prompt in prompts:
        drawn[prompt.mask] = prompt.id
    return drawn
