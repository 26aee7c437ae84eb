"""Building, checking, signing, refusing and running of engines, on the fake TensorRT and CUDA of fakes.py."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import fakes
from helpers.panning import write_panning_video

from corrflow.errors import CorrflowError, InputError
from corrflow.export import tensorrt_builder
from corrflow.export.propagate_graph import propagate_model
from corrflow.export.quantize import MIN_SIMILARITY
from corrflow.export.tensorrt_builder import build_engines, calibration_frames_of
from corrflow.plugins.local_soft_copy.spec import SearchWindow
from corrflow.runtime.artifacts.artifact import ENCODE_FP16, ENCODE_INT8, PROPAGATE, Artifact, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends import tensorrt as tensorrt_backend
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.engine_files import (
    FOLDER,
    KEY,
    SIDECAR,
    Engines,
    EngineSpec,
    load_engines,
    private_folder,
)
from corrflow.runtime.backends.gpu import DeviceMemory
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.search_plan import SearchPlan
from corrflow.runtime.backends.tensorrt import TensorRtGraphs, open_tensorrt
from corrflow.runtime.tracking.occlusion import occlusion_settings_for
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

FRAME = (66, 98)


@pytest.fixture(autouse=True)
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for module in (tensorrt_builder, tensorrt_backend):  # test_tensorrt_plugin.py tests the registration
        monkeypatch.setattr(module, "register", lambda trt, library=None: "aot")


@pytest.fixture
def artifact(small_artifact: Path, tmp_path: Path) -> Artifact:
    shutil.copytree(small_artifact, tmp_path / "model")
    return load_artifact(tmp_path / "model")


@pytest.fixture
def build(artifact: Artifact, moving_square) -> Callable[..., Any]:
    """Return build(version, ...) -> (BuildReport, fake tensorrt)."""

    def run(version: str = "11.4.0", cuda: Any = None, fake: dict[str, Any] | None = None, **changed: Any) -> Any:
        cuda = cuda or fakes.Cuda()
        trt = fakes.tensorrt(cuda, version, **(fake or {}))
        sizes = {"frame": FRAME, "num_reference_frames": 4, "num_channels": 8}
        options = {"precision": "fp32", "plugin": True} | sizes | changed
        return build_engines(artifact, lambda: moving_square[0], trt, CudaDevice(cuda), **options), trt

    return run


def use(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", trt)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_tracks_as_the_cpu_does(
    precision: str, build, artifact: Artifact, moving_square, monkeypatch
) -> None:
    # 1 % of the 425 cells are four cells; a fifth differs on some processors.
    monkeypatch.setitem(tensorrt_builder.MAX_CHANGED_SHARE, "fp16", 8 / 425)
    cuda = fakes.Cuda()
    built, trt = build(cuda=cuda, precision=precision)
    assert built.agreement.frames == 7
    assert built.agreement.changed_share <= tensorrt_builder.MAX_CHANGED_SHARE[precision]
    assert [timing.layers for timing in built.timings] == [(("layer b", 1.5), ("layer a", 0.25))] * 2
    use(trt, monkeypatch)
    captured = cuda.captured
    artifact = replace(artifact, settings=replace(artifact.settings, short_side=0))
    ours = Tracker(open_tensorrt(artifact, CudaDevice(cuda)))
    theirs = Tracker(open_backend("onnx-function", artifact, 1))
    for tracker in (ours, theirs):
        tracker.start(moving_square[0][0], [MaskObject(1, moving_square[1][0])])
    for frame in moving_square[0][1:]:
        got, expected = ours.step(frame).mask > 0, theirs.step(frame).mask > 0
        assert (got & expected).sum() / (got | expected).sum() > (0.999 if precision == "fp32" else 0.97)
    assert cuda.captured - captured == 1, "the first step runs directly, the second is captured"
    assert f"tensorrt 11.4.0, {precision}, plugin" == ours.backend.name
    ours.backend.close()


@pytest.mark.parametrize("old_graph", [False, True], ids=["as exported", "propagate.onnx without references"])
def test_engines_of_a_model_that_moves_windows_move_windows(
    old_graph: bool, following_artifact: Path, crossing, tmp_path: Path, monkeypatch
) -> None:
    """Engines are built from the settings, so windows move even if propagate.onnx does not support offsets."""
    shutil.copytree(following_artifact, tmp_path / "following")
    artifact = load_artifact(tmp_path / "following")
    moving = open_backend("onnx-function", artifact, 1)
    if old_graph:
        old = propagate_model(artifact.settings.attributes, artifact.channels).SerializeToString()
        artifact = replace(artifact, files=artifact.files | {PROPAGATE: old})
    cuda = fakes.Cuda()
    trt = fakes.tensorrt(cuda)
    built = build_engines(
        artifact, lambda: crossing[0], trt, CudaDevice(cuda),
        precision="fp32", frame=(64, 120), num_reference_frames=4, num_channels=8, plugin=True,
    )  # fmt: skip
    # A permanent frame and three recent ones, with four windows each.
    assert (built.spec.num_slots, built.spec.num_windows) == (4, 16)
    assert built.agreement is not None and built.agreement.changed_share <= tensorrt_builder.MAX_CHANGED_SHARE["fp32"]
    use(trt, monkeypatch)
    settings = artifact.settings
    results = []
    ours = open_tensorrt(artifact, CudaDevice(cuda))
    for backend, move in ((ours, True), (moving, True), (ours, False)):
        tracker = Tracker(backend, replace(settings, move_windows=move), occlusion_settings_for(backend, settings))
        tracker.start(crossing[0][0], [MaskObject(1, crossing[1][0])])
        results.append(np.stack([tracker.step(frame).mask for frame in crossing[0][1:]]))
    assert (results[0] == results[1]).mean() >= 0.999
    assert (results[0] != results[2]).any()
    ours.close()
    moving.close()


def test_a_build_detects_windows_at_wrong_offsets(
    following_artifact: Path, crossing, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(following_artifact, tmp_path / "following")
    artifact, cuda = load_artifact(tmp_path / "following"), fakes.Cuda()
    inputs = DeviceMemory.inputs

    def without_offsets(memory: DeviceMemory, plan: SearchPlan) -> dict[str, Any]:
        windows = tuple(SearchWindow(window.frame, window.window) for window in plan.windows)
        return inputs(memory, replace(plan, windows=windows))

    monkeypatch.setattr(DeviceMemory, "inputs", without_offsets)
    with pytest.raises(CorrflowError, match="labels differ from onnxruntime's"):
        build_engines(
            artifact, lambda: crossing[0], fakes.tensorrt(cuda), CudaDevice(cuda),
            precision="fp32", frame=(64, 120), num_reference_frames=3, num_channels=8, plugin=True,
        )  # fmt: skip


def test_int8_is_calibrated_if_the_artifact_has_no_int8_encoder(
    build, artifact: Artifact, moving_square, monkeypatch
) -> None:
    cuda = fakes.Cuda()
    frames = list(moving_square[0])
    built, trt = build(cuda=cuda, precision="int8", calibration=frames)
    assert built.similarity > MIN_SIMILARITY and len(built.spec.calibration) == 64
    assert built.agreement.changed_share <= tensorrt_builder.MAX_CHANGED_SHARE["int8"]
    encoder = trt.seen.models[0]
    assert "QuantizeLinear" in {node.op_type for node in encoder.graph.node}
    use(trt, monkeypatch)
    artifact = replace(artifact, settings=replace(artifact.settings, short_side=0))
    ours, theirs = (
        Tracker(open_tensorrt(artifact, CudaDevice(cuda))),
        Tracker(open_backend("onnx-function", artifact, 1)),
    )
    for tracker in (ours, theirs):
        tracker.start(moving_square[0][0], [MaskObject(1, moving_square[1][0])])
    for frame in moving_square[0][1:]:
        got, expected = ours.step(frame).mask > 0, theirs.step(frame).mask > 0
        assert (got & expected).sum() / (got | expected).sum() > 0.9
    assert ours.backend.name == "tensorrt 11.4.0, int8, plugin"
    ours.backend.close()
    assert build(precision="int8", calibration=frames)[0].reason == ""
    assert build(precision="int8", calibration=frames[:6])[0].reason == "the calibration frames of int8 have changed"


def test_calibration_frames_are_not_those_of_the_comparison(tmp_path: Path) -> None:
    compared = list(tensorrt_builder.comparison_frames(None))
    calibration = calibration_frames_of(None, 360)
    assert len(compared) == 12 and len(calibration) == 24 and {frame.shape for frame in calibration} == {(360, 640, 3)}
    assert not any(np.array_equal(one, other) for one in compared for other in calibration)
    write_panning_video(tmp_path / "long.mp4", 0, frames=64)
    write_panning_video(tmp_path / "short.mp4", 0, frames=30)
    assert [frame.shape for frame in calibration_frames_of(tmp_path / "long.mp4", 32)] == [(32, 48, 3)] * 6
    with pytest.raises(InputError, match=r"3 calibration frames or more, got 2 from .*short.mp4; give a longer"):
        calibration_frames_of(tmp_path / "short.mp4", 32)
    assert len(calibration_frames_of(tmp_path, 32)) == 10, "a folder of videos: every tenth frame of each"


def test_networks_are_strongly_typed_and_the_timing_cache_is_stored(build) -> None:
    _, trt = build()
    assert set(trt.seen.flags) == {1 << 1} and set(trt.seen.verbosity) == {2}
    assert trt.seen.caches == [b"t" * count for count in range(2)]
    (cache,) = private_folder().glob("timing-*.cache")
    assert cache.read_bytes() == b"t" * 2


@pytest.mark.parametrize(
    ("version", "plugin", "aot", "body"),
    [("11.4.0", True, True, True), ("10.16.1", True, True, True), ("11.4.0", False, False, True)],
)
def test_the_graph_suits_the_form_of_the_plugin(version: str, plugin: bool, aot: bool, body: bool, build) -> None:
    _, trt = build(version, plugin=plugin)
    for model in trt.seen.models[1:]:
        assert ("aot" in {entry.name for entry in model.graph.node[0].attribute}, bool(model.functions)) == (aot, body)
    (propagate,) = trt.seen.models[1:]
    shapes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in propagate.graph.input}
    assert shapes["keys"][1] == shapes["values"][1] == 4 and shapes["references"] == [4, 4]


@pytest.mark.parametrize(("version", "library"), [("10.3.0", False), ("10.3.0", True), ("11.4.0", True)])
def test_tensorrt_10_3_and_the_library_get_the_node_without_the_function(
    version: str, library: bool, artifact: Artifact
) -> None:
    import onnx

    spec = EngineSpec(version, "Fake GPU", "8.7", "fp16", FRAME, 1, 1, 4, 8, True, ("", ""), "", "", library)
    encoder = artifact.files[ENCODE_FP16]
    models = dict(tensorrt_builder._models(artifact, spec, encoder))  # type: ignore[arg-type]
    model = onnx.load_model_from_string(models["propagate.engine"])
    (node,) = model.graph.node
    assert not model.functions and node.op_type == "LocalSoftCopy"
    assert "aot" not in {attribute.name for attribute in node.attribute}


@pytest.mark.parametrize("has_kernel", [True, False])
def test_the_library_is_the_plugin_if_it_has_the_kernel(
    has_kernel: bool, build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []
    library = SimpleNamespace(path="there.so", has_kernel=lambda *key: asked.append(key) or has_kernel)
    given: list[Any] = []
    monkeypatch.setattr(tensorrt_builder, "find_library", lambda: library)
    monkeypatch.setattr(tensorrt_builder, "register", lambda trt, library: given.append(library))
    # The fake TensorRT runs the function, which a graph for the library does not have.
    models = tensorrt_builder._models
    monkeypatch.setattr(
        tensorrt_builder, "_models", lambda artifact, spec, *more: models(artifact, replace(spec, library=False), *more)
    )
    monkeypatch.setattr(tensorrt_backend, "require_library", lambda: library)
    report, _ = build()
    ((variant, num_windows),) = asked
    assert (variant.classes, variant.dtype, num_windows) == (8, "float32", report.spec.num_windows)
    assert report.spec.library == has_kernel and given == [library if has_kernel else None]
    assert ("there.so has no kernel for these engines, so the plugin comes from Python" in caplog.text) != has_kernel


def test_engines_are_rebuilt_only_if_their_build_key_changes(build, artifact: Artifact) -> None:
    first, _ = build()
    assert "found none" in first.reason
    again, trt = build()
    assert again.reason == "" and not trt.seen.models
    fewer, trt = build(num_reference_frames=2)
    assert fewer.reason == "num reference frames was 4, is 2" and len(trt.seen.models) == 2
    assert artifact.folder is not None
    found = sorted(path.name for path in (artifact.folder / FOLDER).glob("*.engine"))
    assert found == ["encode.engine", "propagate.engine"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"tensorrt": "11.4.1"}, "tensorrt was 11.4.0, is 11.4.1"),
        ({"gpu": "Orin"}, "gpu was Fake GPU, is Orin"),
        ({"compute_capability": "12.0"}, "compute capability was 8.7, is 12.0"),
        ({"precision": "fp16"}, "precision was fp32, is fp16"),
        ({"frame": (64, 96)}, r"frame was \(66, 98\), is \(64, 96\)"),
        ({"num_slots": 9}, "num slots was 4, is 9"),
        ({"num_windows": 10}, "num windows was 7, is 10"),
        ({"num_channels": 16}, "num channels was 8, is 16"),
        ({"plugin": False}, "plugin was True, is False"),
        ({"onnx": ("", "")}, "the ONNX files have changed"),
        ({"kernel": ""}, "the CUDA kernel has changed"),
    ],
)
def test_every_field_of_the_build_key_makes_a_difference(changed: dict[str, Any], reason: str) -> None:
    spec = EngineSpec("11.4.0", "Fake GPU", "8.7", "fp32", FRAME, 4, 4, 7, 8, True, ("a", "b"), "c")
    assert spec.difference(spec) == ""
    assert re.fullmatch(reason, spec.difference(replace(spec, **changed)))


def test_an_engine_without_the_plugin_is_not_written(build, artifact: Artifact) -> None:
    with pytest.raises(CorrflowError, match=r"expected the plugin LocalSoftCopy among .* got Convolution; nothing was"):
        build(fake={"takes_plugin": False})
    assert not (artifact.folder / FOLDER).exists()  # type: ignore[operator]
    build(fake={"takes_plugin": False}, plugin=False)


@pytest.mark.parametrize("wrong", [np.nan], ids=["NaN"])
def test_engines_with_wrong_results_are_not_written(wrong: float, build, artifact: Artifact) -> None:
    with pytest.raises(CorrflowError, match=r"labels differ from onnxruntime's: .* got 100.0%; nothing was written"):
        build(fake={"wrong": wrong})
    assert not (artifact.folder / FOLDER).exists()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"precision": "fp64"}, "expected --precision fp32, fp16, int8, got 'fp64'"),
        ({"precision": "int8"}, "expected encode-int8.onnx for int8, found none; .*--calibration-data"),
        ({"num_reference_frames": 0}, "expected --reference-frames from 1 to 80, got 0"),
        ({"num_channels": 1000}, "expected --objects from 1 to 256, got 1000"),
    ],
    ids=["precision", "no calibration", "references", "objects"],
)
def test_unsupported_options_are_refused_in_one_sentence(changed: dict[str, Any], reason: str, build) -> None:
    with pytest.raises(InputError, match=reason):
        build(**changed)


def forge(folder: Path) -> None:
    sidecar = json.loads((folder / SIDECAR).read_text())
    sidecar["spec"]["gpu"] = "Another"
    (folder / SIDECAR).write_text(json.dumps(sidecar))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no engines": (shutil.rmtree, "expected engines in .*, found none; build them here"),
    "no sidecar": (lambda folder: (folder / SIDECAR).unlink(), "found none; build them here"),
    "a forged sidecar": (forge, "built and signed, got others, and an engine is code; build"),
    "no key": (lambda folder: (private_folder() / KEY).unlink(), "built and signed, got others"),
    "another key": (lambda folder: (private_folder() / KEY).write_bytes(bytes(32)), "built and signed, got others"),
    "another engine": (
        lambda folder: (folder / "encode.engine").write_bytes(b"FAKE"),
        "encode.engine is not the one that was signed; build",
    ),
    "an engine less": (lambda folder: (folder / "propagate.engine").unlink(), "expected propagate.engine, which"),
    "no JSON": (lambda folder: (folder / SIDECAR).write_bytes(b"\xff{"), "engines.json is damaged"),
    "a list": (lambda folder: (folder / SIDECAR).write_text("[]"), "engines.json is damaged"),
    "a later format": (lambda folder: (folder / SIDECAR).write_text('{"format": 9}'), "format 3, got 9; build"),
    "an earlier format": (lambda folder: (folder / SIDECAR).write_text('{"format": 1}'), "format 3, got 1; build"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_engines_without_a_valid_signature_are_not_loaded(damage: str, build, artifact: Artifact) -> None:
    build()
    load_engines(artifact)
    damage_files, reason = DAMAGE[damage]
    damage_files(artifact.folder / FOLDER)  # type: ignore[operator]
    with pytest.raises(InputError, match=reason):
        load_engines(artifact)


@pytest.mark.parametrize(
    ("name", "cuda", "version", "reason"),
    [
        ("", {"name": "Orin"}, "11.4.0", "gpu was Fake GPU, is Orin; build them again"),
        ("", {"major": 9}, "11.4.0", r"compute capability was 8.7, is 9.7; build"),
        ("", {}, "10.16.0", r"tensorrt was 11.4.0, is 10.16.0; build"),
        (PROPAGATE, {}, "11.4.0", "the ONNX files have changed; build"),
    ],
    ids=["GPU", "compute capability", "TensorRT", "ONNX"],
)
def test_engines_for_another_machine_or_model_are_refused(
    name: str, cuda: dict[str, Any], version: str, reason: str, build, artifact: Artifact, monkeypatch
) -> None:
    build()
    if name:
        artifact = replace(artifact, files=artifact.files | {name: b"other"})
    fake = fakes.Cuda(**cuda)
    use(fakes.tensorrt(fake, version), monkeypatch)
    with pytest.raises(InputError, match=reason):
        open_tensorrt(artifact, CudaDevice(fake))


@pytest.mark.parametrize(
    ("version", "library", "registered"),
    [
        ("10.3.0", False, [()]),
        ("11.4.0", False, []),
        ("10.3.0", True, [("library",)]),
        ("11.4.0", True, [("library",)]),
    ],
)
def test_engines_that_contain_the_kernel_alone_need_no_plugin_to_run(version, library, registered, monkeypatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(tensorrt_backend, "register", lambda trt, *library: calls.append(library))
    monkeypatch.setattr(tensorrt_backend, "require_library", lambda: "library")
    cuda = fakes.Cuda()
    spec = EngineSpec(version, "Fake GPU", "8.7", "fp32", FRAME, 1, 1, 4, 8, True, ("", ""), "", "", library)
    with pytest.raises(InputError, match=f"TensorRT {version} refuses encode.engine; build it again"):
        TensorRtGraphs(fakes.tensorrt(cuda, version), CudaDevice(cuda), Engines(spec, {"encode.engine": b"no engine"}))
    assert calls == registered


def test_only_the_user_can_read_the_key(build) -> None:
    build()
    assert (private_folder() / KEY).stat().st_mode & 0o777 == 0o600


def test_the_command_builds_once(artifact: Artifact, monkeypatch) -> None:
    """End-to-end on the demo clip."""
    from typer.testing import CliRunner

    from corrflow.export.cli import app
    from corrflow.runtime.backends import cuda_device as device

    cuda = fakes.Cuda()
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda: fakes.tensorrt(cuda))
    monkeypatch.setattr(device, "CudaDevice", lambda: CudaDevice(cuda))
    command = ["engine", str(artifact.folder), "--precision", "fp32", "--size", "64x96", "--objects", "3"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    output = " ".join(done.output.split())
    assert "1.500 layer b" in output
    assert "compared with onnxruntime in fp32 on 11 frames: another highest channel in at most" in output
    assert load_engines(artifact).spec.num_channels == 8
    assert "nothing was built" in CliRunner().invoke(app, command).output
    assert CliRunner().invoke(app, [*command, "--plugin", "perhaps"]).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--calibration-data", "videos"]).exit_code == 2, (
        "fp32 needs no calibration"
    )


@pytest.mark.parametrize(
    ("options", "frame"),
    [
        (["--size", "1080x1920"], (64, 114)),
        (["--size", "1080x1920", "--short-side", "32"], (32, 57)),
        (["--size", "96x64", "--short-side", "0"], (96, 64)),
        (["--frames", "video.mp4"], (64, 96)),
    ],
    ids=["short side of the model", "other short side", "no resizing", "size of a video"],
)
def test_the_command_derives_the_working_size_from_the_video_size(
    options: list[str], frame: tuple[int, int], artifact: Artifact, tmp_path: Path, monkeypatch
) -> None:
    from typer.testing import CliRunner

    from corrflow.export.cli import app
    from corrflow.runtime.backends import cuda_device as device

    received: dict[str, Any] = {}

    def build(artifact: Any, frames: Any, trt: Any, device: Any, **options: Any) -> Any:
        received.update(options)
        return SimpleNamespace(reason="")

    monkeypatch.chdir(tmp_path)
    write_panning_video(tmp_path / "video.mp4", 0)
    monkeypatch.setattr(tensorrt_builder, "build_engines", build)
    monkeypatch.setattr(tensorrt_backend, "import_tensorrt", lambda: None)
    monkeypatch.setattr(device, "CudaDevice", lambda: CudaDevice(fakes.Cuda()))
    done = CliRunner().invoke(app, ["engine", "model", *options])
    assert done.exit_code == 0, done.output
    assert received["frame"] == frame and received["calibration"] is None
    assert not (tmp_path / "model" / "engines").exists(), "the check for a writable folder leaves nothing"


def test_a_folder_that_is_not_writable_is_refused_before_a_build(artifact: Artifact, monkeypatch) -> None:
    from corrflow.runtime.backends import engine_files as engines

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(InputError, match=r"to write engines to .*engines, got Permission denied; copy the artifact"):
        engines.writable_folder(artifact)


def test_onnxruntime_that_does_not_start_cuda_is_refused(artifact: Artifact) -> None:
    """onnxruntime would continue on the CPU and read addresses of the GPU."""
    from corrflow.runtime.backends.onnxruntime_cuda import OnnxRuntimeGraphs, unavailable

    if not unavailable():
        pytest.skip("needs onnxruntime without CUDA")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(InputError, match="to start CUDAExecutionProvider, got CPUExecutionProvider instead; install"),
    ):
        OnnxRuntimeGraphs(artifact, ("CUDAExecutionProvider", {}), "cuda")


def test_a_missing_tensorrt_is_one_sentence(
    build, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    build()
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    for program, reason in (
        ("raise ModuleNotFoundError('x', name='tensorrt')", "expected the Python module tensorrt, found none; JetPack"),
        ("raise ImportError('libnvinfer.so.10: no')", "TensorRT's libraries, found the module without them"),
        ("__version__ = '8.6.1'", "TensorRT 10.3 or later, got 8.6.1; update"),
    ):
        (tmp_path / "tensorrt.py").write_text(program)
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("tensorrt", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        with pytest.raises(InputError, match=reason):
            open_backend("tensorrt", artifact)
    sys.modules.pop("tensorrt", None)


def test_auto_logs_why_faster_backends_do_not_work(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime without CUDA")
    with caplog.at_level("INFO", logger="corrflow"):
        open_backend("auto", artifact, 1).close()
    messages = caplog.messages
    assert messages[0].startswith("not tensorrt: expected engines in") and "corrflow-export engine" in messages[0]
    assert messages[1].startswith("not onnxruntime-cuda: expected an onnxruntime with CUDA")
    assert messages[-1].startswith("backend: onnxruntime-cpu")
    with pytest.raises(InputError, match=r"expected an onnxruntime with CUDA, got .* pip install onnxruntime-gpu"):
        open_backend("onnxruntime-cuda", artifact)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_real_builder_accepts_the_graphs(precision: str, artifact: Artifact) -> None:
    """tensorrt-rtx has the same builder, and needs no GPU if the target GPU is set.

    int8: bundled model, calibrated on the demo clip
    """
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")

    class Config:
        """Real configuration with an empty timing cache, which RTX does not support."""

        profiling_verbosity: Any = None

        def __init__(self, real: Any) -> None:
            self.real = real
            real.num_compute_capabilities = 1
            real.set_compute_capability(trt.ComputeCapability.SM86, 0)

        def create_timing_cache(self, content: bytes) -> Any:
            return SimpleNamespace(serialize=lambda: b"")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
            self.cache = cache

        def get_timing_cache(self) -> Any:
            return self.cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.real = trt.Builder(logger)
            self.create_network = self.real.create_network

        def create_builder_config(self) -> Config:
            return Config(self.real.create_builder_config())

        def build_serialized_network(self, network: Any, config: Config) -> Any:
            config.real.profiling_verbosity = config.profiling_verbosity
            return self.real.build_serialized_network(network, config.real)

    real = SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt)} | {"Builder": Builder})
    spec = SimpleNamespace(
        tensorrt=trt.__version__, precision=precision, frame=FRAME, num_slots=2, num_windows=5, num_channels=8,
        plugin=False, library=False, gpu="none", compute_capability="8.6",
    )  # fmt: skip
    if precision == "int8":
        artifact = load_artifact(resolve_model(None)).with_float_encoder()
        assert ENCODE_INT8 not in artifact.files
        encoder, similarity = tensorrt_builder._encoder(artifact, "int8", calibration_frames_of(None, min(FRAME)))
        assert b"QuantizeLinear" in encoder and similarity is not None and similarity > MIN_SIMILARITY
    else:
        encoder, _ = tensorrt_builder._encoder(artifact, precision, None)
        assert encoder == artifact.files[ENCODE_FP16]
    for name, model in tensorrt_builder._models(artifact, spec, encoder):  # type: ignore[arg-type]
        assert len(tensorrt_builder._build(real, spec, name, model)) > 10_000  # type: ignore[arg-type]
