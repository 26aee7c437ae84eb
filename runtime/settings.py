"""Tracking settings: reference frames, search windows, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes

STRIDE = 4
"""Pixels of the resized frame along one side of a cell."""

NOMINAL_FRAMES_PER_SECOND = Fraction(24)
"""Rate of a source that states none, such as a folder of images; DAVIS is shown at this rate."""


OLDEST_OFFSET, LATEST_PERMANENT_FRAME, MAX_PERMANENT_FRAMES, LARGEST_DILATION, LARGEST_REFINE_RADIUS = (
    64,
    1000,
    16,
    4,
    64,
)


@dataclass(frozen=True)
class TrackingSettings:
    """How a tracker searches and remembers.

    short_side:          short side in pixels that frames are shrunk to before encoding; 0 keeps every frame as it is
    permanent_frames:       frames that stay references for ever, counted from the one that an object was given on, which is 0
    recent_offsets:          references that move along: 1 is the frame before, 2 the one before that
    radius, dilation, top_k, temperature: attributes of LocalSoftCopy, built into propagate.onnx. Where two radii or
                   dilations are given, the first is that of the one anchor and the second that of the other references
    dilate_past_age:  0, or the age past which a reference is searched more widely: `dilation` times
                   min(4, 1 + age // dilate_past_age), as in MAST (Lai et al., 2020); needs a back end that takes any
                   attributes
    hard_labels:   add_frame each mask as 0 and 1 (label above one half) and not as soft labels
    move_windows:  move windows along with the objects (runtime/tracking/window_motion.py); with a propagate.onnx
                   from before it had an input for that, windows stay
    refine_radius:   0, or the radius, in pixels of the shrunk frame, of the filter that brings outlines to the edges of
                   the picture (runtime/tracking/edge_refinement.py)

    A frame that is both an anchor and of a listed age is one reference. References that do not exist yet are left out.
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

    def __post_init__(self) -> None:
        if not (self.short_side == 0 or 16 <= self.short_side <= 8192):
            raise InputError(f"expected rows between 16 and 8192, or 0 for the frame's own, got {self.short_side}")
        for name, given, lowest, highest in (
            ("permanent_frames", self.permanent_frames, 0, LATEST_PERMANENT_FRAME),
            ("recent_offsets", self.recent_offsets, 1, OLDEST_OFFSET),
        ):
            if list(given) != sorted(set(given)) or not all(lowest <= frame <= highest for frame in given):
                raise InputError(f"expected {name} from {lowest} to {highest}, ascending, got {list(given)}")
        if len(self.permanent_frames) > MAX_PERMANENT_FRAMES:
            raise InputError(
                f"expected at most {MAX_PERMANENT_FRAMES} permanent_frames, got {len(self.permanent_frames)}"
            )
        if 0 not in self.permanent_frames and 1 not in self.recent_offsets:
            raise InputError(
                f"expected the first frame (anchor 0) or the one before (age 1) among the references, got permanent_frames"
                f" {list(self.permanent_frames)} and recent_offsets {list(self.recent_offsets)}; add one of them"
            )
        most = max(len(self.radius), len(self.dilation))
        if most > 2 or (most == 2 and self.permanent_frames != (0,)):
            raise InputError(
                "expected one radius and one dilation for all references, or one for the first frame (anchor 0, alone)"
                f" and one for the others, got radius {list(self.radius)} and dilation {list(self.dilation)} with"
                f" permanent_frames {list(self.permanent_frames)}"
            )
        if not 0 <= self.refine_radius <= LARGEST_REFINE_RADIUS:
            raise InputError(f"expected refine_radius from 0 to {LARGEST_REFINE_RADIUS}, got {self.refine_radius}")
        if not 0 <= self.dilate_past_age <= LATEST_PERMANENT_FRAME:
            raise InputError(f"expected dilate_past_age from 0 to {LATEST_PERMANENT_FRAME}, got {self.dilate_past_age}")
        _ = self.attributes  # which checks the rest

    @property
    def num_reference_frames(self) -> int:
        """Reference frames once the memory is full."""
        return len(self.permanent_frames) + len(self.recent_offsets)

    @property
    def attributes(self) -> Attributes:
        """What propagate.onnx has built in."""
        return Attributes(self.radius, self.dilation, self.top_k, self.temperature)

    def attributes_for(self, recent_offsets: Sequence[int]) -> Attributes:
        """How to search references of these recent_offsets."""
        if not self.dilate_past_age or max(recent_offsets) <= self.dilate_past_age:
            return self.attributes
        radii, dilations = zip(*self.attributes.windows(len(recent_offsets)), strict=True)
        widened = tuple(
            dilation * (min(LARGEST_DILATION, 1 + age // self.dilate_past_age) if age > self.dilate_past_age else 1)
            for age, dilation in zip(recent_offsets, dilations, strict=True)
        )
        return Attributes(radii, widened, self.top_k, self.temperature)


def last_frames(count: int) -> tuple[int, ...]:
    """Ages of the last `count` frames; raises InputError for more than a memory holds."""
    if not 0 <= count <= OLDEST_OFFSET:
        raise InputError(f"expected 0 to {OLDEST_OFFSET} recent frames, got {count}")
    return tuple(range(1, count + 1))


def settings_from_json(tracking: dict[str, Any]) -> TrackingSettings:
    """Return the settings of an artifact.json.

    Raises InputError for values out of range, and KeyError, TypeError or ValueError for anything that makes no settings.
    """
    fields = dict(tracking)
    for name in ("permanent_frames", "recent_offsets", "radius", "dilation"):
        fields[name] = tuple(int(value) for value in fields[name])
    return TrackingSettings(**fields)


# Windows of an anchor: as many as several objects that move apart may cost. Nearer ones are taken for one.
MAX_WINDOWS = 4


def max_windows(settings: TrackingSettings) -> int:
    """Windows that are searched for one frame at most: rows of the op's `references`."""
    return len(settings.permanent_frames) * (MAX_WINDOWS if settings.move_windows else 1) + len(settings.recent_offsets)


def with_settings(
    settings: TrackingSettings, short_side: int | None = None, memory_frames: int | None = None
) -> TrackingSettings:
    """Settings with what a user may change at run time; None keeps what the artifact says."""
    if short_side is not None:
        settings = replace(settings, short_side=short_side)
    return settings if memory_frames is None else replace(settings, recent_offsets=last_frames(memory_frames))
