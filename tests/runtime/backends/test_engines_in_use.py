"""corrflow-track, corrflow-batch, live sessions and corrflow-doctor with engines, on the fakes of fakes.py."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import fakes
from helpers.paths import HELPERS
from PIL import Image
from typer.testing import CliRunner

from corrflow.export import tensorrt_builder
from corrflow.export.tensorrt_builder import build_engines
from corrflow.plugins.local_soft_copy import cpu
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.backends import tensorrt as tensorrt_backend
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.tensorrt import open_tensorrt
from corrflow.runtime.commands import doctor
from corrflow.runtime.commands.doctor import CHECKS, Finding, examine
from corrflow.runtime.commands.track_cli import app
from corrflow.runtime.live.object_editor import ObjectEditor
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

WORKING = (64, 95)  # of the moving square's 66x98 pixels at the small model's short side of 64
ENGINES = "backend tensorrt"


@pytest.fixture(scope="module")
def built(small_artifact: Path, moving_square, tmp_path_factory) -> tuple[Path, Path]:
    """Return an artifact with engines, and the folder of the key of their signature."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(small_artifact, folder / "model")
    cuda = fakes.Cuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setattr(tensorrt_builder, "register", lambda trt, library=None: "aot")
        build_engines(
            load_artifact(folder / "model"), lambda: moving_square[0], fakes.tensorrt(cuda), CudaDevice(cuda),
            precision="fp32", frame=WORKING, num_reference_frames=4, num_channels=8, plugin=True,
        )  # fmt: skip
    return folder / "model", folder / "config"


