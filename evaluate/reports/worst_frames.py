"""Images of a method's worst frames: prediction and truth, drawn over the frame."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from corrflow.errors import CorrflowError
from corrflow.evaluate.datasets.masks import VOID, MaskSequence
from corrflow.evaluate.reports.report import MethodReport
from corrflow.runtime.formats.mask_png import read_indexed_png

# BGR; blue and orange differ for colour-blind readers too. Correct pixels have a light tint.
CORRECT, MISSED, FALSE = (150, 200, 110), (214, 114, 0), (20, 110, 240)
OPACITY = 0.55
IMAGE_WIDTH = 420
JPEG_QUALITY = 82


@dataclass(frozen=True)
class WorstFrame:
    """Frame with the lowest J of an object."""

    sequence: str
    object_id: int
    frame: int
    region_similarity: float


def worst_frames(method: MethodReport, count: int) -> list[WorstFrame]:
    """Return the worst frame of each object, by ascending J; the earliest of equally bad frames."""
    frames = []
    for name, sequence in method.sequences.items():
        for object_id, score in sequence.objects.items():
            worst = int(np.argmin(score.region_similarity))
            frames.append(WorstFrame(name, object_id, int(score.frames[worst]), float(score.region_similarity[worst])))
    return sorted(frames, key=lambda item: (item.region_similarity, item.sequence, item.object_id))[:count]


def draw_comparison(image: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Draw correct, missed and false pixels, and the true contour, over an image [H, W, 3] uint8, BGR.

    predicted, true: [H, W] bool
    """
    painted = image.copy()
    for pixels, colour in ((predicted & true, CORRECT), (true & ~predicted, MISSED), (predicted & ~true, FALSE)):
        painted[pixels] = (OPACITY * np.array(colour) + (1 - OPACITY) * painted[pixels]).astype(np.uint8)
    contours, _ = cv2.findContours(true.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(painted, contours, -1, (255, 255, 255), max(1, image.shape[1] // 420), cv2.LINE_AA)
    return painted


def comparison_jpeg(method: MethodReport, sequences: Sequence[MaskSequence], worst: WorstFrame) -> str:
    """Draw a worst frame as JPEG in base64. Raises CorrflowError for a file that cannot be read."""
    sequence = next(item for item in sequences if item.name == worst.sequence)
    assert method.masks is not None
    path = method.masks / sequence.name / f"{sequence.image_paths[worst.frame].stem}.png"
    truth = sequence.annotation(worst.frame)
    mask = read_indexed_png(path)
    if mask.max() == VOID and sequence.object_ids == (1,):
        mask = (mask == VOID).astype(np.uint8)
    image = sequence.image(worst.frame)
    comparison = draw_comparison(image, (mask == worst.object_id) & (truth != VOID), (truth == worst.object_id))
    height = round(image.shape[0] * IMAGE_WIDTH / image.shape[1])
    small = cv2.resize(comparison, (IMAGE_WIDTH, max(height, 1)), interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise CorrflowError(f"expected to encode an image of {path}, and OpenCV could not")
    return base64.b64encode(encoded.tobytes()).decode()
