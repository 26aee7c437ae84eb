"""Scores of checkpoints on annotated videos, by the commands corrflow-export and corrflow-eval."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corrflow.errors import CorrflowError, InputError
from corrflow.evaluate.datasets.masks import open_davis
from corrflow.runtime.artifacts.artifact import DESCRIPTION


@dataclass(frozen=True)
class Score:
    """Mean region and contour scores over objects, 0..1."""

    region: float
    contour: float

    @property
    def both(self) -> float:
        """Mean of both scores."""
        return (self.region + self.contour) / 2


@dataclass(frozen=True)
class Scoring:
    """Options of the scoring.

    every:      score every n-th sequence of the split only
    short_side: short side of working frames; None for that of the model
    protocol:   protocol of corrflow-eval
    """

    davis: Path
    split: str = "dev"
    every: int = 1
    short_side: int | None = None
    protocol: str = "default"
    workers: int = 1

    def sequences(self) -> list[str]:
        """Return the names of the scored sequences. Raises InputError if there are none."""
        if self.every < 1:
            raise InputError(f"expected --every of at least 1, got {self.every}")
        return [sequence.name for sequence in open_davis(self.davis, self.split)][:: self.every]


def export(checkpoint: str, artifact: Path, settings_from: str | None) -> None:
    """Export a run, a checkpoint or random-init:PRESET, unless the artifact exists.

    settings_from: model whose settings to use. Otherwise all scores of a window of radius 6 count: with the ten best
    only, rounding decides for features after little training, and the exporter refuses that.
    """
    if (artifact / DESCRIPTION).is_file():
        return
    defaults = ("--top-k", "0", "--radius", "6", "--refine-radius", "0")
    command(
        "export",
        "onnx",
        checkpoint,
        str(artifact),
        *(("--settings-from", settings_from) if settings_from else defaults),
    )


def scores(artifacts: Sequence[Path], scoring: Scoring, out: Path) -> list[Score]:
    """Score artifacts with different folder names by corrflow-eval, which stores its results in `out`."""
    options = ["--split", scoring.split, "--protocol", scoring.protocol, "--workers", str(scoring.workers)]
    options += ["--short-side", str(scoring.short_side)] if scoring.short_side is not None else []
    for name in scoring.sequences():
        options += ["--sequence", name]
    for artifact in artifacts:
        options += ["--model", str(artifact)]
    command("evaluate", "davis", str(scoring.davis), "--out", str(out), *options)
    methods = json.loads((out / "report.json").read_text())["methods"]  # in the order of the artifacts
    means = [method["mean_over_objects"] for method in methods]
    return [Score(mean["J"], mean["F"]) for mean in means]


def command(room: str, *options: str) -> None:
    """Run a command of this package in a separate process. Raises CorrflowError if it fails."""
    done = subprocess.run([sys.executable, "-m", f"corrflow.{room}.cli", *options])
    if done.returncode:
        name = {"evaluate": "eval"}.get(room, room)
        raise CorrflowError(f"corrflow-{name} {' '.join(options[:3])} ... ended with exit code {done.returncode}")
