"""Tracking settings: reference frames, search windows, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes

STRIDE = 4
"""Side of a cell in pixels of the resized frame."""

NOMINAL_FRAMES_PER_SECOND = Fraction(24)
"""Frame rate of a source without one, such as a folder of images; it is that of DAVIS."""

OLDEST_OFFSET, LATEST_PERMANENT_FRAME, MAX_PERMANENT_FRAMES, LARGEST_DILATION, LARGEST_REFINE_RADIUS = (
    64,
    1000,
    16,
    4,
    64,
)


@dataclass(frozen=True)
class TrackingSettings:
    """Settings of the search and of the memory.

    short_side:       short side in pixels that frames are resized to before encoding; 0 never resizes
    permanent_frames: permanent reference frames, counted from the frame of an object's prompt, which is 0
    recent_offsets:   ages of the recent reference frames; 1 is the previous frame
    radius, dilation, top_k, temperature: attributes of LocalSoftCopy, built into propagate.onnx. Of two radii or
                      dilations, the first is that of the single permanent frame, the second that of recent frames
    dilate_past_age:  0, or the age past which the dilation of a reference frame is multiplied by
                      min(4, 1 + age // dilate_past_age), as in MAST (Lai et al., 2020); needs a backend that
                      supports search parameters at run time
    hard_labels:      True to store masks as 0 and 1 in the memory, not as soft masks
    move_windows:     True to move search windows with the objects, see runtime/tracking/window_motion.py; needs a
                      propagate.onnx with indexed references
    refine_radius:    0, or radius of the mask refinement in pixels of the resized frame, see
                      runtime/tracking/edge_refinement.py
    target_model:     True to decide doubtful cells by a model of each object, see runtime/tracking/target_model.py

    A frame that is both permanent and recent is one reference frame. Frames before the start are left out.
    """

    short_side: int = 480
    permanent_frames: tuple[int, ...] = (0,)
    recent_offsets: tuple[int, ...] = (1, 2, 3, 4, 5)
    radius: tuple[int, ...] = (8,)
    dilation: tuple[int, ...] = (1,)
    top_k: int = 10
    temperature: float = 0.07
    dilate_past_age: int = 0
    hard_labels: bool = False
    move_windows: bool = False
    refine_radius: int = 0
    target_model: bool = False

    def __post_init__(self) -> None:
        if not (self.short_side == 0 or 16 <= self.short_side <= 8192):
            raise InputError(f"expected a short side of 16 to 8192 pixels, or 0 for no resizing, got {self.short_side}")
        for name, frames, lowest, highest in (
            ("permanent_frames", self.permanent_frames, 0, LATEST_PERMANENT_FRAME),
            ("recent_offsets", self.recent_offsets, 1, OLDEST_OFFSET),
        ):
            if list(frames) != sorted(set(frames)) or not all(lowest <= frame <= highest for frame in frames):
                raise InputError(f"expected {name} from {lowest} to {highest}, ascending, got {list(frames)}")
        if len(self.permanent_frames) > MAX_PERMANENT_FRAMES:
            raise InputError(
                f"expected at most {MAX_PERMANENT_FRAMES} permanent_frames, got {len(self.permanent_frames)}"
            )
        if 0 not in self.permanent_frames and 1 not in self.recent_offsets:
            raise InputError(
                f"expected permanent frame 0 or recent offset 1 among the references, got permanent_frames"
                f" {list(self.permanent_frames)} and recent_offsets {list(self.recent_offsets)}; add one of them"
            )
        count = max(len(self.radius), len(self.dilation))
        if count > 2 or (count == 2 and self.permanent_frames != (0,)):
            raise InputError(
                "expected one radius and one dilation for all references, or one for permanent frame 0, alone,"
                f" and one for the others, got radius {list(self.radius)} and dilation {list(self.dilation)} with"
                f" permanent_frames {list(self.permanent_frames)}"
            )
        if not 0 <= self.refine_radius <= LARGEST_REFINE_RADIUS:
            raise InputError(f"expected refine_radius from 0 to {LARGEST_REFINE_RADIUS}, got {self.refine_radius}")
        if not 0 <= self.dilate_past_age <= LATEST_PERMANENT_FRAME:
            raise InputError(f"expected dilate_past_age from 0 to {LATEST_PERMANENT_FRAME}, got {self.dilate_past_age}")
        _ = self.attributes  # checks the other fields

    @property
    def num_reference_frames(self) -> int:
        """Number of reference frames of a full memory."""
        return len(self.permanent_frames) + len(self.recent_offsets)

    @property
    def attributes(self) -> Attributes:
        """Search parameters that propagate.onnx has built in."""
        return Attributes(self.radius, self.dilation, self.top_k, self.temperature)

    def attributes_for(self, ages: Sequence[int]) -> Attributes:
        """Return the search parameters for reference frames of these ages."""
        if not self.dilate_past_age or max(ages) <= self.dilate_past_age:
            return self.attributes
        radii, dilations = zip(*self.attributes.windows(len(ages)), strict=True)
        widened = tuple(
            dilation * (min(LARGEST_DILATION, 1 + age // self.dilate_past_age) if age > self.dilate_past_age else 1)
            for age, dilation in zip(ages, dilations, strict=True)
        )
        return Attributes(radii, widened, self.top_k, self.temperature)


def last_frames(count: int) -> tuple[int, ...]:
    """Return the offsets of the last `count` frames. Raises InputError for too many."""
    if not 0 <= count <= OLDEST_OFFSET:
        raise InputError(f"expected 0 to {OLDEST_OFFSET} recent frames, got {count}")
    return tuple(range(1, count + 1))


def settings_from_json(tracking: dict[str, Any]) -> TrackingSettings:
    """Return the settings of an artifact.json.

    Raises InputError for values out of range, and KeyError, TypeError or ValueError for anything else.
    """
    fields = dict(tracking)
    for name in ("permanent_frames", "recent_offsets", "radius", "dilation"):
        fields[name] = tuple(_whole(name, value) for value in fields[name])
    for name in ("short_side", "top_k", "dilate_past_age", "refine_radius"):
        if name in fields:
            _whole(name, fields[name])
    return TrackingSettings(**fields)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} of {value!r:.40}, which is no whole number")
    return value


MAX_WINDOWS = 4
"""Largest number of search windows of a frame; close windows are merged."""


def max_windows(settings: TrackingSettings) -> int:
    """Return the largest number of search windows of a frame: rows of the op's `references`."""
    return settings.num_reference_frames * (MAX_WINDOWS if settings.move_windows else 1)


def with_settings(
    settings: TrackingSettings, short_side: int | None = None, memory_frames: int | None = None
) -> TrackingSettings:
    """Return settings with the values of a user; None keeps the artifact's value."""
    if short_side is not None:
        settings = replace(settings, short_side=short_side)
    return settings if memory_frames is None else replace(settings, recent_offsets=last_frames(memory_frames))
