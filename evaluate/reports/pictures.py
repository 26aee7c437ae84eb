"""The frames where a method is worst, drawn: what it found against the truth."""

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

# BGR. Blue and orange are told apart by everyone; where both agree the picture keeps a light tint.
RIGHT, MISSED, WRONG = (150, 200, 110), (214, 114, 0), (20, 110, 240)
OPACITY = 0.55
PICTURE_WIDTH = 420
JPEG_QUALITY = 82


@dataclass(frozen=True)
class WorstFrame:
    """The frame on which an object fares worst, and its J."""

    sequence: str
    object_id: int
    frame: int
    region_similarity: float


def worst_frames(method: MethodReport, count: int) -> list[WorstFrame]:
    """The worst frame of each object, the worst of those first; of equally bad frames the earliest."""
    found = []
    for name, sequence in method.sequences.items():
        for object_id, score in sequence.objects.items():
            worst = int(np.argmin(score.region_similarity))
            found.append(WorstFrame(name, object_id, int(score.frames[worst]), float(score.region_similarity[worst])))
    return sorted(found, key=lambda item: (item.region_similarity, item.sequence, item.object_id))[:count]


def draw_comparison(image: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] uint8, BGR, with the pixels that agree, are missed and are wrong, and the truth's outline.

    found, true: [H, W] bool
    """
    painted = image.copy()
    for pixels, colour in ((found & true, RIGHT), (true & ~found, MISSED), (found & ~true, WRONG)):
        painted[pixels] = (OPACITY * np.array(colour) + (1 - OPACITY) * painted[pixels]).astype(np.uint8)
    outlines, _ = cv2.findContours(true.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(painted, outlines, -1, (255, 255, 255), max(1, image.shape[1] // 420), cv2.LINE_AA)
    return painted


def comparison_jpeg(method: MethodReport, sequences: Sequence[MaskSequence], worst: WorstFrame) -> str:
    """The picture of a worst frame as base64 JPEG; raises CorrflowError where a file cannot be read."""
    sequence = next(item for item in sequences if item.name == worst.sequence)
    assert method.masks is not None
    path = method.masks / sequence.name / f"{sequence.image_paths[worst.frame].stem}.png"
    truth = sequence.annotation(worst.frame)
    mask = read_indexed_png(path)
    if mask.max() == VOID and sequence.object_ids == (1,):
        mask = (mask == VOID).astype(np.uint8)
    image = sequence.image(worst.frame)
    picture = draw_comparison(image, (mask == worst.object_id) & (truth != VOID), (truth == worst.object_id))
    height = round(image.shape[0] * PICTURE_WIDTH / image.shape[1])
    small = cv2.resize(picture, (PICTURE_WIDTH, max(height, 1)), interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise CorrflowError(f"expected to encode a picture of {path}, and OpenCV could not")
    return base64.b64encode(encoded.tobytes()).decode()
