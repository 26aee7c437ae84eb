"""Features other than a model's own: positions on the tracker's cells, options of ONNX encoders, and Lab patches."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from corrflow.errors import CorrflowError, InputError
from corrflow.evaluate.methods.encoders import LabBackend, OnnxEncoderBackend
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import ENCODE, load_artifact
from corrflow.runtime.backends.onnx_encoder import OnnxEncoder, unit_length
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

SETTINGS = TrackingSettings(short_side=0, radius=(3,), recent_offsets=(1, 2))

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable() or "built")


def pooling(
    path: Path,
    stride: int,
    layout: str = "nchw",
    size: tuple[int | str, int | str] = ("h", "w"),
    dtype=TensorProto.FLOAT,
) -> Path:
    """Save an encoder that averages stride x stride pixels, and outputs the three means and their sum."""
    axes = [1, 3, *size] if layout == "nchw" else [1, *size, 3]
    nodes, last = [], "image"
    if dtype == TensorProto.UINT8:
        nodes.append(helper.make_node("Cast", [last], ["cast"], to=TensorProto.FLOAT))
        last = "cast"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [last], ["first"], perm=[0, 3, 1, 2]))
        last = "first"
    nodes += [
        helper.make_node("AveragePool", [last], ["mean"], kernel_shape=[stride] * 2, strides=[stride] * 2, ceil_mode=1),
        helper.make_node("Conv", ["mean", "mix"], ["features"]),
    ]
    mix = np.concatenate([np.eye(3), np.ones((1, 3))]).astype(np.float32)[:, :, None, None]
    graph = helper.make_graph(
        nodes,
        "pooling",
        [helper.make_tensor_value_info("image", dtype, axes)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 4, "rows", "columns"])],
        [numpy_helper.from_array(mix, "mix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return path


def features(encoder: OnnxEncoder, frame: np.ndarray) -> np.ndarray:
    return OnnxEncoderBackend(encoder, SETTINGS, 1).encode(frame)


def ramp(height: int, width: int) -> np.ndarray:
    """Render an image whose blue increases to the right and green downwards, with constant red."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 90)], 2).astype(np.uint8)


