"""Published tracking protocols by name: presets of tracker settings.

| protocol | reference frames           | radius          | selection | temperature | soft masks |
|----------|----------------------------|-----------------|-----------|-------------|------------|
| default  | the model's own settings   |                 |           |             |            |
| plain    | the model's own settings   |                 |           |             |            |
| paper    | t-1                        | 6               | all       | the model's | hard       |
| mast     | 0, 5, t-5, t-3, t-1        | 6, dilated past | all       | the model's | soft       |
|          |                            | 15 frames       |           |             |            |
| crw      | 0 and the last 20          | 24              | top 10    | 0.05        | soft       |
| vfs      | 0 and the last 20          | 24              | top 10    | 0.07        | soft       |
| hvc      | the last 50                | 12              | top 15    | 0.1         | soft       |

Only default handles occlusion as corrflow-track does (runtime/tracking/occlusion.py): spurious components are dropped,
hidden objects are lost and re-detected. All other protocols run the tracker alone.

Radii are in cells of 4 pixels. crw was published with 12 cells of 8 pixels; the same 96 pixels are 24 cells here.
Every cell in this window is a candidate. A radius of 12 with dilation 2 would cost a quarter, but matches could only
land on every second cell.

paper and mast were published with raw dot products and no temperature, so the model's temperature stays. It is 1 for
an encoder trained with raw dot products (preset `paper` of corrflow-train). Features of unit length need the
temperature of their training: at 1 all candidates would have nearly equal weights.

No protocol sets the short side: the model's value stays, or the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from corrflow.errors import InputError
from corrflow.runtime.settings import TrackingSettings, last_frames

MAST_DILATE_PAST_AGE = 15
"""Age in frames past which the mast protocol dilates its search: the interval of MAST's own code."""


def _paper(settings: TrackingSettings) -> TrackingSettings:
    return replace(settings, permanent_frames=(), recent_offsets=(1,), radius=(6,), top_k=0, hard_labels=True)


def _mast(settings: TrackingSettings) -> TrackingSettings:
    return replace(
        settings,
        permanent_frames=(0, 5),
        recent_offsets=(1, 3, 5),
        radius=(6,),
        top_k=0,
        dilate_past_age=MAST_DILATE_PAST_AGE,
    )


def _first_and_last_20(settings: TrackingSettings, temperature: float) -> TrackingSettings:
    return replace(
        settings,
        permanent_frames=(0,),
        recent_offsets=last_frames(20),
        radius=(24,),
        top_k=10,
        temperature=temperature,
    )


def _hvc(settings: TrackingSettings) -> TrackingSettings:
    return replace(
        settings, permanent_frames=(), recent_offsets=last_frames(50), radius=(12,), top_k=15, temperature=0.1
    )


_PUBLISHED: dict[str, Callable[[TrackingSettings], TrackingSettings]] = {
    "paper": _paper,
    "mast": _mast,
    "crw": lambda settings: _first_and_last_20(settings, 0.05),
    "vfs": lambda settings: _first_and_last_20(settings, 0.07),
    "hvc": _hvc,
}

PROTOCOLS = ("default", "plain", *_PUBLISHED)


def apply_protocol(name: str, settings: TrackingSettings) -> TrackingSettings:
    """Return a model's settings under a protocol. Raises InputError for an unknown name."""
    if name not in PROTOCOLS:
        raise InputError(f"expected a protocol among {', '.join(PROTOCOLS)}, got {name!r}; choose one of those")
    if name in ("default", "plain"):
        return settings
    # Settings that a protocol does not name are off, so that its results depend on the model's features alone.
    return _PUBLISHED[name](
        replace(settings, dilation=(1,), dilate_past_age=0, hard_labels=False, move_windows=False, refine_radius=0)
    )


def published_with_raw_features(name: str) -> bool:
    """Return True for a protocol that was published for features without unit length."""
    return name in ("paper", "mast")
