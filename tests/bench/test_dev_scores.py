"""Experiments around training on synthetic data: table of ablations and curve of dev scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from helpers.panning import write_panning_video
from helpers.paths import ROOT
from typer.testing import CliRunner

from corrflow.bench.experiments import ablations, dev_scores
from corrflow.bench.experiments.ablations import BASELINE, MODELS, switches
from corrflow.bench.experiments.dev_scores import Scoring
from corrflow.errors import InputError
from corrflow.evaluate.cli import app as evaluate_app
from corrflow.export import to_onnx
from corrflow.export.cli import app as export_app
from corrflow.export.to_onnx import ExportReport
from corrflow.runtime.settings import TrackingSettings
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint
from corrflow.train.cli import app as train_app
from corrflow.train.config import train_config
from corrflow.train.curves import downsample, plot_log

slow = pytest.mark.skipif(not os.environ.get("CORRFLOW_SLOW_TESTS"), reason="takes minutes: CORRFLOW_SLOW_TESTS=1")
TINY = ("--crop", "32", "--batch", "1", "--threads", "1", "--radius", "2")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    write_panning_video(folder / "videos" / "0.mp4", 0)
    return folder


def module(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"corrflow.bench.experiments.{name}", *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=600)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands in this process, because three imports of PyTorch per model would take most of the time."""
    apps = {"train": train_app, "export": export_app, "evaluate": evaluate_app}

    def command(room: str, *options: str) -> None:
        done = CliRunner().invoke(apps[room], options)
        assert done.exit_code == 0, done.output

    monkeypatch.setattr(dev_scores, "command", command)
    monkeypatch.setattr(ablations, "command", command)


@slow
@pytest.mark.usefixtures("in_process")
def test_every_ablation_is_trained_scored_and_in_the_table(footage: Path, small_davis: Path, tmp_path: Path) -> None:
    """Each model is trained for two steps at quarter width; a second call trains and scores nothing."""
    out = tmp_path / "out"
    options = (
        "--data", str(footage / "videos"), "--davis", str(small_davis), "--split", "val", "--steps", "2",
        "--preset", "quarter", "--every", "2", "--short-side", "24", "--out", str(out), "--",
        *("--crop", "32", "--batch", "1", "--threads", "1"), "--cache", str(tmp_path / "cache"),
    )  # fmt: skip
    app = typer.Typer()
    app.command()(ablations.ablations)
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    lines = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [
        "random weights", *(title for title, _, _ in MODELS.values())
    ]  # fmt: skip
    written = json.loads((out / "table.json").read_text())
    assert written["sequences"] == ["two"], "every second sequence of the list"
    report = json.loads((out / "scores" / "report.json").read_text())
    scored = {Path(method["description"]["path"]).name: method["mean_over_objects"] for method in report["methods"]}
    for entry in written["models"]:
        assert entry["J&F"] == pytest.approx(scored[entry["model"]]["J&F"])
        assert entry["steps"] == (0 if entry["model"] == "random-init" else 2)
    # Settings of each model, from its checkpoint.
    whole = load_checkpoint(out / "runs" / "whole").train
    for model in MODELS:
        train = load_checkpoint(out / "runs" / model).train
        changed = {name for name in vars(train) if getattr(train, name) != getattr(whole, name)}
        assert (
            changed
            == {
                "whole": set(),
                "no-colour-dropout": {"grey_input"},
                "full-attention": {"radius"},
                "no-scheduled-sampling": {"teacher_forcing_start", "teacher_forcing_end"},
                "no-cycle": {"cycle_weight"},
                "colorization": {"frames", "radius", "grey_input", "cycle_weight", "lightness"},
            }[model]
        )

    before = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.safetensors")}
    (out / "table.md").unlink()
    assert CliRunner().invoke(app, options).exit_code == 0 and (out / "table.md").exists()
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.safetensors")}
    other = module("ablations", *("3" if option == "2" else option for option in options))
    assert other.returncode == 2 and "with other options (length)" in other.stderr


