"""corrflow-track, corrflow-batch, the live loop and corrflow-doctor work with engines, on the fakes of fakes.py."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from corrflow.export import tensorrt_builder as to_engine
from corrflow.export.tensorrt_builder import build_engines
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.backends import tensorrt as tensorrt_backend
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.tensorrt import open_tensorrt
from corrflow.runtime.commands import doctor
from corrflow.runtime.commands.doctor import CHECKS, Finding, examine
from corrflow.runtime.commands.track_cli import app
from corrflow.runtime.live.object_editor import ObjectEditor
from corrflow.runtime.tracking.factory import Model
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

WORKING = (64, 95)  # of the moving square's 66x98 pixels, with the small artifact's 64 rows
ENGINES = "back end tensorrt"


@pytest.fixture(scope="module")
def built(small_artifact: Path, fakes: ModuleType, moving_square, tmp_path_factory) -> tuple[Path, Path]:
    """An artifact with engines beside it, and the folder of the key that they are signed with."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(small_artifact, folder / "model")
    cuda = fakes.Cuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setattr(to_engine, "register", lambda trt: "aot")
        build_engines(
            load_artifact(folder / "model"), lambda: moving_square[0], fakes.tensorrt(cuda), CudaDevice(cuda),
            precision="fp32", frame=WORKING, references=4, labels=8, plugin=True,
        )  # fmt: skip
    return folder / "model", folder / "config"


@pytest.fixture
def artifact(built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Artifact:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(built[1]))
    shutil.copytree(built[0], tmp_path / "model")
    return load_artifact(tmp_path / "model")


