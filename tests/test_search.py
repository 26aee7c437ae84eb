"""The search for settings measures what tracking gives, goes on where it stopped, and writes what it chose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.evaluate import cli
from corrflow.evaluate.commands import davis_data
from corrflow.evaluate.masks import DataSet, Method, evaluate_masks
from corrflow.evaluate.methods.methods import ArtifactEncoder, TrackerMethod
from corrflow.evaluate.reports.report import mean_scores
from corrflow.evaluate.search import Search, SearchSpace, Trial, better, changed, pareto
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable() or "built")


@pytest.fixture
def root(tmp_path: Path, moving_square) -> Path:
    folder = tmp_path / "davis"
    for name in ("JPEGImages", "Annotations"):
        (folder / name / "480p" / "square").mkdir(parents=True)
    for index, (frame, mask) in enumerate(zip(*moving_square, strict=True)):
        cv2.imwrite(str(folder / "JPEGImages/480p/square" / f"{index:05d}.jpg"), frame)
        cv2.imwrite(str(folder / "Annotations/480p/square" / f"{index:05d}.png"), mask.astype(np.uint8) * 255)
    (folder / "ImageSets" / "2016").mkdir(parents=True)
    (folder / "ImageSets" / "2016" / "train.txt").write_text("square\n")
    return folder


@pytest.fixture
def data(root: Path) -> DataSet:
    return davis_data(root, "train", None, "480p", ())


def test_settings_tried_together_score_as_each_alone(data: DataSet, small_artifact: Path) -> None:
    own = load_artifact(small_artifact).settings
    several = [own, changed(own, "radius", 3), changed(own, "rows", 48), changed(own, "memory_frames", 1)]
    together = Search(data, small_artifact, 1, None).measure(several)
    for settings, tried in zip(several, together, strict=True):
        method = Method("alone", TrackerMethod(ArtifactEncoder(small_artifact), settings))
        alone = evaluate_masks(data, [method]).methods[0]
        assert tried.scores == mean_scores(alone.sequences.values())
        assert tried.seconds > 0
    assert len({tuple(tried.scores.values()) for tried in together}) > 2


def test_every_setting_is_measured_once_and_kept(data: DataSet, small_artifact: Path, tmp_path: Path) -> None:
    own = load_artifact(small_artifact).settings
    space = SearchSpace(radius=(1, 2, 3), memory_frames=(1, 3))
    first = Search(data, small_artifact, 1, tmp_path / "kept")
    chosen = first.in_turn(own, space, 0.0)
    # The start is among the values of both: 1 + 2 radii + 1 number of frames, and one more where the radius changed.
    assert 4 <= len(first.tried) <= 5 and first.reused == 0
    assert chosen.both == max(tried.both for tried in first.tried.values())
    again = Search(data, small_artifact, 1, tmp_path / "kept")
    assert again.in_turn(own, space, 0.0) == chosen
    assert again.reused == len(again.tried) == len(first.tried)
    everything = Search(data, small_artifact, 1, tmp_path / "kept")
    everything.all_together(own, space, 0.0)
    assert len(everything.tried) == 6
    assert everything.reused == len(first.tried)


def tried(both: float, seconds: float, top_k: int = 1) -> Trial:
    return Trial(TrackingSettings(top_k=top_k), {"J": both, "F": both, "J&F": both}, seconds)


def test_the_choice_is_the_best_that_is_quick_enough() -> None:
    slow, quick, quicker = tried(0.9, 2.0, 1), tried(0.8, 1.0, 2), tried(0.8, 0.5, 3)
    assert better([slow, quick, quicker], 0.0) is slow
    assert better([slow, quick, quicker], 1.0) is quicker
    assert better([slow, quick], 0.1) is quick
    assert pareto([slow, quick, quicker, tried(0.7, 3.0, 4)]) == [quicker, slow]


def test_the_chosen_settings_become_an_artifact_that_any_back_end_runs(
    root: Path, small_artifact: Path, tmp_path: Path, moving_square
) -> None:
    out, new = tmp_path / "search", tmp_path / "tuned"
    options = ["--radius", "1,3", "--memory-frames", "", "--top-k", "5", "--temperature", ""]
    done = CliRunner().invoke(
        cli.app,
        ["search", str(root), "--model", str(small_artifact), *options, "--out", str(out), "--write", str(new)],
    )
    assert done.exit_code == 0, done.output
    found = json.loads((out / "search.json").read_text())
    settings = json.loads((out / "settings.json").read_text())
    assert found["chosen"]["settings"] == settings
    assert found["chosen"]["J&F"] == max(item["J&F"] for item in found["tried"])
    artifact = load_artifact(new)
    source = load_artifact(small_artifact)
    assert artifact.settings == replace(source.settings, radius=tuple(settings["radius"]), top_k=settings["top_k"])
    assert artifact.files["encode.onnx"] == source.files["encode.onnx"]
    assert artifact.provenance["settings_of"] == source.sha256
    frames, masks = moving_square
    shown = []
    for name in ("onnxruntime", "onnx-function"):
        tracker = Tracker(open_backend(name, artifact, 1))
        tracker.start(frames[0], [MaskObject(1, masks[0])])
        shown.append(np.stack([tracker.step(frame).mask for frame in frames[1:]]))
    assert np.mean(shown[0] == shown[1]) > 0.9999


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--radius", "a"], "--radius as whole numbers"),
        (["--short-side", "3"], "rows between"),
        (["--memory-frames", "99"], "recent frames"),
        (["--temperature", "0"], "temperature > 0"),
        (["--write", "x"], "--out with --write"),
        (["--split", "val"], "val.txt, found ImageSets/2016/train.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options_are_one_line(root: Path, small_artifact: Path, options: list[str], found: str) -> None:
    done = CliRunner().invoke(cli.app, ["search", str(root), "--model", str(small_artifact), *options])
    assert done.exit_code == 2, done.output
    assert found in done.stderr and len(done.stderr.splitlines()) == 1


def test_files_that_hold_no_settings_are_refused(small_artifact: Path, tmp_path: Path) -> None:
    from corrflow.export.retune import export_with_settings, read_settings

    path = tmp_path / "settings.json"
    for text in ("{", "[]", "{}", '{"short_side": 480, "surprise": 1}'):
        path.write_text(text)
        with pytest.raises(InputError, match="tracking settings in"):
            read_settings(path)
    with pytest.raises(InputError, match="a new folder"):
        export_with_settings(load_artifact(small_artifact), TrackingSettings(), tmp_path)
