"""Tracking without torch: artifacts, back ends, the tracker, and where frames come from and go to.

`corrflow.runtime.track` is loaded at its first use, so that importing the package alone stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corrflow.runtime.api import FrameTracks, track

__all__ = ["FrameTracks", "track"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from corrflow.runtime import api

    return getattr(api, name)
