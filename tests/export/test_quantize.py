"""Features of the 8-bit encoder resemble the original ones, and the encoder is used only if it is faster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from corrflow.errors import CorrflowError, InputError
from corrflow.export import quantize, to_onnx
from corrflow.export.cli import app
from corrflow.runtime.artifacts.artifact import ENCODE, ENCODE_FP16, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings

SIZE = (64, 96)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a folder of images of blurred noise, and a text file that is no clip."""
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "clip").mkdir()
    generator = np.random.default_rng(0)
    for index in range(30):
        noise = cv2.GaussianBlur(generator.random((96, 128, 3)), (0, 0), 3)
        image = cv2.normalize(noise, np.empty_like(noise), 0, 255, cv2.NORM_MINMAX)
        cv2.imwrite(str(folder / "clip" / f"{index:05d}.png"), image.astype(np.uint8))
    (folder / "notes.txt").write_text("no clip")
    return folder


@pytest.fixture
def exported(small_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the encoder's graphs from the small artifact, which was exported from the same weights in this session."""
    files = load_artifact(small_artifact).files
    graphs = {False: files[ENCODE], True: files[ENCODE_FP16]}
    monkeypatch.setattr(to_onnx, "encode_model", lambda encoder, half: onnx.load_from_string(graphs[half]))


def export(artifact: Path, calibration_data: Path | None) -> to_onnx.ExportReport:
    settings = TrackingSettings(short_side=64, recent_offsets=(1, 2, 3), radius=(2,), top_k=10, temperature=0.1)
    return to_onnx.export_artifact("random-init:quarter", artifact, settings, SIZE, calibration_data)


@pytest.fixture(scope="module")
def quantised(small_artifact: Path, images: Path) -> quantize.QuantisedEncoder:
    return quantize.quantise(load_artifact(small_artifact).files[ENCODE], images, SIZE)


def with_speed(quantised: quantize.QuantisedEncoder, seconds: float):
    """Return a replacement of `quantise` with this time for 8 bits, and 1 s for floating point."""
    return lambda *_: replace(quantised, seconds=seconds, seconds_float=1.0)


@pytest.mark.usefixtures("exported")
def test_a_faster_8_bit_encoder_is_written_and_runs(
    tmp_path: Path, small_artifact: Path, images: Path, quantised: quantize.QuantisedEncoder, monkeypatch
) -> None:
    monkeypatch.setattr(to_onnx, "quantise", with_speed(quantised, 0.5))
    export(tmp_path / "int8", images)
    integer, original = load_artifact(tmp_path / "int8"), load_artifact(small_artifact)
    assert integer.provenance["quantised"]["encode"] == "int8"
    assert len(integer.files[ENCODE]) < 0.5 * len(original.files[ENCODE])
    image = cv2.imread(str(images / "clip" / "00003.png"))
    assert image is not None
    ours, theirs = (open_backend("auto", artifact, 1).encode(image) for artifact in (integer, original))
    assert ours.shape == theirs.shape
    assert not np.array_equal(ours, theirs)
    assert (ours * theirs).sum(0).mean() > quantize.MIN_SIMILARITY  # features of unit length


def test_the_bundled_encoder_with_two_sizes_and_colours_can_be_quantised(images: Path) -> None:
    """If the epsilon of the feature length were quantised, it would be zero and features would be NaN."""
    encode = load_artifact(resolve_model(None)).with_float_encoder().files[ENCODE]
    assert quantize.quantise(encode, images, SIZE).similarity > quantize.MIN_SIMILARITY


@pytest.mark.usefixtures("exported")
def test_a_slower_8_bit_encoder_is_not_used(
    tmp_path: Path, small_artifact: Path, images: Path, quantised: quantize.QuantisedEncoder, monkeypatch
) -> None:
    monkeypatch.setattr(to_onnx, "quantise", with_speed(quantised, 1.5))
    export(tmp_path / "fp32", images)
    written = load_artifact(tmp_path / "fp32")
    assert written.files[ENCODE] == load_artifact(small_artifact).files[ENCODE]
    assert "quantised" not in written.provenance


def test_speeds_and_similarity_are_measured(quantised: quantize.QuantisedEncoder) -> None:
    assert 0 < quantised.seconds < 10 and 0 < quantised.seconds_float < 10
    assert quantize.MIN_SIMILARITY < quantised.similarity < 1
    assert quantised.frames == 2  # frames 0 and 10; frame 20 is a test frame


def test_dissimilar_features_are_refused(small_artifact: Path, images: Path, monkeypatch) -> None:
    encode = load_artifact(small_artifact).files[ENCODE]
    grey = np.full((64, 64, 3), 128, np.uint8)
    # Scales calibrated on uniform grey clip all other values.
    monkeypatch.setattr(
        quantize, "calibration_frames", lambda *_: [grey, grey, cv2.imread(str(images / "clip" / "00000.png"))]
    )
    with pytest.raises(CorrflowError, match="calibrate on more frames"):
        quantize.quantise(encode, images, SIZE)


def test_calibration_frames_come_from_all_clips_and_images(tmp_path: Path, images: Path) -> None:
    (tmp_path / "single.png").write_bytes((images / "clip" / "00000.png").read_bytes())
    (tmp_path / "clip").symlink_to(images / "clip")
    frames = quantize.calibration_frames(tmp_path, 48)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 4  # one image, and frames 0, 10 and 20 of the clip


@pytest.mark.parametrize("kind", ["no folder", "an empty folder", "a folder of text"])
def test_a_folder_without_frames_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "clips"
    if kind != "no folder":
        folder.mkdir()
    if kind == "a folder of text":
        (folder / "a.mp4").write_text("no video")
    with pytest.raises(InputError):
        quantize.calibration_frames(folder, 480)


@pytest.mark.parametrize(
    "options",
    [["--precision", "int8"], ["--calibration-data", "."], ["--precision", "int4"], ["--davis", "."]],
    ids=["no calibration", "no precision", "unknown precision", "scores without int8"],
)
def test_options_that_exclude_each_other_exit_with_2(tmp_path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["onnx", "random-init:quarter", str(tmp_path / "artifact"), *options])
    assert result.exit_code == 2
    assert "expected" in result.output
    assert not (tmp_path / "artifact").exists()
