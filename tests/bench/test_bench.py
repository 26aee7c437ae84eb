"""Measurements of corrflow-bench: counts, turns, memory, and peers that compute the same results."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracle import oracle
from typer.testing import CliRunner

from corrflow.bench import machine, track
from corrflow.bench.cli import app
from corrflow.bench.clips import LoopedVideo, write_demo
from corrflow.bench.gather_tracker import GatherTracker, gathered_soft_copy, torch_encoder
from corrflow.bench.op import forms as op_forms
from corrflow.bench.op.extra_memory import extra_memory
from corrflow.bench.op.forms import Case, Unavailable
from corrflow.bench.step_memory import training_step
from corrflow.bench.timing import Timing, time_in_turn
from corrflow.bench.train import STEP, UNFOLD
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject
from corrflow.train.config import TrainConfig
from corrflow.train.trainer import StepResult

COARSER = {"fp16": 5e-3, "16 bits": 5e-4, "8 bits": 0.05}
SMALL = Case(rows=14, columns=19, channels=8, classes=3, references=2, radius=3)


@pytest.mark.parametrize("top_k", [0, 7])
@pytest.mark.parametrize("name", op_forms.forms())
def test_every_form_of_the_benchmark_matches_the_oracle(name: str, top_k: int) -> None:
    case = replace(SMALL, top_k=top_k)
    try:
        got = op_forms.forms()[name](case, 2)()
    except Unavailable as reason:
        pytest.skip(str(reason))
    expected = oracle(*op_forms.inputs(case), case.attributes.windows(2), top_k, op_forms.TEMPERATURE)
    # Scores go up to 1 / 0.07: float16 keys round to one part in 2048, integers as documented at `cpu.PackedFeatures`.
    tolerance = next((allowed for part, allowed in COARSER.items() if part in name), 1e-5)
    # Rounding may swap scores at the boundary of top_k, and then a few values differ by any amount.
    assert np.quantile(np.abs(got - expected), 0.95 if top_k and tolerance > 1e-5 else 1.0) < tolerance


def test_the_packed_forms_are_those_that_tracking_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels have 16 bits; 8 bits need a processor that multiplies bytes, otherwise there is a reason."""
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    packed = [name for name in op_forms.forms() if "bits" in name]
    expected = [op_forms.packed_name(kernel, 16) for kernel in reversed(cpu.kernels())]
    bytes_form = op_forms.packed_name(op_forms.BYTES_KERNEL, 8)
    assert packed == [*expected, bytes_form]
    monkeypatch.setattr(cpu, "kernels", lambda: ("avx2", "portable"))
    # 8-bit features with a kernel of every processor.
    case = replace(SMALL, top_k=0)
    exact, coarse = (op_forms._packed("portable", bits)(case, 1)() for bits in (16, 8))
    assert 1e-4 < np.abs(exact - coarse).max() < COARSER["8 bits"]
    with pytest.raises(Unavailable, match=rf"does not multiply bytes \({op_forms.BYTES_KERNEL}\)"):
        op_forms.forms()[bytes_form](SMALL, 1)


def test_scores_are_counted_inside_the_frame() -> None:
    case = replace(SMALL, rows=4, columns=5, radius=2)
    inside = [
        (y, x, v, u)
        for y in range(4)
        for x in range(5)
        for v in range(y - 2, y + 3)
        for u in range(x - 2, x + 3)
        if 0 <= v < 4 and 0 <= u < 5
    ]
    assert case.scores == 2 * len(inside)
    assert case.operations == 2 * (8 + 3) * case.scores


def test_calls_alternate_and_the_first_of_a_turn_is_omitted() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    calls = {"quick": lambda: call("quick", 0.01), "slow": lambda: call("slow", 0.05)}
    timings = time_in_turn(calls, rounds=2, least_seconds=0.04)
    assert order[:2] == ["quick", "slow"]  # initialisation on first use
    turns = [name for index, name in enumerate(order[2:]) if order[2 + index - 1] != name]
    assert turns == ["quick", "slow", "quick", "slow"]
    assert timings["slow"].calls == 2 and timings["quick"].calls >= 2
    assert 0.01 <= timings["quick"].median < 0.05 <= timings["slow"].median


