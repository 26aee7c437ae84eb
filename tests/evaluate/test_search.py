"""Search for settings: measured scores match tracking, results are cached, chosen settings become a model."""

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
from corrflow.evaluate.search import Search, SearchSpace, Trial, best_trial, pareto, with_value
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
    return davis_data(root, "train")


def test_settings_measured_together_match_each_alone(data: DataSet, small_artifact: Path) -> None:
    start = load_artifact(small_artifact).settings
    changes = [("radius", 3), ("short_side", 48), ("memory_frames", 1)]
    candidates = [start, *(with_value(start, name, value) for name, value in changes)]
    together = Search(data, small_artifact, 1, None).measure(candidates)
    for settings, trial in zip(candidates, together, strict=True):
        method = Method("alone", TrackerMethod(ArtifactEncoder(small_artifact), settings))
        alone = evaluate_masks(data, [method]).methods[0]
        assert trial.scores == mean_scores(alone.sequences.values())
        assert trial.seconds > 0
    assert len({tuple(trial.scores.values()) for trial in together}) > 2


def test_every_setting_is_measured_once_and_cached(data: DataSet, small_artifact: Path, tmp_path: Path) -> None:
    start = load_artifact(small_artifact).settings
    space = SearchSpace(radius=(1, 2, 3), memory_frames=(1, 3))
    first = Search(data, small_artifact, 1, tmp_path / "results")
    chosen = first.coordinate_search(start, space, 0.0)
    # The start is among the values of both: 1 + 2 radii + 1 number of frames, and one more where the radius changed.
    assert 4 <= len(first.trials) <= 5 and first.reused == 0
    assert chosen.j_and_f == max(trial.j_and_f for trial in first.trials.values())
    again = Search(data, small_artifact, 1, tmp_path / "results")
    assert again.coordinate_search(start, space, 0.0) == chosen
    assert again.reused == len(again.trials) == len(first.trials)
    everything = Search(data, small_artifact, 1, tmp_path / "results")
    everything.grid_search(start, space, 0.0)
    assert len(everything.trials) == 6
    assert everything.reused == len(first.trials)


def trial(score: float, seconds: float, top_k: int) -> Trial:
    return Trial(TrackingSettings(top_k=top_k), {"J": score, "F": score, "J&F": score}, seconds)


def test_the_best_of_the_fast_trials_is_chosen() -> None:
    slow, fast, faster = trial(0.9, 2.0, 1), trial(0.8, 1.0, 2), trial(0.8, 0.5, 3)
    assert best_trial([slow, fast, faster], 0.0) is slow
    assert best_trial([slow, fast, faster], 1.0) is faster
    assert best_trial([slow, fast], 0.1) is fast
    assert pareto([slow, fast, faster, trial(0.7, 3.0, 4)]) == [faster, slow]


def test_the_chosen_settings_become_a_model_for_every_backend(
    root: Path, small_artifact: Path, tmp_path: Path, moving_square
) -> None:
    out, new = tmp_path / "search", tmp_path / "tuned"
    options = ["--radius", "1,3", "--memory-frames", "", "--top-k", "5", "--temperature", ""]
    done = CliRunner().invoke(
        cli.app,
        ["search", str(root), "--model", str(small_artifact), *options, "--out", str(out), "--write", str(new)],
    )
    assert done.exit_code == 0, done.output
    report = json.loads((out / "search.json").read_text())
    settings = json.loads((out / "settings.json").read_text())
    assert report["chosen"]["settings"] == settings
    assert report["chosen"]["J&F"] == max(trial["J&F"] for trial in report["tried"])
    artifact = load_artifact(new)
    source = load_artifact(small_artifact)
    assert artifact.settings == replace(source.settings, radius=tuple(settings["radius"]), top_k=settings["top_k"])
    assert artifact.files["encode.onnx"] == source.files["encode.onnx"]
    assert artifact.provenance["settings_of"] == source.sha256
    frames, masks = moving_square
    results = []
    for name in ("onnxruntime", "onnx-function"):
        tracker = Tracker(open_backend(name, artifact, 1))
        tracker.start(frames[0], [MaskObject(1, masks[0])])
        results.append(np.stack([tracker.step(frame).mask for frame in frames[1:]]))
    assert np.mean(results[0] == results[1]) > 0.9999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--radius", "a"], "--radius as whole numbers"),
        (["--short-side", "3"], "a short side of 16 to 8192"),
        (["--memory-frames", "99"], "recent frames"),
        (["--temperature", "0"], "temperature > 0"),
        (["--write", "x"], "--out with --write"),
        (["--split", "val"], "val.txt, found ImageSets/2016/train.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options_are_one_line(root: Path, small_artifact: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["search", str(root), "--model", str(small_artifact), *options])
    assert done.exit_code == 2, done.output
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_files_without_settings_are_refused(small_artifact: Path, tmp_path: Path) -> None:
    from corrflow.export.retune import export_with_settings, read_settings

    path = tmp_path / "settings.json"
    for text in ("{", "[]", "{}", '{"short_side": 480, "surprise": 1}'):
        path.write_text(text)
        with pytest.raises(InputError, match="tracking settings in"):
            read_settings(path)
    with pytest.raises(InputError, match="a new folder"):
        export_with_settings(load_artifact(small_artifact), TrackingSettings(), tmp_path)