def plain(path: Path, **options) -> OnnxEncoder:
    """Build an encoder that gets unchanged pixels, 0 to 255."""
    return OnnxEncoder(path, mean=(0, 0, 0), std=(1 / 255,) * 3, **options)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_features_of_any_stride_are_interpolated_to_cell_centres(tmp_path: Path, stride: int) -> None:
    """Compare with a linear image: averages are its values at their centres, so cell i has the value 4i + 1.5."""
    encoder = plain(pooling(tmp_path / "e.onnx", stride), colours="bgr")
    backend = OnnxEncoderBackend(encoder, SETTINGS, 1)
    output = backend.features(ramp(96, 128))
    assert output.shape == (4, 24, 32)
    # The constant channel restores the lengths.
    output = output / output[2] * 90
    inner = slice(stride // 4, 24 - stride // 4), slice(stride // 4, 32 - stride // 4)
    centre_y, centre_x = np.mgrid[:24, :32] * 4 + 1.5
    np.testing.assert_allclose(output[0][inner], centre_x[inner], atol=0.01)
    np.testing.assert_allclose(output[1][inner], centre_y[inner], atol=0.01)


def test_layout_and_colours_change_only_the_order(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    first = features(plain(pooling(tmp_path / "a.onnx", 4), colours="bgr"), frame)
    last = features(plain(pooling(tmp_path / "b.onnx", 4, "nhwc"), colours="bgr"), frame)
    np.testing.assert_array_equal(first, last)
    red_first = features(plain(pooling(tmp_path / "c.onnx", 4), colours="rgb"), frame)
    np.testing.assert_allclose(red_first[[2, 1, 0, 3]], first, atol=1e-6)
    integers = features(plain(pooling(tmp_path / "d.onnx", 4, dtype=TensorProto.UINT8), colours="bgr"), frame)
    np.testing.assert_allclose(integers, first, atol=1e-6)
    assert np.abs(np.linalg.norm(first, axis=0) - 1).max() < 1e-5


def test_mean_and_std_are_for_pixels_from_zero_to_one(tmp_path: Path) -> None:
    path = pooling(tmp_path / "e.onnx", 4)
    frame = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    got = features(OnnxEncoder(path, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125)), frame)
    pixels = (frame[..., ::-1] / 255 - (0.1, 0.2, 0.3)) / (0.5, 0.25, 0.125)
    means = pixels.reshape(2, 4, 2, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    expected = unit_length(np.concatenate([means, means.sum(0, keepdims=True)]).astype(np.float32))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_encoder_of_fixed_size_gets_frames_of_that_size(tmp_path: Path) -> None:
    encoder = plain(pooling(tmp_path / "e.onnx", 8, size=(64, 64)), colours="bgr")
    output = OnnxEncoderBackend(encoder, SETTINGS, 1).features(ramp(96, 128))
    assert output.shape == (4, 24, 32)
    output = output / output[2] * 90
    centre_y, centre_x = np.mgrid[:24, :32] * 4 + 1.5
    np.testing.assert_allclose(output[0][4:-4, 4:-4], centre_x[4:-4, 4:-4], atol=0.6)
    np.testing.assert_allclose(output[1][4:-4, 4:-4], centre_y[4:-4, 4:-4], atol=0.6)


def test_a_models_encoder_as_onnx_file_tracks_alike(small_artifact: Path, moving_square, tmp_path: Path) -> None:
    artifact = load_artifact(small_artifact)
    frames, masks = moving_square
    encoder = OnnxEncoder(small_artifact / ENCODE, "nhwc", "bgr")
    results = []
    for backend in (open_backend("onnxruntime", artifact, 1), OnnxEncoderBackend(encoder, artifact.settings, 1)):
        tracker = Tracker(backend, artifact.settings)
        tracker.start(frames[0], [MaskObject(1, masks[0])])
        results.append(np.stack([tracker.step(frame).mask for frame in frames[1:]]))
    assert np.mean(results[0] == results[1]) > 0.9999


def test_lab_patches_are_the_colours_around_a_cell() -> None:
    frame = np.random.default_rng(1).integers(0, 255, (22, 30, 3), np.uint8)
    got = LabBackend("lab", SETTINGS, {}, 1).encode(frame)
    assert got.shape == (108, 6, 8)
    padded = np.pad(frame, ((0, 2), (0, 2), (0, 0)), mode="edge")
    lab = cv2.cvtColor(padded.astype(np.float32) / 255, cv2.COLOR_BGR2LAB) - np.array([50, 0, 0], np.float32)
    # Cell (2, 3) covers rows 8..11 and columns 12..15; its patch is the twelve pixels around.
    patch = lab[4:16, 8:20].reshape(6, 2, 6, 2, 3).mean((1, 3)).ravel()
    np.testing.assert_allclose(got[:, 2, 3], patch / np.linalg.norm(patch), atol=1e-5)


def test_identical_patches_follow_a_moving_object(moving_square) -> None:
    frames, masks = moving_square
    tracker = Tracker(LabBackend("lab", SETTINGS, {}, 1), SETTINGS)
    tracker.start(frames[0], [MaskObject(1, masks[0])])
    predicted, truth = [tracker.step(frame).mask == 1 for frame in frames[1:]][-1], masks[-1]
    assert (predicted & truth).sum() / (predicted | truth).sum() > 0.7


def test_invalid_encoders_are_refused_in_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    with pytest.raises(InputError, match=r"text\.onnx"):
        _ = OnnxEncoder(text).content
    foreign = onnx.load(str(pooling(tmp_path / "e.onnx", 4)))
    foreign.graph.node[0].domain = "com.elsewhere"
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    with pytest.raises(InputError, match="domain"):
        _ = OnnxEncoder(tmp_path / "foreign.onnx").content
    with pytest.raises(InputError, match="name the layout"):
        OnnxEncoderBackend(plain(pooling(tmp_path / "odd.onnx", 1, size=(3, 3))), SETTINGS, 1)
    two = onnx.load(str(pooling(tmp_path / "e.onnx", 4)))
    two.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 3, "rows", "columns"]))
    onnx.save(two, str(tmp_path / "two.onnx"))
    with pytest.raises(InputError, match=r"expected one output, a feature map, got 2 \(features, mean\)"):
        OnnxEncoderBackend(plain(tmp_path / "two.onnx"), SETTINGS, 1)


def test_a_map_of_two_strides_is_refused(tmp_path: Path) -> None:
    model = onnx.load(str(pooling(tmp_path / "e.onnx", 4)))
    pool = model.graph.node[0]
    for attribute in pool.attribute:
        if attribute.name in ("kernel_shape", "strides"):
            attribute.ints[:] = [2, 8]
    onnx.save(model, str(tmp_path / "two.onnx"))
    with pytest.raises(CorrflowError, match="one stride"):
        features(plain(tmp_path / "two.onnx"), ramp(96, 128))


@pytest.mark.faults
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device file")
def test_a_device_is_no_encoder(tmp_path: Path) -> None:
    """/dev/zero has a size of 0, and never ends."""
    (tmp_path / "encoder.onnx").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"expected a regular file at .*encoder.onnx, got a device"):
        _ = OnnxEncoder(tmp_path / "encoder.onnx").content