@pytest.fixture
def artifact(built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Artifact:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(built[1]))
    shutil.copytree(built[0], tmp_path / "model")
    return load_artifact(tmp_path / "model")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return machine(version, ...), which installs a fake GPU and TensorRT and returns the fake CUDA runtime."""

    def install(version: str = "11.4.0", **properties: Any) -> Any:
        cuda = fakes.Cuda(**properties)
        monkeypatch.setitem(sys.modules, "tensorrt", fakes.tensorrt(cuda, version))
        monkeypatch.setattr(tensorrt_backend, "CudaDevice", lambda: CudaDevice(cuda))
        return cuda

    return install


@pytest.fixture
def fake_path(tmp_path: Path) -> Path:
    """Make a folder for PYTHONPATH with a fake tensorrt and cuda.bindings.runtime for other processes."""
    folder = tmp_path / "path"
    (folder / "cuda" / "bindings").mkdir(parents=True)
    for package in (folder / "cuda", folder / "cuda" / "bindings"):
        (package / "__init__.py").touch()
    shutil.copy((HELPERS / "fakes.py"), folder / "corrflow_fakes.py")
    (folder / "cuda" / "bindings" / "runtime.py").write_text(
        "import corrflow_fakes\nfake = corrflow_fakes.Cuda()\n"
        "globals().update({name: getattr(fake, name) for name in dir(fake) if name.startswith('cuda')})\n"
    )
    (folder / "tensorrt.py").write_text(
        "import corrflow_fakes, cuda.bindings.runtime\n"
        "globals().update(vars(corrflow_fakes.tensorrt(cuda.bindings.runtime.fake)))\n"
    )
    return folder


def write_video(frames: np.ndarray, path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 8, frames.shape[2:0:-1])
    for frame in frames:
        writer.write(frame)
    writer.release()


def masks_in(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) > 0 for path in sorted(folder.iterdir())]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def noisy(frames: np.ndarray) -> np.ndarray:
    return frames + np.random.default_rng(1).integers(0, 40, frames.shape, np.uint8)


def test_corrflow_track_uses_engines_by_name_and_automatically(
    artifact: Artifact, machine, moving_square, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine()
    monkeypatch.chdir(tmp_path)
    write_video(noisy(moving_square[0]), tmp_path / "video.avi")
    cv2.imwrite("mask.png", moving_square[1][0].astype(np.uint8) * 255)
    for backend in ("tensorrt", "auto", "onnx-function"):
        words = ["video.avi", "--init", "mask.png", "--model", "model", "--backend", backend, "--masks", backend]
        with caplog.at_level(logging.INFO, logger="corrflow"):
            done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    assert caplog.messages.count("backend: tensorrt 11.4.0, fp32, plugin") == 2
    ours, automatic, theirs = (masks_in(tmp_path / name) for name in ("tensorrt", "auto", "onnx-function"))
    assert len(ours) == len(theirs) == 8 and all(map(np.array_equal, ours, automatic))
    assert min(map(overlap, ours, theirs)) > 0.999


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--short-side", "32"], "frames of 95x64, which the engines are built for, got 48x32; build"),
        (["--memory-frames", "6"], "at most 4 reference frames, which the engines are built for, got 7; build"),
    ],
    ids=["short side", "memory frames"],
)
def test_options_beyond_those_of_the_engines_exit_with_2(
    options: list[str], reason: str, artifact: Artifact, machine, moving_square, tmp_path: Path, monkeypatch, capfd
) -> None:
    machine()
    monkeypatch.chdir(tmp_path)
    write_video(moving_square[0], tmp_path / "video.avi")
    cv2.imwrite("mask.png", moving_square[1][0].astype(np.uint8) * 255)
    words = ["video.avi", "--init", "mask.png", "--model", "model", "--backend", "tensorrt", *options]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and reason in done.output, done.output
    assert not list(tmp_path.glob("*tracked*"))


def test_corrflow_batch_tracks_with_engines_in_its_workers(
    artifact: Artifact, fake_path: Path, moving_square, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("one", "two"):
        write_video(noisy(moving_square[0]), tmp_path / "videos" / f"{name}.avi")
        (tmp_path / "labels" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "labels" / name / "00003.png"), moving_square[1][3].astype(np.uint8))
    for backend in ("tensorrt", "onnx-function"):
        done = subprocess.run(
            [sys.executable, "-m", "corrflow.runtime.commands.batch_cli", "videos", "--labels", "labels",
             "--out", backend,
             "--model", "model", "--backend", backend, "--format", "davis"],
            cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(fake_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        if backend == "tensorrt":
            assert "with 2 workers" in " ".join(done.stderr.split()), "a GPU gets two workers, not one per core"
    for name in ("one", "two"):
        ours, theirs = (masks_in(tmp_path / backend / name / "masks") for backend in ("tensorrt", "onnx-function"))
        assert len(ours) == len(theirs) == 8
        assert min(map(overlap, ours, theirs)) > 0.999


def test_int8_engines_are_built_without_torch(fake_path: Path, small_artifact: Path, tmp_path: Path) -> None:
    """End-to-end, calibrated on the demo clip, as on a device."""
    shutil.copytree(small_artifact, tmp_path / "model")
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom corrflow.export.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print([name for name in ('corrflow.train', 'corrflow.export.parity', 'pycuda') if name in sys.modules])\n"
    )
    words = ["engine", "model", "--precision", "int8", "--plugin", "off", "--size", "64x96", "--reference-frames", "2"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(fake_path), "XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert "int8 on onnxruntime: mean cosine similarity with fp32 features 0.9" in output, output
    assert output.endswith("[]"), output
    assert (tmp_path / "model" / "engines" / "propagate.engine").is_file()


def test_objects_are_added_and_removed_in_a_live_stream_on_engines(artifact: Artifact, machine, moving_square) -> None:
    """Two trackers alternate on one backend, whose features are valid for one frame."""
    machine()
    frames = noisy(np.concatenate([moving_square[0], moving_square[0][-2:0:-1]]))
    other = np.zeros((66, 98), bool)
    other[40:60, 60:90] = True
    results = []
    for backend in (open_tensorrt(artifact), open_backend("onnx-function", artifact, 1)):
        tracker = Tracker(backend)
        editing = ObjectEditor(tracker)
        square = MaskObject(1, moving_square[1][0])
        tracked = [tracker.start(frames[0], [square])]
        editing.began(frames[0], [square])
        for index, frame in enumerate(frames[1:], start=1):
            tracked.append(tracker.step(frame))
            if index == 2:
                frozen = editing.freeze(tracked[-1])
            if index == 4:
                editing.submit(frozen.number, MaskObject(2, other))
            if index == 10:
                editing.remove(1)
            editing.passed(frame)
        assert editing.ids == (2,)
        results.append([result.mask for result in tracked])
        backend.close()
    assert {2} <= set(np.unique(results[0][8])) and set(np.unique(results[0][-1])) == {0, 2}
    for ours, theirs in zip(*results, strict=True):
        assert (ours != theirs).mean() < 0.002


@pytest.mark.parametrize(
    ("backend", "memory_frames", "warnings"),
    [("tensorrt", 2, 1), ("tensorrt", 3, 0), ("onnx-function", 2, 1), ("onnxruntime", 2, 0)],
)
def test_a_tracker_warns_once_if_occlusion_handling_is_off(
    backend: str,
    memory_frames: int,
    warnings: int,
    artifact: Artifact,
    machine,
    moving_square,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine()
    if backend == "onnxruntime" and cpu.unavailable():
        pytest.skip(cpu.unavailable())
    with Tracker.from_model(artifact.folder, backend, memory_frames=memory_frames, threads=1) as tracker:
        tracker.start(moving_square[0][0], [MaskObject(1, moving_square[1][0])])
        for frame in moving_square[0][1:]:
            tracker.step(frame)
        assert (tracker.occlusion is None) == bool(warnings)
    messages = [message for message in caplog.messages if "occlusion handling is off" in message]
    assert len(messages) == warnings
    assert all("--backend onnxruntime" in message for message in messages)


def examined(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.setattr(doctor, "CHECKS", {ENGINES: CHECKS[ENGINES]})
    (found,) = examine(artifact.folder)
    return found


def test_the_doctor_checks_engines_at_their_working_size(artifact: Artifact, machine, monkeypatch) -> None:
    cuda = machine()
    found = examined(artifact, monkeypatch)
    assert found.state == "works" and "tracked 4 frames of 95x64" in found.detail, found
    assert cuda.launched + len(cuda.copied) > 8, "on the fake GPU"


@pytest.mark.parametrize("frame", [(64, 95), (96, 128), (480, 854), (1080, 608)])
def test_the_doctors_clip_distinguishes_tracking_from_a_static_mask(frame: tuple[int, int]) -> None:
    frames, masks = doctor._clip(frame)
    assert frames[0].shape == (*frame, 3)
    assert overlap(masks[0], masks[-1]) < doctor._OVERLAP - 0.1


def test_the_doctor_detects_engines_that_lose_the_object(artifact: Artifact, machine, monkeypatch) -> None:
    machine()
    enqueue = tensorrt_backend.EngineGraph.enqueue

    def without_labels(self: Any, tensors: dict[str, Any]) -> None:
        if "labels" not in tensors:
            enqueue(self, tensors)

    monkeypatch.setattr(tensorrt_backend.EngineGraph, "enqueue", without_labels)
    found = examined(artifact, monkeypatch)
    assert found.state == "broken" and "overlap with the truth" in found.detail and found.remedy


BROKEN: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # failure: (program of the module tensorrt, GPU, message, remedy)
    "library missing": ("raise ImportError('libnvinfer.so.11: no such file')", {}, "libnvinfer.so.11", "LD_LIBRARY"),
    "module missing": ("raise ModuleNotFoundError('x', name='tensorrt')", {}, "found none", "JetPack has it"),
    "old version": ("__version__ = '8.6.1'", {}, "10.3 or later, got 8.6.1", "update TensorRT"),
    "other version": ("", {"version": "10.16.1"}, "tensorrt was 11.4.0, is 10.16.1", "corrflow-export engine"),
    "other GPU": ("", {"name": "Orin"}, "gpu was Fake GPU, is Orin", "corrflow-export engine"),
    "no driver": ("", {"driver": False}, "an NVIDIA GPU and its driver, found none (error 35)", "install the driver"),
}


@pytest.mark.parametrize("failure", BROKEN)
def test_the_doctor_reports_broken_engines_with_a_remedy(
    failure: str, artifact: Artifact, machine, monkeypatch, tmp_path: Path
) -> None:
    program, gpu, detail, remedy = BROKEN[failure]
    driver = gpu.get("driver", True)
    cuda = machine(**{name: value for name, value in gpu.items() if name != "driver"})
    if not driver:
        cuda.cudaGetDeviceCount = lambda: (35, None)
    if program:
        (tmp_path / "path").mkdir()
        (tmp_path / "path" / "tensorrt.py").write_text(program)
        monkeypatch.syspath_prepend(tmp_path / "path")
        monkeypatch.delitem(sys.modules, "tensorrt")
    found = examined(artifact, monkeypatch)
    sys.modules.pop("tensorrt", None)
    assert found.state == "broken" and detail in found.detail and remedy in found.remedy, found
    assert "; " not in found.detail


def test_tracking_on_a_gpu_imports_neither_torch_nor_pycuda(artifact: Artifact, fake_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom corrflow.runtime.commands import doctor\n"
        "doctor.CHECKS = {name: doctor.CHECKS[name] for name in ('backend tensorrt',)}\n"
        "print([one.state for one in doctor.examine(Path(sys.argv[1]))])\n"
        "print([name for name in ('torch', 'pycuda', 'corrflow.export', 'corrflow.train') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(artifact.folder)],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(fake_path)},
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["['works']", "[]"]
