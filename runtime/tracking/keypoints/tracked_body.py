"""Keypoints objects of one body, which share a crop: their prompts, and the tracker of their points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from corrflow.runtime.backends.base import Backend
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.keypoints.keypoint_tracker import KeypointTracker
from corrflow.runtime.types import KeypointsObject

Labels = Sequence[tuple[np.ndarray, KeypointsObject]]
"""Images [H, W, 3] uint8, BGR, of labelled frames with the points that are labelled there."""


@dataclass
class TrackedKeypoints:
    """Keypoints object with the columns of its points in the tracker of its body."""

    prompt: KeypointsObject
    columns: list[int]
    removed: bool = False

    def rename(self, name: str) -> None:
        """Give the object another name."""
        self.prompt = replace(self.prompt, name=name)


class TrackedBody:
    """Keypoints objects that are tracked in one crop: those of one `KeypointsObject.body`, or one without a body.

    members: objects that are tracked
    """

    def __init__(
        self,
        backend: Backend,
        settings: TrackingSettings,
        image: np.ndarray,
        prompts: Sequence[KeypointsObject],
        labels: Labels,
    ) -> None:
        """Start at the prompted frame [H, W, 3] uint8, BGR, with at least one object."""
        names = [name for one in [*prompts, *(label for _, label in labels)] for name in one.point_names]
        self._names = list(dict.fromkeys(names))
        self._body, self._size = prompts[0].body, image.shape[:2]
        self.members = list(map(self._member, prompts))
        self._tracker = KeypointTracker(backend, settings, image, self._points_of(prompts), self._others(labels))

    def accepts(self, prompts: Sequence[KeypointsObject]) -> bool:
        """Return True for objects of this body whose points have columns here that no other object has."""
        taken = {column for member in self.members for column in member.columns}
        names = {name for column, name in enumerate(self._names) if column not in taken}
        return all(self._body and one.body == self._body and names.issuperset(one.point_names) for one in prompts)

    def add(self, image: np.ndarray, prompts: Sequence[KeypointsObject], labels: Labels) -> None:
        """Track objects that `accepts` returned True for as well, from the newest frame on."""
        self._tracker.restart(image, self._points_of(prompts), self._others(labels))
        self.members += map(self._member, prompts)

    def correct(self, image: np.ndarray, prompt: KeypointsObject) -> bool:
        """Go on from other points of a member on the newest frame. Return False where the points have other names."""
        member = next(one for one in self.members if one.prompt.id == prompt.id)
        if prompt.point_names != member.prompt.point_names:
            return False
        # Other members need their earlier labels.
        self._tracker.restart(image, self._points_of([prompt]), None if len(self.members) > 1 else ())
        member.prompt = prompt
        return True

    def drop_removed(self) -> None:
        """Stop the points of removed members."""
        self._tracker.stop([column for one in self.members if one.removed for column in one.columns])
        self.members = [one for one in self.members if not one.removed]

    def step(self, image: np.ndarray) -> dict[int, np.ndarray]:
        """Track into the next frame: x, y in pixels and the confidence of each point, [P, 3] float32, by object."""
        points, confidence = self._tracker.step(image)
        inside = points.clip(0, np.array(self._size[::-1]) - 1.0)
        tracked = np.column_stack([inside, confidence]).astype(np.float32)
        return {member.prompt.id: tracked[member.columns] for member in self.members}

    def _member(self, prompt: KeypointsObject) -> TrackedKeypoints:
        return TrackedKeypoints(prompt, [self._names.index(name) for name in prompt.point_names])

    def _others(self, labels: Labels) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return each labelled frame once, with the points of all its labels."""
        frames: dict[int, tuple[np.ndarray, list[KeypointsObject]]] = {}
        for image, label in labels:
            frames.setdefault(id(image), (image, []))[1].append(label)
        return [(image, self._points_of(own)) for image, own in frames.values()]

    def _points_of(self, prompts: Sequence[KeypointsObject]) -> np.ndarray:
        """Return the points [P, 2] of all columns; NaN where no prompt has one."""
        given = {
            name: point for one in prompts for name, point in zip(one.point_names, np.asarray(one.points), strict=True)
        }
        return np.array([given.get(name, (np.nan, np.nan)) for name in self._names], np.float64)


def grouped_by_body(prompts: Sequence[KeypointsObject]) -> list[list[KeypointsObject]]:
    """Return the objects of each body; one without a body is alone."""
    groups: dict[tuple[bool, int], list[KeypointsObject]] = {}
    for one in prompts:
        groups.setdefault((bool(one.body), one.body or one.id), []).append(one)
    return list(groups.values())
