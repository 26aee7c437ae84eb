"""Checkpoints to scores on labelled videos: corrflow-export, then corrflow-eval, each as a user would call it."""

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
    """Means over objects, 0..1."""

    region: float
    contour: float

    @property
    def both(self) -> float:
        return (self.region + self.contour) / 2


@dataclass(frozen=True)
class Scoring:
    """On what and how.

    every:    score each such sequence of the split's list only
    short_side:     short side that frames are shrunk to; None: the artifacts' own
    protocol: of corrflow-eval
    """

    davis: Path
    split: str = "dev"
    every: int = 1
    short_side: int | None = None
    protocol: str = "default"
    workers: int = 1

    def sequences(self) -> list[str]:
        """Names of the sequences that are scored; raises InputError where there are none."""
        if self.every < 1:
            raise InputError(f"expected --every of at least 1, got {self.every}")
        return [sequence.name for sequence in open_davis(self.davis, self.split)][:: self.every]


def export(checkpoint: str, artifact: Path, settings_from: str | None) -> None:
    """Write the artifact of a run, a checkpoint or random-init:PRESET, unless it is there.

    settings_from: model whose settings to take; without, all scores of a window of radius 6 count: with the ten best alone,
    rounding decides what little-trained features copy, and the exporter refuses that.
    """
    if (artifact / DESCRIPTION).is_file():
        return
    alone = ("--top-k", "0", "--radius", "6", "--refine-radius", "0")
    command(
        "export", "onnx", checkpoint, str(artifact), *(("--settings-from", settings_from) if settings_from else alone)
    )


def scores(artifacts: Sequence[Path], scoring: Scoring, out: Path) -> list[Score]:
    """The scores of artifacts whose folders have different names; kept in `out`, as corrflow-eval keeps them."""
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
    """Run a command of ours as a process of its own; raises CorrflowError where it fails."""
    done = subprocess.run([sys.executable, "-m", f"corrflow.{room}.cli", *options])
    if done.returncode:
        name = {"evaluate": "eval"}.get(room, room)
        raise CorrflowError(f"corrflow-{name} {' '.join(options[:3])} ... ended with exit code {done.returncode}")