def test_a_timing_has_the_median_and_the_quartiles() -> None:
    timing = Timing.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (timing.lower_quartile, timing.median, timing.upper_quartile, timing.fastest) == (2.0, 3.0, 4.0, 1.0)
    assert timing.spread == pytest.approx(1 / 3)


def test_peak_growth_includes_freed_memory() -> None:
    if machine.peak_growth(lambda: None) is None:
        pytest.skip("needs a system that reports peak memory")

    def call() -> float:
        return float(np.ones(40 * 2**20, np.uint8)[::4096].sum())

    growth = machine.peak_growth(call)
    assert growth is not None and 38 * 2**20 < growth < 48 * 2**20
    assert (machine.peak_growth(lambda: None) or 0) < 2 * 2**20


def test_unfold_adds_the_memory_of_its_windows() -> None:
    case = Case(rows=40, columns=40, channels=32, radius=6)
    unfold, blocked = (extra_memory(name, case, 1) for name in (op_forms.UNFOLD, op_forms.BLOCKED))
    if unfold is None or blocked is None:
        pytest.skip("needs a system that reports peak memory")
    assert unfold > 0.9 * op_forms.bytes_needed(op_forms.UNFOLD, case) > 2 * blocked


def test_the_plain_tracker_matches_the_oracle() -> None:
    query, keys, values = op_forms.inputs(SMALL)
    settings = TrackingSettings(radius=(3,), top_k=7, temperature=0.07)
    tensors = [torch.from_numpy(array[0]) for array in (query, keys, values)]
    got = gathered_soft_copy(tensors[0], tensors[1], tensors[2], settings)
    np.testing.assert_allclose(got, oracle(query, keys, values, [(3, 1)] * 2, 7, 0.07)[0], atol=1e-5)


def test_the_plain_tracker_tracks_as_ours_does(small_artifact: Path, moving_square) -> None:
    frames, masks = moving_square
    artifact = load_artifact(small_artifact)
    backend = open_backend("auto", artifact, 1)
    features = torch_encoder(artifact)(torch.from_numpy(frames[0])[None])[0]
    np.testing.assert_allclose(features, backend.encode(frames[0]), atol=1e-4)
    ours, plain = Tracker(backend), GatherTracker(artifact, artifact.settings)
    ours.start(frames[0], [MaskObject(1, masks[0])])
    plain.start(frames[0], masks[0])
    for frame in frames[1:]:
        assert np.mean(ours.step(frame).mask != plain.step(frame)) < 1e-3


def test_a_looped_video_restarts(tmp_path: Path) -> None:
    path, mask = write_demo(tmp_path, (64, 96), 3)
    assert mask.shape == (64, 96) and mask.any()
    with LoopedVideo(path, 8, (32, 48)) as video:
        frames = list(video)
    assert [frame.index for frame in frames] == list(range(8))
    assert frames[0].image.shape == (32, 48, 3)
    assert np.array_equal(frames[1].image, frames[4].image) and not np.array_equal(frames[0].image, frames[1].image)


def test_a_stream_reports_growth_and_slowdown() -> None:
    stream = track.Stream(10_000, 100, 150, 0.04, 0.05)
    assert stream.growth == 50 and stream.slowdown == pytest.approx(0.25)


def test_the_op_command_writes_its_measurements(tmp_path: Path) -> None:
    options = ["--case", "2:3", "--cells", "12x16", "--channels", "8", "--rounds", "1", "--form", "unfold"]
    result = CliRunner().invoke(
        app, ["op", *options, "--form", "blocked", "--no-memory", "--json", f"{tmp_path}/op.json"]
    )
    assert result.exit_code == 0, result.output
    assert "unfold" in result.output and "GFLOP/s" in result.output
    (written,) = json.loads((tmp_path / "op.json").read_text())["op"]
    assert written["case"]["top_k"] == 3 and set(written["forms"]) == {"unfold", "torch_blocked"}
    assert written["forms"]["torch_blocked"]["seconds"]["median"] > 0


