"""Track objects and keypoints through video; the encoder behind it was trained without labels.

    for result in corrflow.track("video.mp4", masks="mask.png"):
        print(result.frame.time, result.objects[0].box)

`Tracker.from_model` gives the loop to the caller. Names are loaded at their first use, so that importing the package
stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corrflow.errors import CorrflowError, InputError, SourceEndedEarly
    from corrflow.runtime.api import track
    from corrflow.runtime.tracking.tracker import Tracker
    from corrflow.runtime.types import Frame, FrameResult, KeypointsObject, MaskObject, ObjectResult

    __version__: str

_HOMES = {
    "track": "corrflow.runtime.api",
    "Tracker": "corrflow.runtime.tracking.tracker",
    "Frame": "corrflow.runtime.types",
    "FrameResult": "corrflow.runtime.types",
    "KeypointsObject": "corrflow.runtime.types",
    "MaskObject": "corrflow.runtime.types",
    "ObjectResult": "corrflow.runtime.types",
    "CorrflowError": "corrflow.errors",
    "InputError": "corrflow.errors",
    "SourceEndedEarly": "corrflow.errors",
}
__all__ = [
    "CorrflowError",
    "Frame",
    "FrameResult",
    "InputError",
    "KeypointsObject",
    "MaskObject",
    "ObjectResult",
    "SourceEndedEarly",
    "Tracker",
    "__version__",
    "track",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("corrflow")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "corrflow.runtime":
            raise
        raise ImportError(
            f"expected the installed corrflow, got the source folder {__path__[0]}, which shadows it; run Python in"
            " another folder, or correct PYTHONPATH"
        ) from error
