"""Search for settings: measured scores match tracking, results are cached, chosen settings become a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.evaluate import cli
from corrflow.evaluate.data_sets import davis_data
from corrflow.evaluate.masks import DataSet, Method, evaluate_masks
from corrflow.evaluate.measurements import Measurements
from corrflow.evaluate.methods.methods import ArtifactEncoder, LabPatches, TrackerMethod
from corrflow.evaluate.reports.report import mean_scores
from corrflow.evaluate.search import Search, Trial, best_trial, changes, pareto, with_value
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


@pytest.fixture
def start(small_artifact: Path) -> TrackerMethod:
    return TrackerMethod(ArtifactEncoder(small_artifact), load_artifact(small_artifact).settings)


def test_settings_measured_together_match_each_alone(data: DataSet, start: TrackerMethod) -> None:
    changed = [("radius", 3), ("short_side", 48), ("memory_frames", 1), ("redetect", False)]
    candidates = [start, *(with_value(start, name, value) for name, value in changed)]
    together = Search(Measurements([data])).measure(candidates)
    for method, trial in zip(candidates, together, strict=True):
        alone = evaluate_masks(data, [Method("alone", method)]).methods[0]
        means = mean_scores(alone.sequences.values())
        assert trial.scores == {**means, "worst third": means["J&F"]}
        assert trial.cpu_seconds > 0
    assert len({tuple(trial.scores.values()) for trial in together}) > 2


def test_every_setting_is_measured_once_and_cached(data: DataSet, start: TrackerMethod, tmp_path: Path) -> None:
    space = {"radius": (1, 2, 3), "memory_frames": (1, 3)}
    first = Measurements([data], 1, tmp_path / "results")
    search = Search(first)
    chosen = search.coordinate_search(start, space)
    # The start is among the values of both: 1 + 2 radii + 1 number of frames, and one more where the radius changed.
    assert 4 <= len(search.trials) <= 5 and first.reused == 0
    assert chosen.value() == max(trial.value() for trial in search.trials.values())
    again = Measurements([data], 1, tmp_path / "results")
    assert Search(again).coordinate_search(start, space) == chosen
    assert again.reused == len(again.methods) == len(search.trials)
    everything = Measurements([data], 1, tmp_path / "results")
    Search(everything).grid_search(start, space)
    assert len(everything.methods) == 6
    assert everything.reused == len(search.trials)


def test_a_copy_of_the_model_has_the_same_results(data: DataSet, start: TrackerMethod, tmp_path: Path) -> None:
    assert isinstance(start.encoder, ArtifactEncoder)
    shutil.copytree(start.encoder.path, tmp_path / "elsewhere" / start.encoder.path.name)
    moved = replace(start, encoder=ArtifactEncoder(tmp_path / "elsewhere" / start.encoder.path.name))
    Measurements([data], 1, tmp_path / "results").measure([start])
    again = Measurements([data], 1, tmp_path / "results")
    again.measure([moved])
    assert again.reused == 1


def test_every_setting_can_be_varied(start: TrackerMethod) -> None:
    for name, value, text in (
        ("radius", (4, 3), "radius=[4,3]"),
        ("radius", 4, "radius=[4]"),
        ("temperature", 1, "temperature=1.0"),
        ("hard_labels", True, "hard_labels=true"),
        ("memory_frames", 2, "recent_offsets=[1,2]"),
        ("redetect", False, "redetect=false"),
        ("occlusion.redetect_area", 0.5, "occlusion.redetect_area=0.5"),
    ):
        assert changes(start, with_value(start, name, value)) == text
    assert changes(start, start) == ""


def trial(score: float, seconds: float, top_k: int, worst: float = 0.0) -> Trial:
    method = TrackerMethod(LabPatches(), TrackingSettings(top_k=top_k))
    return Trial(method, {"J": score, "F": score, "J&F": score, "worst third": worst}, seconds)


def test_the_best_of_the_fast_trials_is_chosen() -> None:
    slow, fast, faster = trial(0.9, 2.0, 1), trial(0.8, 1.0, 2), trial(0.8, 0.5, 3)
    assert best_trial([slow, fast, faster], 0.0) is slow
    assert best_trial([slow, fast, faster], 1.0) is faster
    assert best_trial([slow, fast], 0.1) is fast
    even = trial(0.6, 1.0, 4, worst=0.5)
    assert [best_trial([slow, even], 0.0, objective) for objective in ("mean", "worst-third", "both")] == [
        slow,
        even,
        even,
    ]
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
        (["--vary", "surprise=1"], "got 'surprise'"),
        (["--vary", "occlusion.surprise=1"], "got 'occlusion.surprise'"),
        (["--vary", "hard_labels=1"], "values such as False for hard_labels, got 1"),
        (["--vary", "dilation=[1.5]"], "for dilation, got (1.5,)"),
        (["--vary", "top_k"], "NAME=VALUE,VALUE"),
        (["--objective", "best"], "mean, worst-third, both, got 'best'"),
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


def test_several_data_sets_count_the_same(root: Path, small_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text(
        "full rate: {root: davis, split: train}\nbackward: {root: davis, split: train, backward: true}\n"
    )
    out = tmp_path / "out"
    arguments = ["search", str(tmp_path / "sets.yaml"), "--model", str(small_artifact), "--out", str(out)]
    arguments += [f"--{name}=" for name in ("memory-frames", "top-k", "temperature", "radius")]
    done = CliRunner().invoke(cli.app, [*arguments, "--vary", "radius=[3],[1]", "--objective", "worst-third"])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "search.json").read_text())
    assert [item["label"] for item in report["sets"]] == ["full rate", "backward"]
    assert [item["sequences"] for item in report["sets"]] == [["square"], ["square@backward"]]
    sets = [davis_data(root, "train", backward=backward) for backward in (False, True)]
    method = TrackerMethod(ArtifactEncoder(small_artifact), load_artifact(small_artifact).settings)
    alone = [evaluate_masks(data, [Method("alone", method)]).methods[0].sequences.values() for data in sets]
    (start,) = (trial for trial in report["tried"] if trial["settings"]["radius"] == [2])
    assert start["J&F"] == pytest.approx(np.mean([mean_scores(scores)["J&F"] for scores in alone]))
    assert report["chosen"]["worst third"] == max(trial["worst third"] for trial in report["tried"])
