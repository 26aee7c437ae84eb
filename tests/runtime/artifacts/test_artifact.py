"""An artifact is checked before anything in it is used."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import DESCRIPTION, ENCODE, PROPAGATE, load_artifact, save_artifact
from corrflow.runtime.artifacts.bundled import bundled_models, resolve_model
from corrflow.runtime.artifacts.onnx_check import check_onnx
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.settings import TrackingSettings


@pytest.fixture
def copied(small_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_artifact, tmp_path / "copied"))


def rewrite(folder: Path, **changes: object) -> None:
    """Change entries of artifact.json."""
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(description | changes))


def model_with(node_domain: str = "", external: bool = False) -> bytes:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if external:
        weights.ClearField("float_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value="/etc/passwd")
    number = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"], domain=node_domain)],
        "inner",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [weights],
    )
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([node], "outer", [number], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])])
    return helper.make_model(graph).SerializeToString()


def test_folder_and_zip_hold_the_same_artifact(small_artifact: Path, tmp_path: Path) -> None:
    archive = tmp_path / "small.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in small_artifact.iterdir():
            file.write(path, f"small/{path.name}")
    folder, packed = load_artifact(small_artifact), load_artifact(archive)
    assert folder == packed
    assert folder.sha256 == packed.sha256
    assert folder.settings == TrackingSettings(64, (0,), (1, 2, 3), (2,), (1,), 10, 0.1)


def test_settings_survive_a_round_trip(tmp_path: Path) -> None:
    settings = TrackingSettings(0, (0, 5), (1, 3), (3,), (2,), 0, 0.5, 15, True)
    save_artifact(tmp_path / "a", {ENCODE: model_with(), PROPAGATE: model_with()}, 64, settings, {"minutes": 1.5})
    loaded = load_artifact(tmp_path / "a")
    assert (loaded.settings, loaded.provenance, loaded.channels) == (settings, {"minutes": 1.5}, 64)


@pytest.mark.parametrize("name", [ENCODE, PROPAGATE])
def test_a_changed_byte_is_found(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is damaged: expected SHA-256"):
        load_artifact(copied)


@pytest.mark.parametrize("name", [ENCODE, PROPAGATE, DESCRIPTION])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(InputError, match=f"expected {name} in the artifact"):
        load_artifact(copied)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 3},
        {"format": 5},
        {"format": 0},
        {"format": "4"},
        {"stride": 8},
        {"channels": 10**9},
        {"tracking": {"short_side": 480, "surprise": 1, "radius": [6], "dilation": [1]}},
        {"tracking": []},
        {"files": {}},
        {"files": {"../../etc/passwd": {"sha256": "0"}}},
        {"provenance": 3},
    ],
    ids=str,
)
def test_a_wrong_description_is_refused(copied: Path, changes: dict) -> None:
    rewrite(copied, **changes)
    with pytest.raises(InputError, match=r"artifact|export"):
        load_artifact(copied)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (model_with(external=True), "external data"),
        (model_with(node_domain="com.evil"), "domain 'com.evil'"),
        (b"", "without a graph"),
        (b"\x08", "damaged"),
        (b"not an onnx file", "damaged|without a graph"),
    ],
    ids=["external data", "foreign domain", "empty", "cut off", "text"],
)
def test_foreign_onnx_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    save_artifact(tmp_path / "a", {ENCODE: content, PROPAGATE: model_with()}, 64, TrackingSettings(), {})
    with pytest.raises(InputError, match=reason):
        load_artifact(tmp_path / "a")


def test_external_data_in_a_function_is_refused() -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    weights.external_data.add(key="location", value="weights.bin")
    model = onnx.load_from_string(model_with())
    constant = helper.make_node("Constant", [], ["y"], value=weights)
    model.functions.append(helper.make_function("corrflow", "F", [], ["y"], [constant], [helper.make_opsetid("", 18)]))
    with pytest.raises(InputError, match="external data"):
        check_onnx("model.onnx", model.SerializeToString())


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_the_guard_answers_any_bytes_with_a_verdict(content: bytes, cut: int, flip: int) -> None:
    damaged = bytearray(model_with()[:cut])
    if flip < len(damaged):
        damaged[flip] ^= 0x55
    for candidate in (content, bytes(damaged)):
        try:
            check_onnx("model.onnx", candidate)
        except InputError as error:
            assert "model.onnx" in str(error)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), flip=st.floats(0, 1))
def test_a_damaged_zip_is_refused_or_whole_in_one_sentence(
    small_artifact: Path, tmp_path: Path, cut: float, flip: float
) -> None:
    archive = tmp_path / "damaged.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in (DESCRIPTION, ENCODE, PROPAGATE):
            file.write(small_artifact / name, name)
    content = bytearray(archive.read_bytes())
    content[int(flip * (len(content) - 1))] ^= 0xFF
    archive.write_bytes(content[: int(cut * len(content))])
    try:
        loaded = load_artifact(archive)
    except InputError:
        return
    # The damage hit what says nothing of the content, such as a time stamp.
    assert loaded.files == load_artifact(small_artifact).files


def test_graphs_that_onnxruntime_refuses_are_one_sentence(tmp_path: Path) -> None:
    save_artifact(tmp_path / "a", {ENCODE: model_with(), PROPAGATE: model_with()}, 64, TrackingSettings(), {})
    with pytest.raises(InputError, match="refuses the graphs"):
        open_backend("onnx-function", load_artifact(tmp_path / "a"))


def test_tracking_without_the_fused_kernel_is_said_in_one_sentence(
    small_artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "_reason", "no working compiler when corrflow was installed")
    backend = open_backend("onnxruntime", load_artifact(small_artifact), threads=1)
    backend.close()
    (message,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "tracking is slow" in message and "install a C++ compiler" in message


def test_an_unknown_backend_is_refused(small_artifact: Path) -> None:
    with pytest.raises(InputError, match="expected a backend among"):
        open_backend("abacus", load_artifact(small_artifact))


@pytest.mark.parametrize("name", bundled_models())
def test_a_bundled_artifact_loads_and_runs_at_any_size(name: str) -> None:
    artifact = load_artifact(resolve_model(name))
    assert artifact.provenance["minutes"] >= 60
    backend = open_backend("onnxruntime", artifact, threads=1)
    for height, width in [(1, 1), (33, 50), (64, 48)]:
        features = backend.encode(np.zeros((height, width, 3), np.uint8))
        assert features.shape == (artifact.channels, -(-height // 4), -(-width // 4))
    backend.close()


def test_models_are_bundled_names_or_paths(tmp_path: Path) -> None:
    assert resolve_model(None) == resolve_model("quarter") and resolve_model(None).name == "quarter"
    assert resolve_model(tmp_path) == tmp_path
    with pytest.raises(InputError, match="expected a model among fast, "):
        resolve_model("huge")
