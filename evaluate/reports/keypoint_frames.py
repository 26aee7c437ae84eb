"""Pictures of the worst frames of tracked keypoints: true and tracked points over the frame, around one object."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.errors import CorrflowError
from corrflow.evaluate.keypoints import KeypointReport, KeypointResult
from corrflow.evaluate.metrics.keypoints import HIDDEN_BELOW, RIGHT_SHARE
from corrflow.runtime.video.open_source import open_source

# BGR; blue and orange differ for colour-blind readers too.
RIGHT, WRONG, TRUE = (150, 200, 110), (20, 110, 240), (255, 255, 255)
LONG_SIDE, SHORT_SIDE = 420, 315
JPEG_QUALITY = 82
_APART = 12  # pictures of an object are this part of the video apart


@dataclass(frozen=True)
class WorstPlace:
    """Object on a frame, with the fraction of its points that are right."""

    row: int
    object_name: str
    right: float


def worst_places(report: KeypointReport, result: KeypointResult, count: int) -> list[WorstPlace]:
    """Return the objects and frames with the fewest right points, then the largest errors; apart in time."""
    shown = report.is_scored & report.video.is_visible
    right = shown & (result.errors <= RIGHT_SHARE * report.length)
    # A point that is lost altogether is no worse than one across the picture.
    errors = np.where(shown, np.minimum(result.errors, 1e6), 0)
    candidates = []
    for name, columns in report.video.objects.items():
        total = shown[:, columns].sum(1)
        for row in np.flatnonzero((total > 0) & (right[:, columns].sum(1) < total)).tolist():
            share = right[row, columns].sum() / total[row]
            candidates.append((float(share), -float(errors[row, columns].sum() / total[row]), row, name))
    apart = (int(report.frames[-1]) - int(report.frames[0])) / _APART
    chosen: list[WorstPlace] = []
    for share, _, row, name in sorted(candidates):
        near = [
            one
            for one in chosen
            if one.object_name == name and abs(report.frames[one.row] - report.frames[row]) < apart
        ]
        if not near and len(chosen) < count:
            chosen.append(WorstPlace(row, name, share))
    return chosen


def worst_pictures(report: KeypointReport, count: int) -> dict[str, list[tuple[str, str]]]:
    """Return caption and JPEG in base64 of each worst place, by the method's label. The video is read once.

    Raises CorrflowError for a frame that cannot be read again.
    """
    places = {result.method.label: worst_places(report, result, count) for result in report.results}
    wanted = {int(report.frames[place.row]) for listed in places.values() for place in listed}
    pictures: dict[tuple[str, WorstPlace], str] = {}
    if wanted:
        with open_source(report.video.source) as source:
            for frame in source:
                for result in report.results:
                    for place in places[result.method.label]:
                        if report.frames[place.row] == frame.index:
                            pictures[result.method.label, place] = _jpeg(draw_place(report, result, place, frame.image))
                if frame.index >= max(wanted):
                    break
    several = len(report.video.objects) > 1
    return {
        label: [
            (
                f"{f'{place.object_name}, ' if several else ''}frame {report.frames[place.row]}:"
                f" {100 * place.right:.0f} % right",
                pictures[label, place],
            )
            for place in listed
        ]
        for label, listed in places.items()
        if listed
    }


def draw_place(report: KeypointReport, result: KeypointResult, place: WorstPlace, image: np.ndarray) -> np.ndarray:
    """Draw the points of an object over the part of the frame around it, [H, W, 3] uint8, BGR, 4:3 or upright."""
    columns = report.video.objects[place.object_name]
    columns = [k for k in columns if report.is_scored[place.row, k]]
    true, found = report.video.points[place.row, columns], result.tracked.positions[place.row, columns]
    is_upright = image.shape[0] > image.shape[1]
    size = (SHORT_SIDE, LONG_SIDE) if is_upright else (LONG_SIDE, SHORT_SIDE)
    scale, left, top = _part(np.concatenate([true, found]), report.length, image.shape, size)
    matrix = np.array([[scale, 0, -scale * left], [0, scale, -scale * top]], np.float64)
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.warpAffine(image, matrix, size, flags=smooth)

    def at(point: np.ndarray) -> tuple[int, int]:
        x, y = np.clip((point - (left, top)) * scale, -1e4, 1e4).round().astype(int).tolist()
        return x, y

    for k, start, end in zip(columns, true, found, strict=True):
        is_tracked, is_visible = bool(np.isfinite(end).all()), bool(np.isfinite(start).all())
        is_right = is_visible and result.errors[place.row, k] <= RIGHT_SHARE * report.length
        colour = RIGHT if is_right else WRONG
        if is_tracked and is_visible:
            cv2.line(picture, at(start), at(end), colour, 1, cv2.LINE_AA)
        if is_visible:
            cv2.circle(picture, at(start), 5, (0, 0, 0), 2, cv2.LINE_AA)
            cv2.circle(picture, at(start), 5, TRUE, 1, cv2.LINE_AA)
        if is_tracked:
            thickness = 1 if result.tracked.confidences[place.row, k] < HIDDEN_BELOW else cv2.FILLED
            cv2.circle(picture, at(end), 4, colour, thickness, cv2.LINE_AA)
    return picture


def _part(points: np.ndarray, length: float, shape: Sequence[int], size: tuple[int, int]) -> tuple[float, float, float]:
    """Return scale, and x and y of the top left corner, of the part of a frame with these points [N, 2].

    size: width and height of the picture
    """
    height, width = shape[:2]
    finite = points[np.isfinite(points).all(1)].clip(0, (width - 1, height - 1))
    low, high = finite.min(0) - length / 2, finite.max(0) + length / 2
    scale = float(min(size[0] / (high[0] - low[0]), size[1] / (high[1] - low[1]), 4.0))
    scale = max(scale, min(size[0] / width, size[1] / height))  # no smaller than the whole frame
    room = np.array([width, height]) - np.array(size) / scale  # negative where the frame is smaller
    corner = ((low + high) / 2 - np.array(size) / scale / 2).clip(0, np.maximum(room, 0))
    corner = np.where(room < 0, room / 2, corner)
    return float(scale), float(corner[0]), float(corner[1])


def _jpeg(picture: np.ndarray) -> str:
    done, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise CorrflowError("expected to encode a picture of the report, and OpenCV could not")
    return base64.b64encode(encoded.tobytes()).decode()
