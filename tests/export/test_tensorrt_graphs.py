"""TensorRT's parser and builder accept every graph in every precision, on a machine without a GPU.

tensorrt-rtx shares both with TensorRT and needs no driver. It has no plugins, so it gets the function body. No test
runs an engine.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers.paths import HELPERS

from corrflow.errors import InputError
from corrflow.export.propagate_graph import Sizes, propagate_model
from corrflow.export.quantize import quantise
from corrflow.export.step_graph import fixed_encode, graphs_of_settings, no_step, step_model
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifacts.artifact import (
    ENCODE,
    ENCODE_FP16,
    ENCODE_INT8,
    PROPAGATE,
    STEP,
    Artifact,
    load_artifact,
)
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.settings import TrackingSettings

FRAME, CELLS, CHANNELS = (66, 98), (17, 25), 8
PRECISIONS = {"fp32": ENCODE, "fp16": ENCODE_FP16, "int8": ENCODE_INT8}


@pytest.fixture(scope="module")
def artifact(small_artifact: Path) -> Artifact:
    return load_artifact(small_artifact)


@pytest.fixture(scope="module")
def encoders(artifact: Artifact, moving_square, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the encoder of each precision; int8 is calibrated on the moving square."""
    folder = tmp_path_factory.mktemp("frames")
    for index, frame in enumerate(moving_square[0]):
        cv2.imwrite(str(folder / f"{index}.png"), frame)
    return artifact.files | {ENCODE_INT8: quantise(artifact.files[ENCODE], folder, FRAME).engine}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["encode", "propagate", "propagate, indexed references", "step", "step, two windows"])
def test_the_builder_accepts(name: str, precision: str, artifact: Artifact, encoders: dict[str, bytes]) -> None:
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("needs tensorrt-rtx")
    half, settings = precision != "fp32", artifact.settings
    if name == "step, two windows":
        settings = replace(settings, dilation=(1, 2))
    encode = encoders[PRECISIONS[precision]]
    if name == "encode":
        model = fixed_encode(encode, FRAME)
    elif name.startswith("propagate"):
        sizes = Sizes(settings.num_reference_frames, CHANNELS, CELLS, num_windows=7)
        indexed = name != "propagate"
        model = propagate_model(settings.attributes, artifact.channels, sizes, half, indexed_references=indexed)
    else:
        model = step_model(encode, settings, artifact.channels, CHANNELS, FRAME, half)

    done = subprocess.run(
        [sys.executable, str(HELPERS / "rtx_alone.py")], input=model.SerializeToString(), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 10_000


@pytest.mark.parametrize(
    ("permanent_frames", "dilation"),
    [((0,), (1,)), ((), (1,)), ((0,), (1, 2))],
    ids=["first frame", "no first frame", "first frame, two window shapes"],
)
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_the_step_graph_tracks_as_the_tracker_does(
    permanent_frames: tuple[int, ...], dilation: tuple[int, ...], hard: bool, artifact: Artifact, moving_square
) -> None:
    """From the first frame to beyond a full memory, soft masks equal those of the backend with its memory."""
    import onnxruntime

    # Independent noise per frame: a still background would give equal scores over frames, whose order differs.
    noise = np.random.default_rng(1).integers(0, 40, moving_square[0].shape, np.uint8)
    frames = moving_square[0] + noise
    settings = TrackingSettings(64, permanent_frames, (1, 2, 3), (2,), dilation, 10, 0.1, hard_labels=hard)
    graphs = graphs_of_settings(artifact.files[ENCODE], settings, artifact.channels)
    step = onnxruntime.InferenceSession(graphs[STEP], providers=["CPUExecutionProvider"])
    artifact = replace(artifact, files=artifact.files | graphs, settings=settings)
    backend = open_backend("onnx-function", artifact, threads=1)
    memory = backend.new_memory(settings, CHANNELS, CELLS)
    labels = np.random.default_rng(0).random((CHANNELS, *CELLS), np.float32)
    features = backend.encode(frames[0])
    memory.add_frame(features, labels)
    keys, values = features[None, None], labels[None, None]
    for count, frame in enumerate(frames[1:], start=2):
        features = backend.encode(frame)
        expected = backend.propagate(features, memory, SearchPlan.of(memory.references, settings.attributes))
        memory.add_frame(features, (expected > 0.5).astype(np.float32) if hard else expected)
        got, keys, values = map(np.asarray, step.run(None, {"frame": frame[None], "keys": keys, "values": values}))
        np.testing.assert_allclose(got[0], expected, rtol=0, atol=1e-5)
        assert keys.shape[1] == values.shape[1] == min(count, settings.num_reference_frames)
    backend.close()


@pytest.mark.parametrize(
    "settings",
    [
        TrackingSettings(permanent_frames=(0, 5)),
        TrackingSettings(recent_offsets=(1, 3)),
        TrackingSettings(dilate_past_age=15),
    ],
    ids=["later permanent frame", "broken run", "widening window"],
)
def test_settings_that_one_graph_cannot_represent_have_no_step(settings: TrackingSettings, artifact: Artifact) -> None:
    assert no_step(settings)
    assert set(graphs_of_settings(artifact.files[ENCODE], settings, artifact.channels)) == {PROPAGATE}
    with pytest.raises(InputError, match="use encode and propagate"):
        step_model(artifact.files[ENCODE], settings, artifact.channels)


@pytest.mark.parametrize("aot", [False, True], ids=["no aot", "aot"])
def test_the_node_names_the_plugin_and_the_function_is_optional(aot: bool, artifact: Artifact) -> None:
    model = propagate_model(artifact.settings.attributes, artifact.channels, aot=aot, body=False)
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in model.graph.node[0].attribute}
    assert (attributes["plugin_namespace"], attributes["plugin_version"]) == (b"corrflow", b"1")
    assert ("aot" in attributes) == aot
    assert not model.functions


def test_wide_windows_make_no_large_files() -> None:
    """Windows of the bundled model: a mask of all query and patch positions would need 1.6 MB."""
    model = propagate_model(Attributes((12,), (1, 2), top_k=5), channels=91)
    assert len(model.SerializeToString()) < 30_000
