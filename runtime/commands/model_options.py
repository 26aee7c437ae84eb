"""Options of every command with a tracker, and of those that read labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corrflow.errors import InputError

if TYPE_CHECKING:
    from corrflow.runtime.tracking.model_options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class TrackerOptions:
    """Model, backend and settings of a tracker."""

    model: Annotated[Path | None, typer.Option(help="Model: a bundled name, a folder or a zip. [quarter]")] = None
    backend: Annotated[str, typer.Option(help="auto, tensorrt, onnxruntime-cuda, onnxruntime or onnx-function.")] = (
        "auto"
    )
    short_side: Annotated[
        int | None, typer.Option(help="Short side in pixels to resize frames to; 0: no resizing. [the model's]")
    ] = None
    memory_frames: Annotated[int | None, typer.Option(help="Recent frames kept in memory. [the model's]")] = None
    redetect: Annotated[
        bool,
        typer.Option(
            "--redetect/--no-redetect",
            help="Detect occlusion, hide lost objects and re-detect them; drop small false-positive blobs.",
        ),
    ] = True
    threads: Annotated[int, typer.Option(help="CPU threads; 0: one for each core.")] = 0

    def tracker_options(self) -> ModelOptions:
        """Convert the options for `Tracker.from_model`."""
        from corrflow.runtime.tracking.model_options import ModelOptions

        return ModelOptions(
            None if self.model is None else str(self.model),
            self.backend,
            self.short_side,
            self.memory_frames,
            self.redetect,
            self.threads,
        )


@dataclass(frozen=True, kw_only=True)
class LabelOptions(TrackerOptions):
    """What of the labels is read."""

    strict: Annotated[
        bool, typer.Option("--strict", help="A faulty label or a damaged frame is an error, and is not left out.")
    ] = False
    min_score: Annotated[
        float, typer.Option(help="Least score or likelihood of a predicted label that is read, 0 to 1.")
    ] = 0.0

    def check_labels(self) -> None:
        """Raise InputError for a score out of range."""
        if not 0 <= self.min_score <= 1:
            raise InputError(f"expected --min-score from 0 to 1, got {self.min_score:g}; give a share")
