"""Results of a frame from soft masks at its size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corrflow.runtime.tracking.geometry import indexed_mask
from corrflow.runtime.types import (
    MIN_POINT_CONFIDENCE,
    Annotation,
    Frame,
    FrameResult,
    KeypointsObject,
    MaskObject,
    ObjectResult,
    TrackedObject,
)


def frame_result(
    frame: Frame,
    size: tuple[int, int],
    ids: Sequence[int],
    soft_masks: Sequence[np.ndarray],
    objects: Sequence[ObjectResult],
) -> FrameResult:
    """Combine the mask objects' ids and soft masks [H, W] with every object's result.

    size: (height, width) of the frame, whose image may lie on a device
    """
    mask = indexed_mask(ids, soft_masks) if soft_masks else np.zeros(size, np.uint8)
    return FrameResult(mask, tuple(sorted(objects, key=lambda one: one.id)), frame)


def mask_result(prompt: MaskObject, soft_mask: np.ndarray, is_annotation: bool = False) -> ObjectResult:
    """Return the result of a mask object from its soft mask [H, W] float32 at the frame's size.

    is_annotation: True for the user's own label, whose polygons the result then has
    """
    mask = soft_mask > 0.5
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return absent_result(prompt)
    return ObjectResult(
        prompt.id,
        prompt.name,
        float(soft_mask[mask].mean(dtype=np.float64)),
        True,
        (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        track_id=prompt.track_id,
        category=prompt.category,
        is_annotation=is_annotation,
        polygons=prompt.polygons if is_annotation else (),
    )


def absent_result(prompt: Annotation, is_annotation: bool = False) -> ObjectResult:
    """Return the result of an object that is not in the picture."""
    return ObjectResult(
        prompt.id,
        prompt.name,
        0.0,
        False,
        track_id=prompt.track_id,
        category=prompt.category,
        is_annotation=is_annotation,
    )


def split_points(tracked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split tracked points [P, 3] float32 into points [P, 2] and confidences [P]."""
    return tracked[:, :2], tracked[:, 2]


def keypoints_result(
    prompt: KeypointsObject, points: np.ndarray, confidence: np.ndarray, annotated_points: tuple[str, ...] = ()
) -> ObjectResult:
    """Return the result of a keypoints object at points [P, 2] float32 in pixels.

    confidence:       [P], probability that each point is right; 0 for points out of the picture
    annotated_points: names of the points that are the user's own label
    """
    confidence = confidence.clip(0, 1).astype(np.float32)
    return ObjectResult(
        prompt.id,
        prompt.name,
        float(confidence.mean()),
        bool((confidence > MIN_POINT_CONFIDENCE).any()),
        points=points,
        point_names=prompt.point_names,
        point_confidence=confidence,
        track_id=prompt.track_id,
        category=prompt.category,
        is_annotation=bool(annotated_points),
        annotated_points=annotated_points,
    )


def prompt_result(frame: Frame, size: tuple[int, int], prompts: Sequence[TrackedObject]) -> FrameResult:
    """Return the prompts themselves as the result of the frame that they were given on."""
    masks = [prompt for prompt in prompts if isinstance(prompt, MaskObject)]
    objects = [
        mask_result(prompt, prompt.mask.astype(np.float32), True)
        if isinstance(prompt, MaskObject)
        else keypoints_result(
            prompt,
            prompt.points.astype(np.float32),
            np.ones(len(prompt.points), np.float32),
            () if prompt.is_prediction else prompt.point_names,
        )
        for prompt in prompts
    ]
    return frame_result(frame, size, [one.id for one in masks], [one.mask.astype(np.float32) for one in masks], objects)
