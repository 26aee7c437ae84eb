"""Published ways of tracking, by name: each is a change of the tracker's settings.

| protocol | references                  | radius          | selection | temperature      | labels |
|----------|-----------------------------|-----------------|-----------|------------------|--------|
| default  | the artifact's own settings |                 |           |                  |        |
| plain    | the same, unwatched         |                 |           |                  |        |
| paper    | t-1                         | 6               | all       | the artifact's   | hard   |
| mast     | 0, 5, t-5, t-3, t-1         | 6, dilated past | all       | the artifact's   | soft   |
|          |                             | 15 frames       |           |                  |        |
| crw      | 0 and the last 20           | 24              | top 10    | 0.05             | soft   |
| vfs      | 0 and the last 20           | 24              | top 10    | 0.07             | soft   |
| hvc      | the last 50                 | 12              | top 15    | 0.1              | soft   |

Only default is watched as corrflow-track watches its masks: strays are dropped, and objects are lost and found again
(runtime/tracking/occlusion.py). Every other is the tracker alone.

Radii count cells of 4 pixels. crw was published with 12 cells of 8 pixels: the same 96 pixels are 24 cells here, and
every one of them is a candidate, because features of 4 pixels that were searched at every second cell could not land
on odd ones. A radius of 12 with dilation 2 would cost a quarter and be another method.

paper and mast were published with raw dot products, whose size is the features' own, and name no temperature: the
artifact's stays. It is 1 for an encoder of raw dot products (preset `paper` of corrflow-train), and for features of
unit length, which at 1 would weigh all candidates nearly alike, the temperature they were trained with.

The working size (`rows`) belongs to none of them: the artifact's stays, or what the user says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from corrflow.errors import InputError
from corrflow.runtime.settings import TrackingSettings, last_frames

MAST_DILATE_AFTER = 15
"""MAST's own interval: past so many frames its search is dilated."""


def _paper(own: TrackingSettings) -> TrackingSettings:
    return replace(own, permanent_frames=(), recent_offsets=(1,), radius=(6,), top_k=0, hard_labels=True)


def _mast(own: TrackingSettings) -> TrackingSettings:
    return replace(
        own, permanent_frames=(0, 5), recent_offsets=(1, 3, 5), radius=(6,), top_k=0, dilate_past_age=MAST_DILATE_AFTER
    )


def _crw(own: TrackingSettings) -> TrackingSettings:
    return replace(own, permanent_frames=(0,), recent_offsets=last_frames(20), radius=(24,), top_k=10, temperature=0.05)


def _vfs(own: TrackingSettings) -> TrackingSettings:
    return replace(own, permanent_frames=(0,), recent_offsets=last_frames(20), radius=(24,), top_k=10, temperature=0.07)


def _hvc(own: TrackingSettings) -> TrackingSettings:
    return replace(own, permanent_frames=(), recent_offsets=last_frames(50), radius=(12,), top_k=15, temperature=0.1)


_PUBLISHED: dict[str, Callable[[TrackingSettings], TrackingSettings]] = {
    "paper": _paper,
    "mast": _mast,
    "crw": _crw,
    "vfs": _vfs,
    "hvc": _hvc,
}

PROTOCOLS = ("default", "plain", *_PUBLISHED)


def apply_protocol(name: str, own: TrackingSettings) -> TrackingSettings:
    """The settings of a protocol for an artifact with these settings of its own.

    Raises InputError for an unknown name.
    """
    if name not in PROTOCOLS:
        raise InputError(f"expected a protocol among {', '.join(PROTOCOLS)}, got {name!r}; choose one of those")
    if name in ("default", "plain"):
        return own
    # Whatever a protocol does not name is as plain as possible, so that it does not depend on the artifact.
    plain = replace(own, dilation=(1,), dilate_past_age=0, hard_labels=False, move_windows=False, refine_radius=0)
    return _PUBLISHED[name](plain)


def published_with_raw_features(name: str) -> bool:
    """Whether the protocol was published for features that are not of unit length."""
    return name in ("paper", "mast")
