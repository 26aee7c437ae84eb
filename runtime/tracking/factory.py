"""Build a tracker from a model and options."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import with_settings
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker

logger = logging.getLogger("corrflow")


@dataclass(frozen=True)
class Model:
    """What to track with.

    watch: whether strays are dropped and hidden objects taken for lost and found again, where the back end can
    """

    artifact: Path | None
    backend: str
    threads: int
    short_side: int | None
    memory_frames: int | None
    verbose: bool
    redetect: bool = True

    @contextmanager
    def tracker(self, said: bool = False) -> Iterator[Tracker]:
        """A tracker on an open back end. Raises InputError where the artifact or the options are wrong.

        said: say so where masks should be watched and cannot be
        """
        if self.verbose:
            logging.basicConfig(format="%(name)s: %(message)s")
            logging.getLogger("corrflow").setLevel(logging.INFO)
        if self.threads < 0:
            raise InputError(f"expected --threads of 0 or more, got {self.threads}")
        artifact = load_artifact(resolve_model(self.artifact))
        settings = with_settings(artifact.settings, self.short_side, self.memory_frames)
        backend = open_backend(self.backend, artifact, self.threads)
        try:
            presence = occlusion_settings_for(backend, settings) if self.redetect else None
            if said and self.redetect and presence is None:
                logger.warning(
                    "%s: objects that are hidden are not noticed, and their masks stand as they are tracked; that takes"
                    " a model that keeps the first frame alone for good, and --memory-frames 3 or more (or --backend"
                    " onnxruntime)",
                    backend.name,
                )
            yield Tracker(backend, settings, presence)
        finally:
            backend.close()