@pytest.fixture
def machine(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """machine(version, ...) gives this process a fake GPU and TensorRT; returns the fake CUDA runtime."""

    def give(version: str = "11.4.0", **named: Any) -> Any:
        cuda = fakes.Cuda(**named)
        monkeypatch.setitem(sys.modules, "tensorrt", fakes.tensorrt(cuda, version))
        monkeypatch.setattr(tensorrt_backend, "CudaDevice", lambda: CudaDevice(cuda))
        return cuda

    return give


@pytest.fixture
def fake_path(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH: a tensorrt and a cuda.bindings.runtime for processes of their own."""
    folder = tmp_path / "path"
    (folder / "cuda" / "bindings").mkdir(parents=True)
    for package in (folder / "cuda", folder / "cuda" / "bindings"):
        (package / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("fakes.py"), folder / "corrflow_fakes.py")
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


def test_corrflow_track_uses_engines_by_name_and_by_itself(
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
    assert caplog.messages.count("back end: tensorrt 11.4.0, fp32, plugin") == 2
    ours, by_itself, theirs = (masks_in(tmp_path / name) for name in ("tensorrt", "auto", "onnx-function"))
    assert len(ours) == len(theirs) == 8 and all(map(np.array_equal, ours, by_itself))
    assert min(map(overlap, ours, theirs)) > 0.999


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--short-side", "32"], "frames of 95x64, which the engines are built for, got 48x32; build"),
        (["--memory-frames", "6"], "at most 4 references, which the engines are built for, got 7; build"),
    ],
    ids=["rows", "memory_frames"],
)
def test_what_engines_are_not_built_for_exits_with_2(
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
            assert "with 2 workers" in " ".join(done.stderr.split()), "a GPU is not shared by a worker for each core"
    for name in ("one", "two"):
        ours, theirs = (masks_in(tmp_path / backend / name / "masks") for backend in ("tensorrt", "onnx-function"))
        assert len(ours) == len(theirs) == 8
        assert min(map(overlap, ours, theirs)) > 0.999


def test_int8_engines_are_built_without_torch(fake_path: Path, small_artifact: Path, tmp_path: Path) -> None:
    """From one end to the other, fitted to the demo's clip, as on a device."""
    shutil.copytree(small_artifact, tmp_path / "model")
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom corrflow.export.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print([name for name in ('corrflow.train', 'corrflow.export.parity', 'pycuda') if name in sys.modules])\n"
    )
    words = ["engine", "model", "--precision", "int8", "--plugin", "off", "--size", "64x96", "--references", "2"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(fake_path), "XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "int8 on onnxruntime: mean cosine with fp32's features 0.9" in said and said.endswith("[]"), said
    assert (tmp_path / "model" / "engines" / "propagate.engine").is_file()


def test_objects_join_and_leave_a_running_stream_on_engines(artifact: Artifact, machine, moving_square) -> None:
    """As on the page of a live stream: two trackers in turn on one back end, whose features hold for one frame."""
    machine()
    frames = noisy(np.concatenate([moving_square[0], moving_square[0][-2:0:-1]]))
    other = np.zeros((66, 98), bool)
    other[40:60, 60:90] = True
    results = []
    for backend in (open_tensorrt(artifact), open_backend("onnx-function", artifact, 1)):
        tracker = Tracker(backend)
        editing = ObjectEditor(tracker)
        square = MaskObject(1, moving_square[1][0])
        tracks = [tracker.start(frames[0], [square])]
        editing.began(frames[0], [square])
        for index, frame in enumerate(frames[1:], start=1):
            tracks.append(tracker.step(frame))
            if index == 2:
                frozen = editing.freeze(frame, tracks[-1])
            if index == 4:
                editing.submit(frozen.number, MaskObject(2, other))
            if index == 10:
                editing.remove(1)
            editing.passed(frame)
        assert editing.ids == (2,)
        results.append([one.mask for one in tracks])
        backend.close()
    assert {2} <= set(np.unique(results[0][8])) and set(np.unique(results[0][-1])) == {0, 2}
    for ours, theirs in zip(*results, strict=True):
        assert (ours != theirs).mean() < 0.002


@pytest.mark.parametrize(
    ("backend", "memory_frames", "notices"),
    [("tensorrt", 2, 1), ("tensorrt", 3, 0), ("onnx-function", 2, 1), ("onnxruntime", 2, 0)],
)
def test_live_says_once_where_hidden_objects_are_not_noticed(
    backend: str,
    recent: int,
    notices: int,
    artifact: Artifact,
    machine,
    moving_square,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine()
    if backend == "onnxruntime":
        from corrflow.plugins.local_soft_copy import cpu

        if cpu.unavailable():
            pytest.skip(cpu.unavailable())
    model = Model(artifact.folder, backend, 1, None, recent, False)
    with model.tracker(said=True) as tracker:
        tracker.start(moving_square[0][0], [MaskObject(1, moving_square[1][0])])
        for frame in moving_square[0][1:]:
            tracker.step(frame)
        assert (tracker.presence is None) == bool(notices)
    said = [message for message in caplog.messages if "hidden" in message]
    assert len(said) == notices
    assert all("--backend onnxruntime" in message for message in said)
    with model.tracker() as tracker:  # unsaid, as with video files
        assert (tracker.presence is None) == bool(notices)
    assert len([message for message in caplog.messages if "hidden" in message]) == notices


def examined(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.setattr(doctor, "CHECKS", {ENGINES: CHECKS[ENGINES]})
    (found,) = examine(artifact.folder)
    return found


def test_the_doctor_tries_engines_at_their_own_size(artifact: Artifact, machine, monkeypatch) -> None:
    cuda = machine()
    found = examined(artifact, monkeypatch)
    assert found.state == "works" and "tracked 4 frames of 95x64" in found.detail, found
    assert cuda.launched + len(cuda.copied) > 8, "on the fake GPU"


@pytest.mark.parametrize("frame", [(64, 95), (96, 128), (480, 854), (1080, 608)])
def test_the_doctors_clip_tells_tracking_from_standing_still(frame: tuple[int, int]) -> None:
    frames, masks = doctor._clip(frame)
    assert frames[0].shape == (*frame, 3)
    assert overlap(masks[0], masks[-1]) < doctor._OVERLAP - 0.1


def test_the_doctor_finds_engines_that_lose_the_object(artifact: Artifact, machine, monkeypatch) -> None:
    machine()
    right = tensorrt_backend.EngineProgram.enqueue

    def without_labels(self: Any, tensors: dict[str, Any]) -> None:
        if "labels" not in tensors:
            right(self, tensors)

    monkeypatch.setattr(tensorrt_backend.EngineProgram, "enqueue", without_labels)
    found = examined(artifact, monkeypatch)
    assert found.state == "broken" and "overlap with the truth" in found.detail and found.remedy


BROKEN: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # what is wrong: (program of the module tensorrt, the GPU, what is said, the remedy)
    "library missing": ("raise ImportError('libnvinfer.so.11: no such file')", {}, "libnvinfer.so.11", "LD_LIBRARY"),
    "module missing": ("raise ModuleNotFoundError('x', name='tensorrt')", {}, "found none", "JetPack has it"),
    "old version": ("__version__ = '8.6.1'", {}, "10.3 or later, got 8.6.1", "update TensorRT"),
    "other version": ("", {"version": "10.16.1"}, "tensorrt was 11.4.0, is 10.16.1", "corrflow-export engine"),
    "other GPU": ("", {"name": "Orin"}, "gpu was Fake GPU, is Orin", "corrflow-export engine"),
    "no driver": ("", {"driver": False}, "an NVIDIA GPU and its driver, found none (error 35)", "install the driver"),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_the_doctor_says_what_is_wrong_with_engines_and_what_to_do(
    wrong: str, artifact: Artifact, machine, monkeypatch, tmp_path: Path
) -> None:
    program, gpu, detail, remedy = BROKEN[wrong]
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
        "doctor.CHECKS = {name: doctor.CHECKS[name] for name in ('back end tensorrt',)}\n"
        "print([one.state for one in doctor.examine(Path(sys.argv[1]))])\n"
        "print([name for name in ('torch', 'pycuda', 'corrflow.export', 'corrflow.train') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(artifact.folder)],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(fake_path)},
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["['works']", "[]"]