def test_one_run_of_the_op_command_has_every_packed_form_or_its_reason(tmp_path: Path) -> None:
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    options = ["--case", "2", "--cells", "12x16", "--channels", "8", "--rounds", "1", "--form", "bits"]
    result = CliRunner().invoke(app, ["op", *options, "--no-memory", "--json", f"{tmp_path}/op.json"])
    assert result.exit_code == 0, result.output
    (written,) = json.loads((tmp_path / "op.json").read_text())["op"]
    best, bytes_form = op_forms.packed_name(cpu.kernels()[0], 16), op_forms.packed_name(op_forms.BYTES_KERNEL, 8)
    assert written["forms"][best]["seconds"]["median"] > 0 and best in result.output
    if cpu.multiplies_bytes():
        assert written["forms"][bytes_form]["seconds"]["median"] > 0
    else:
        assert "does not multiply bytes" in written["forms"][bytes_form]["skipped"]
        assert f"{bytes_form}: this processor does not multiply bytes" in " ".join(result.output.split())


def test_the_track_command_times_ours_and_the_peer(tmp_path: Path, small_artifact: Path) -> None:
    options = [
        "--model",
        str(small_artifact),
        "--short-side",
        "64",
        "--size",
        "64x96",
        "--memory-frames",
        "1",
        "--rounds",
        "1",
    ]
    result = CliRunner().invoke(app, ["track", *options, "--timed", "3", "--json", f"{tmp_path}/track.json"])
    assert result.exit_code == 0, result.output
    ours, peer = json.loads((tmp_path / "track.json").read_text())["track"]
    assert peer["tracker"] == track.PEER and peer["agreement_with_the_first"] > 0.95
    assert ours["times_as_fast_as_plain_pytorch"] == pytest.approx(
        peer["seconds"]["median"] / ours["seconds"]["median"]
    )


def test_the_train_command_times_every_part(tmp_path: Path) -> None:
    options = ["--batch", "1", "--crop", "32", "--rounds", "1", "--json", f"{tmp_path}/train.json"]
    result = CliRunner().invoke(app, ["train", *options])
    assert result.exit_code == 0, result.output
    (written,) = json.loads((tmp_path / "train.json").read_text())["train"]
    shares = {name: part["share"] for name, part in written["parts"].items()}
    assert shares["whole step"] == 1 and shares["op, forward alone"] > 0
    assert set(written["memory_bytes"]) == set(written["frames_per_second"]) == {STEP, UNFOLD}
    assert "times as fast" in " ".join(result.output.split())


def test_the_step_with_unfold_is_the_same_step() -> None:
    config = TrainConfig(batch=2, crop=32, radius=2, colours=4, threads=1)
    ours, theirs = (training_step(form, "quarter", config)() for form in ("tiles", "unfold"))
    assert isinstance(ours, StepResult) and isinstance(theirs, StepResult)
    assert ours.forward == pytest.approx(theirs.forward, abs=1e-5)
    assert ours.cycle == pytest.approx(theirs.cycle, abs=1e-5)
    torch.testing.assert_close(ours.predicted, theirs.predicted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["op", "--case", "six"],
        ["op", "--cells", "120"],
        ["op", "--form", "nonsense"],
        ["op", "--json", "nowhere/at/all.json"],
        ["track", "video.mp4"],
        ["track", "--frames", "10"],
        ["track", "--model", "quarter", "--model", "quarter"],
        ["train", "--precision", "float8"],
        ["train", "--preset", "tiny"],
        ["train", "--device", "tpu"],
        ["train", "--device", "cuda", "--data", "videos"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_wrong_options_are_one_sentence(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "expected" in result.output


def test_the_plain_tracker_supports_all_operators_of_the_bundled_encoder() -> None:
    artifact = load_artifact(resolve_model(None)).with_float_encoder()
    frame = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    with torch.inference_mode():
        features = torch_encoder(artifact)(torch.from_numpy(frame)[None])[0].numpy()
    np.testing.assert_allclose(features, open_backend("auto", artifact, 1).encode(frame), atol=1e-4)
