"""Tracking settings: reference frames, search windows, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes

STRIDE = 4


OLDEST_AGE, LATEST_ANCHOR, MOST_ANCHORS, LARGEST_DILATION, LARGEST_EDGE_RADIUS = 64, 1000, 16, 4, 64


@dataclass(frozen=True)
class TrackingSettings:
    """How a tracker searches and remembers.

    rows:          short side in pixels that frames are shrunk to before encoding; 0 keeps every frame as it is
    anchors:       frames that stay references for ever, counted from the one that an object was given on, which is 0
    ages:          references that move along: 1 is the frame before, 2 the one before that
    radius, dilation, top_k, temperature: attributes of LocalSoftCopy, built into propagate.onnx. Where two radii or
                   dilations are given, the first is that of the one anchor and the second that of the other references
    dilate_after:  0, or the age past which a reference is searched more widely: `dilation` times
                   min(4, 1 + age // dilate_after), as in MAST (Lai et al., 2020); needs a back end that takes any
                   attributes
    hard_labels:   remember each mask as 0 and 1 (label above one half) and not as soft labels
    follow:        move windows along with the objects (runtime/tracking/window_motion.py); with a propagate.onnx
                   from before it had an input for that, windows stay
    edge_radius:   0, or the radius, in pixels of the shrunk frame, of the filter that brings outlines to the edges of
                   the picture (runtime/tracking/edge_refinement.py)

    A frame that is both an anchor and of a listed age is one reference. References that do not exist yet are left out.
    """

    rows: int = 480
    anchors: tuple[int, ...] = (0,)
    ages: tuple[int, ...] = (1, 2, 3, 4, 5)
    radius: tuple[int, ...] = (8,)
    dilation: tuple[int, ...] = (1,)
    top_k: int = 10
    temperature: float = 0.07
    dilate_after: int = 0
    hard_labels: bool = False
    follow: bool = False
    edge_radius: int = 0

    def __post_init__(self) -> None:
        if not (self.rows == 0 or 16 <= self.rows <= 8192):
            raise InputError(f"expected rows between 16 and 8192, or 0 for the frame's own, got {self.rows}")
        for name, given, lowest, highest in (
            ("anchors", self.anchors, 0, LATEST_ANCHOR),
            ("ages", self.ages, 1, OLDEST_AGE),
        ):
            if list(given) != sorted(set(given)) or not all(lowest <= frame <= highest for frame in given):
                raise InputError(f"expected {name} from {lowest} to {highest}, ascending, got {list(given)}")
        if len(self.anchors) > MOST_ANCHORS:
            raise InputError(f"expected at most {MOST_ANCHORS} anchors, got {len(self.anchors)}")
        if 0 not in self.anchors and 1 not in self.ages:
            raise InputError(
                f"expected the first frame (anchor 0) or the one before (age 1) among the references, got anchors"
                f" {list(self.anchors)} and ages {list(self.ages)}; add one of them"
            )
        most = max(len(self.radius), len(self.dilation))
        if most > 2 or (most == 2 and self.anchors != (0,)):
            raise InputError(
                "expected one radius and one dilation for all references, or one for the first frame (anchor 0, alone)"
                f" and one for the others, got radius {list(self.radius)} and dilation {list(self.dilation)} with"
                f" anchors {list(self.anchors)}"
            )
        if not 0 <= self.edge_radius <= LARGEST_EDGE_RADIUS:
            raise InputError(f"expected edge_radius from 0 to {LARGEST_EDGE_RADIUS}, got {self.edge_radius}")
        if not 0 <= self.dilate_after <= LATEST_ANCHOR:
            raise InputError(f"expected dilate_after from 0 to {LATEST_ANCHOR}, got {self.dilate_after}")
        _ = self.attributes  # which checks the rest

    @property
    def references(self) -> int:
        """Reference frames once the memory is full."""
        return len(self.anchors) + len(self.ages)

    @property
    def attributes(self) -> Attributes:
        """What propagate.onnx has built in."""
        return Attributes(self.radius, self.dilation, self.top_k, self.temperature)

    def attributes_for(self, ages: Sequence[int]) -> Attributes:
        """How to search references of these ages."""
        if not self.dilate_after or max(ages) <= self.dilate_after:
            return self.attributes
        radii, dilations = zip(*self.attributes.windows(len(ages)), strict=True)
        widened = tuple(
            dilation * (min(LARGEST_DILATION, 1 + age // self.dilate_after) if age > self.dilate_after else 1)
            for age, dilation in zip(ages, dilations, strict=True)
        )
        return Attributes(radii, widened, self.top_k, self.temperature)


def last_frames(count: int) -> tuple[int, ...]:
    """Ages of the last `count` frames; raises InputError for more than a memory holds."""
    if not 0 <= count <= OLDEST_AGE:
        raise InputError(f"expected 0 to {OLDEST_AGE} recent frames, got {count}")
    return tuple(range(1, count + 1))


def settings_from_json(tracking: dict[str, Any]) -> TrackingSettings:
    """Settings as they stand in artifact.json, of this format or those before.

    Raises InputError for values out of range, and KeyError, TypeError or ValueError for what makes no settings.
    """
    fields = dict(tracking)
    if "recent_frames" in fields:  # format 1
        fields["anchors"] = (0,) if fields.pop("first_frame") else ()
        fields["ages"] = last_frames(int(fields.pop("recent_frames")))
    for name in ("anchors", "ages", "radius", "dilation"):
        fields[name] = tuple(int(value) for value in fields[name])
    return TrackingSettings(**fields)


# Windows of an anchor: as many as several objects that move apart may cost. Nearer ones are taken for one.
MOST_WINDOWS = 4


def most_searched(settings: TrackingSettings) -> int:
    """Windows that are searched for one frame at most: rows of the op's `references`."""
    return len(settings.anchors) * (MOST_WINDOWS if settings.follow else 1) + len(settings.ages)


def with_settings(settings: TrackingSettings, rows: int | None = None, recent: int | None = None) -> TrackingSettings:
    """Settings with what a user may change at run time; None keeps what the artifact says."""
    if rows is not None:
        settings = replace(settings, rows=rows)
    return settings if recent is None else replace(settings, ages=last_frames(recent))
