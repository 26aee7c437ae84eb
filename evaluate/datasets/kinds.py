"""Kinds of difficulty of annotated sequences, measured on true masks and frames alone, never on scores.

| attribute      | measure                                                                                | from |
|----------------|----------------------------------------------------------------------------------------|------|
| new appearance | share of the object's colours that the first frame's object lacks; mean, second half    | 0.3  |
| occlusion      | 1 - area / the smaller of the largest areas within 15 frames before and after; maximum | 0.33 |
| look-alikes    | overlap of the colours of the object and of its surroundings; mean                     | 0.4  |
| thin parts     | share of the area in parts that are thinner than 9 pixels at 480 rows; mean            | 0.06 |
| scale change   | ratio of the areas of the 95th and the 5th percentile, without frames of occlusion     | 2.5  |
| fast motion    | motion of the centroid per frame / sqrt(area); mean                                    | 0.06 |

A sequence has an attribute if one of its objects reaches the threshold. Colours are histograms in Lab of 8 x 16 x 16
bins, and their overlap is the sum of the smaller values. The surroundings are the other pixels within sqrt(area) of
the object, without a rim of four pixels.

Occlusion that does not come and go, such as by a fence, is not measured. Look-alikes are measured by colour alone, so
camouflage counts too. New appearance by a change of light counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from corrflow.evaluate.datasets.masks import MaskSequence

THRESHOLDS = {
    "new appearance": 0.3,
    "occlusion": 0.33,
    "look-alikes": 0.4,
    "thin parts": 0.06,
    "scale change": 2.5,
    "fast motion": 0.06,
}
"""Smallest value of each measure at which a sequence has the attribute."""

DIP_FRAMES = 15
"""Frames before and after an occlusion in which the object is in view."""

COLOUR_EVERY = 3
"""Distance of the frames on which colours and thin parts are measured."""

_BINS = (8, 16, 16)


@dataclass
class _ObjectMeasures:
    """Measurements of one object, frame by frame: areas and centroids of all frames, other lists of some frames."""

    areas: list[float] = field(default_factory=list)
    centroids: list[tuple[float, float]] = field(default_factory=list)
    thin: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    first_colours: np.ndarray | None = None

    def add(self, mask: np.ndarray, image: np.ndarray | None) -> None:
        """Add the next frame's mask [H, W] bool; an image [H, W, 3] uint8 if colours are measured on this frame."""
        area = float(np.count_nonzero(mask))
        self.areas.append(area)
        if not area:
            self.centroids.append((np.nan, np.nan))
            return
        moments = cv2.moments(mask.view(np.uint8), binaryImage=True)
        self.centroids.append((moments["m10"] / area, moments["m01"] / area))
        if image is not None:
            self._add_colours(mask, image, area)

    def _add_colours(self, mask: np.ndarray, image: np.ndarray, area: float) -> None:
        reach = int(max(16, np.sqrt(area)))
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        box = np.s_[max(y - reach, 0) : y + height + reach, max(x - reach, 0) : x + width + reach]
        inside = np.ascontiguousarray(mask[box]).view(np.uint8)
        distance = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
        surroundings = ((distance > 4) & (distance <= reach)).view(np.uint8)
        lab = cv2.cvtColor(np.ascontiguousarray(image[box]), cv2.COLOR_BGR2Lab)
        colours = _colours(lab, inside)
        self.overlap.append(float(np.minimum(colours, _colours(lab, surroundings)).sum()))
        if self.first_colours is None:
            self.first_colours = colours
        self.new.append(1 - float(np.minimum(colours, self.first_colours).sum()))
        radius = max(1, round(4 * min(mask.shape) / 480))
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        self.thin.append(1 - np.count_nonzero(cv2.morphologyEx(inside, cv2.MORPH_OPEN, disk)) / area)

    def values(self) -> dict[str, float]:
        """Return the value of each measure of `THRESHOLDS`."""
        areas = np.array(self.areas)
        dips = area_dips(areas)
        low, high = np.percentile(areas[(areas > 0) & (dips < THRESHOLDS["occlusion"])], [5, 95])
        steps = np.linalg.norm(np.diff(np.array(self.centroids), axis=0), axis=1) / np.sqrt(np.maximum(areas[:-1], 1))
        steps = steps[np.isfinite(steps)]
        return {
            "new appearance": float(np.mean(self.new[len(self.new) // 2 :])),
            "occlusion": float(dips.max()),
            "look-alikes": float(np.mean(self.overlap)),
            "thin parts": float(np.mean(self.thin)),
            "scale change": float(high / low),
            "fast motion": float(np.mean(steps)) if len(steps) else 0.0,
        }


def measure_kinds(sequence: MaskSequence) -> dict[str, float]:
    """Measure a sequence with a mask on every frame: the largest value of its objects, by attribute."""
    measures = {object_id: _ObjectMeasures() for object_id in sequence.object_ids}
    for index in range(len(sequence)):
        mask = sequence.annotation(index)
        image = sequence.image(index) if index % COLOUR_EVERY == 0 else None
        for object_id, measure in measures.items():
            measure.add(mask == object_id, image)
    values = [measure.values() for measure in measures.values()]
    return {name: max(value[name] for value in values) for name in THRESHOLDS}


def kinds_of(values: dict[str, float]) -> list[str]:
    """Return the attributes whose measures reach their thresholds."""
    return [name for name, threshold in THRESHOLDS.items() if values[name] >= threshold]


def area_dips(areas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Compute the share of an object's area that each frame lacks of the areas before and after: [T] float64, 0..1."""
    areas = np.asarray(areas, np.float64)
    dips = np.zeros(len(areas))
    for index in range(1, len(areas) - 1):
        before = areas[max(0, index - DIP_FRAMES) : index].max()
        after = areas[index + 1 : index + 1 + DIP_FRAMES].max()
        in_view = min(before, after)
        if in_view > 0:
            dips[index] = max(0.0, 1 - areas[index] / in_view)
    return dips


def _colours(lab: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the histogram of the mask's pixels, which sums to 1; zeros for an empty mask."""
    histogram = cv2.calcHist([lab], [0, 1, 2], mask, list(_BINS), [0, 256] * 3)
    return histogram / max(float(histogram.sum()), 1.0)
