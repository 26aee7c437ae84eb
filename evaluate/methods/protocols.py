"""Published tracking protocols by name: presets of tracker settings, and of the search.

| protocol | reference frames           | window          | selection | temperature | soft masks |
|----------|----------------------------|-----------------|-----------|-------------|------------|
| default  | the model's own settings   |                 |           |             |            |
| plain    | the model's own settings   |                 |           |             |            |
| paper    | t-1                        | radius 6        | all       | the model's | hard       |
| mast     | 0, 5, t-5, t-3, t-1        | radius 6,       | all       | the model's | soft       |
|          |                            | dilated past 15 |           |             |            |
| crw      | 0 (whole), the last 20     | disc of 12      | top 10    | 0.05        | soft       |
| vfs      | 0 and the last 20          | disc of 12      | top 10    | 0.07        | soft       |
| hvc      | 0 (whole), the last 50     | disc of 12      | top 15    | 0.1         | soft       |

Only default handles occlusion as corrflow-track does (runtime/tracking/occlusion.py): spurious components are dropped,
hidden objects are lost and re-detected. All other protocols run the tracker alone.

The windows of paper and mast are squares of cells of 4 pixels. Those of crw, vfs and hvc are discs of cells of 8
pixels, the stride of the published encoders: every cell closer than 96 pixels (disc_search.py). The whole first frame
is searched in crw and hvc. Features have unit length in these three.

paper and mast were published with raw dot products and no temperature, so the model's temperature stays. It is 1 for
an encoder trained with raw dot products (preset `paper` of corrflow-train). Features of unit length need the
temperature of their training: at 1 all candidates would have nearly equal weights.

No protocol sets the short side: the model's value stays, or the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from corrflow.errors import InputError
from corrflow.evaluate.methods.disc_search import DiscSearch
from corrflow.evaluate.methods.methods import FeatureExtractor
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


def _discs(settings: TrackingSettings, recent: int, top_k: int, temperature: float) -> TrackingSettings:
    return replace(
        settings,
        permanent_frames=(0,),
        recent_offsets=last_frames(recent),
        radius=(12,),
        top_k=top_k,
        temperature=temperature,
    )


_PUBLISHED: dict[str, Callable[[TrackingSettings], TrackingSettings]] = {
    "paper": _paper,
    "mast": _mast,
    "crw": lambda settings: _discs(settings, recent=20, top_k=10, temperature=0.05),
    "vfs": lambda settings: _discs(settings, recent=20, top_k=10, temperature=0.07),
    "hvc": lambda settings: _discs(settings, recent=50, top_k=15, temperature=0.1),
}

PUBLISHED = tuple(_PUBLISHED)
PROTOCOLS = ("default", "plain", *PUBLISHED)

_FIRST_FRAME_WHOLE = {"crw": True, "vfs": False, "hvc": True}
"""Protocols that search discs: True for those that search the whole first frame."""


def apply_protocol(name: str, settings: TrackingSettings) -> TrackingSettings:
    """Return a model's settings under a protocol. Raises InputError for an unknown name."""
    if name not in PROTOCOLS:
        raise InputError(f"expected a protocol among {', '.join(PROTOCOLS)}, got {name!r}; choose one of those")
    if name in ("default", "plain"):
        return settings
    # Settings that a protocol does not name are off, so that its results depend on the model's features alone.
    return _PUBLISHED[name](
        replace(
            settings,
            dilation=(1,),
            dilate_past_age=0,
            hard_labels=False,
            move_windows=False,
            refine_radius=0,
            target_model=False,
        )
    )


def apply_search(name: str, features: FeatureExtractor) -> FeatureExtractor:
    """Return the features with the search of a protocol."""
    return DiscSearch(features, _FIRST_FRAME_WHOLE[name]) if name in _FIRST_FRAME_WHOLE else features


def published_with_raw_features(name: str) -> bool:
    """Return True for a protocol that was published for features without unit length."""
    return name in ("paper", "mast")
