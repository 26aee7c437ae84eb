"""Frame-time model: counts match a count by hand, and the documentation has the command's tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import ROOT
from typer.testing import CliRunner

from corrflow.bench.cli import app
from corrflow.bench.device_model import (
    FEATURE_BYTES,
    FIT_BYTES,
    FRAME_BYTES,
    MACHINES,
    OBJECT_SHARE,
    REGION_BYTES,
    Layer,
    Parts,
    Row,
    encoder_layers,
    host_bytes,
    host_operations,
    rows,
    table,
    verdicts,
)
from corrflow.bench.op.roofline import Device
from corrflow.bench.options import DeviceModelOptions
from corrflow.errors import InputError
from corrflow.runtime.tracking.geometry import Geometry

onnx = pytest.importorskip("onnx", reason="needs onnx")


@pytest.fixture(scope="module")
def computed() -> list[Row]:
    return rows(DeviceModelOptions())


def test_the_documentation_has_the_tables_of_the_command(computed: list[Row]) -> None:
    page = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
    assert table(computed) in page and verdicts(computed) in page
    assert table(computed).startswith("| GPU (model, not measured)")


@pytest.mark.parametrize(
    ("gpu", "short_side"), [("Jetson AGX Orin 64 GB", 480), ("Jetson Orin Nano 8 GB", 240)], ids=["AGX Orin", "Nano"]
)
def test_the_fast_model_reaches_30_frames_a_second(gpu: str, short_side: int, computed: list[Row]) -> None:
    (row,) = (each for each in computed if (each.gpu, each.model, each.short_side) == (gpu, "fast", short_side))
    assert row.parts.frames_per_second() >= 30


def test_the_parts_take_no_time_twice() -> None:
    assert Parts(1, 2, 3, 4).frames_per_second() == pytest.approx(100)
    assert Parts(1, 2, 3, 4).frames_per_second(4) == pytest.approx(1000 / 19)
    assert [Parts(0, 0, time, 0).verdict for time in (8, 9, 33, 34)] == ["yes", "at its bound", "at its bound", "no"]


def encoder(operator: str, **attributes: int | list[int]) -> bytes:
    """Make a graph of an operator after a convolution of 8 channels with kernels of 3x3 and a stride of 2."""
    helper, half = onnx.helper, onnx.TensorProto.FLOAT16
    nodes = [
        helper.make_node("Cast", ["frame"], ["half"], to=half),
        helper.make_node("Transpose", ["half"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["wide"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["wide", "wide"][: 2 if operator == "Add" else 1], ["features"], **attributes),
    ]
    frame = helper.make_tensor_value_info("frame", onnx.TensorProto.UINT8, [1, "height", "width", 3])
    features = helper.make_tensor_value_info("features", half, [1, 8, "h", "w"])
    weights = onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float16), "weights")
    graph = helper.make_graph(nodes, "encoder", [frame], [features], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


def test_layers_match_a_count_by_hand() -> None:
    cast, transpose, conv, add = encoder_layers(encoder("Add"), (6, 10))
    pixels, cells = 6 * 10, 3 * 5
    assert cast == transpose == Layer(2 * 2 * 3 * pixels)
    # 3 input channels take the time of 8.
    assert conv == Layer(2 * (3 * pixels + 8 * 3 * 9 + 8 * cells), matrix=2 * 8 * cells * 8 * 9)
    assert add == Layer(2 * 8 * cells)
    assert len(encoder_layers(encoder("Relu"), (6, 10))) == 3


def test_a_layer_takes_the_time_of_its_slowest_resource() -> None:
    gpu = Device("test", 2, 0.5, 10, 1000)  # a million clocks in a millisecond
    assert Layer(20e6, 1e9, 0).milliseconds(gpu) == pytest.approx(2)
    assert Layer(20e6, 3e9, 0).milliseconds(gpu) == pytest.approx(3)
    assert Layer(20e6, 3e9, 1024e6).milliseconds(gpu) == pytest.approx(4)


def test_a_graph_with_free_sizes_is_refused() -> None:
    with pytest.raises(InputError, match=r"sizes follow from the frame's, got free .*; export it again"):
        encoder_layers(encoder("NonZero"), (6, 10))


def test_the_host_enlarges_and_refines_a_share_of_the_frame() -> None:
    geometry = Geometry.of((100, 200), 50)
    cells, pixels, fitted = 13 * 25, 20000, 20000 / 16
    without = FEATURE_BYTES * 7 * cells + FRAME_BYTES * pixels + OBJECT_SHARE * REGION_BYTES * pixels
    assert host_bytes(geometry, 7, refines=False) == pytest.approx(without)
    assert host_bytes(geometry, 7, refines=True) == pytest.approx(without + OBJECT_SHARE * FIT_BYTES * fitted)


def test_the_host_solves_and_applies_a_target_model() -> None:
    geometry = Geometry.of((64, 64), 64)  # 16x16 cells; the object has 8x8, so a contour of 32
    samples = 256 + 4 * 64
    kernels = 2 * 9 * samples * (32 * 5 + 64)  # seven channels and the place; doubtful cells and the newest samples
    assert host_operations(geometry, 7) == pytest.approx(kernels + 2 / 3 * samples**3)


def test_the_command_prints_a_model_for_any_size_and_refuses_a_wrong_one(tmp_path: Path) -> None:
    words = ["device-model", "--model", "fast", "--short-side", "240", "--size"]
    done = CliRunner().invoke(app, [*words, "1080x1920", "--json", str(tmp_path / "model.json")])
    assert done.exit_code == 0 and "Model, not measured" in done.output
    report = json.loads((tmp_path / "model.json").read_text())
    assert report["measured"] is False
    assert [row["gpu"] for row in report["rows"]] == [machine.gpu.name for machine in MACHINES]
    assert all(time > 0 for row in report["rows"] for time in row["parts"].values())
    wrong = CliRunner().invoke(app, [*words, "large"])
    assert wrong.exit_code == 2 and "expected --size as height x width, got 'large'" in wrong.output