@slow
@pytest.mark.usefixtures("in_process")
def test_stopped_ablations_are_resumed(
    footage: Path, small_davis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop during the second training, the table has the first model; a second call adds the others."""
    trained: list[str] = []
    run_it, stop_at = ablations.command, 2

    def command(room: str, *options: str) -> None:
        trained.append(Path(options[options.index("--out") + 1]).name)
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        run_it(room, *options)

    def go() -> list[str]:
        trained.clear()
        options = [*TINY[:-2], "--cache", str(tmp_path / "cache")]
        ablations.run(str(footage / "videos"), ("--steps", "2"), "quarter", None, scoring, tmp_path / "out", options)
        return trained

    scoring = Scoring(small_davis, "val", every=2, short_side=24)
    monkeypatch.setattr(ablations, "MODELS", {name: MODELS[name] for name in ("whole", "no-cycle", "colorization")})
    monkeypatch.setattr(ablations, "command", command)
    with pytest.raises(KeyboardInterrupt):
        go()
    names = [entry["model"] for entry in json.loads((tmp_path / "out" / "table.json").read_text())["models"]]
    assert names == ["random-init", "whole"]
    stop_at = 0
    assert go() == ["no-cycle", "colorization"]


def test_the_baseline_of_the_preset_paper_is_the_preset_colorization() -> None:
    assert switches("colorization", "paper") == ("--preset", "colorization")
    # With another preset, the settings differ only in the options and in the temperature of unit-length features.
    baseline = train_config("colorization", {}, [])
    preset = train_config("quarter", {"frames": 2, "lightness": False}, [])
    assert {"--frames", "2", "--full-attention", "--no-colour-dropout", "--no-cycle", "--no-lightness"} == set(BASELINE)
    different = {name for name in vars(baseline) if getattr(baseline, name) != getattr(preset, name)}
    assert different == {"temperature", "radius", "grey_input", "cycle_weight"}


@pytest.mark.parametrize(("preset", "temperature"), [("paper", 1.0), ("quarter", 0.07)])
def test_an_artifact_has_the_temperature_of_its_training(
    preset: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported settings are tested without the graphs, whose export takes ten seconds."""
    exported: list[TrackingSettings] = []

    def export_artifact(source: str, artifact: Path, settings: TrackingSettings, *_: object) -> ExportReport:
        exported.append(settings)
        return ExportReport([])

    monkeypatch.setattr(to_onnx, "export_artifact", export_artifact)
    options = ["--size", "64x64", "--radius", "2", "--top-k", "0", "--refine-radius", "5"]
    done = CliRunner().invoke(export_app, ["onnx", f"random-init:{preset}", str(tmp_path / "artifact"), *options])
    assert done.exit_code == 0, done.output
    assert [(each.temperature, each.refine_radius, each.top_k) for each in exported] == [(temperature, 5, 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--minutes", "1", "--steps", "1"), "either --minutes or --steps"),
        ((), "either --minutes or --steps"),
        (("--steps", "1", "--every", "0"), "--every of at least 1"),
        (("--steps", "1", "--split", "none"), "expected"),
        (("--steps", "1", "--preset", "huge"), "preset"),
    ],
)
def test_bad_options_of_ablations_are_one_sentence(
    footage: Path, small_davis: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    line = (
        "--data",
        str(footage / "videos"),
        "--davis",
        str(small_davis),
        "--split",
        "val",
        "--out",
        str(tmp_path / "o"),
    )
    done = module("ablations", *line, *options)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("o/runs/*"))


@slow
def test_the_dev_curve_has_every_retained_checkpoint(footage: Path, small_davis: Path, tmp_path: Path) -> None:
    """A second evaluation reuses earlier scores; PNG, JSON and TensorBoard agree."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    line = [
        "--data", str(footage / "videos"), "--out", str(run), "--cache", str(tmp_path / "cache"), *TINY,
        "--keep-every", "2", "--steps", "5",
    ]  # fmt: skip
    assert CliRunner().invoke(train_app, line).exit_code == 0
    (run / "retained" / "0000004.safetensors").rename(tmp_path / "later")
    options = (str(run), "--davis", str(small_davis), "--split", "val", "--every", "2", "--short-side", "24")
    for steps in ([2, 5], [2, 4, 5]):
        done = module("dev_curve", *options)
        assert done.returncode == 0, done.stderr
        curve = json.loads((run / "dev-curve" / "curve.json").read_text())
        assert curve["steps"] == steps and len(curve["J&F"]) == len(steps)
        events = EventAccumulator(str(run / "tensorboard" / "dev"))
        events.Reload()
        assert [(event.step, pytest.approx(event.value)) for event in events.Scalars("dev/J&F")] == list(
            zip(steps, curve["J&F"], strict=True)
        )
        image = cv2.imread(str(run / "dev-curve" / "curve.png"))
        assert image is not None and image.shape[0] > 200
        if steps == [2, 5]:
            (tmp_path / "later").rename(run / "retained" / "0000004.safetensors")
    assert scores_reused(run) == 2
    with pytest.raises(InputError, match="keep-every"):
        from corrflow.bench.experiments.dev_curve import measure

        (tmp_path / "none").mkdir()
        measure(tmp_path / "none", Scoring(small_davis, "val"), None)
    assert (run / "curves.png").exists(), "plot of the losses"
    assert load_checkpoint(run / FILE_NAME).step == 5


def scores_reused(run: Path) -> int:
    methods = json.loads((run / "dev-curve" / "scores" / "report.json").read_text())["methods"]
    return sum(sequence["reused"] for method in methods for sequence in method["sequences"].values())


def test_logs_of_any_length_are_plotted(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("")
    plot_log(log, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    entry = {"forward": 1.0, "cycle": 2.0, "seconds": 0.1}
    log.write_text("".join(json.dumps({"step": step, **entry}) + "\n" for step in range(1, 4)) + '{"step": 4, "fo')
    plot_log(log, tmp_path / "curves.png")
    image = cv2.imread(str(tmp_path / "curves.png"))
    assert image is not None and len(np.unique(image)) > 10
    assert downsample(range(3)) == [0, 1, 2]
    long = downsample(range(100_001))
    assert (
        len(long) == 500 and long[0] == pytest.approx(100, abs=1) and np.mean(long) == pytest.approx(50_000, rel=1e-3)
    )


@pytest.mark.parametrize("name", ["ablations", "dev-curve"])
def test_the_scripts_explain_themselves(name: str) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / name), "--help"],
        capture_output=True, text=True, env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0 and "--davis" in done.stdout and f"bash scripts/{name}" in done.stdout
