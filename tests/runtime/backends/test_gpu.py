"""Tests that need a GPU: kernels compared with the CPU, engines built and run, corrflow-doctor.

Each test runs on a real GPU (marker `gpu`, skipped without one), and on the fakes, which tests the test code itself. On
a device: pytest -m gpu tests/runtime/backends/test_gpu.py.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import fakes
from helpers.kernels_on_cpu import COMPILER, core_on_cpu
from helpers.oracle import oracle

from corrflow.bench.op import cuda_kernel as kernel
from corrflow.errors import InputError
from corrflow.export import tensorrt_builder
from corrflow.export.tensorrt_builder import BuildReport, build_engines, calibration_frames_of, comparison_frames
from corrflow.plugins.local_soft_copy.spec import used_references
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends import tensorrt as tensorrt_backend
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.cuda_resize import DeviceResize
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.resize import resize
from corrflow.runtime.backends.tensorrt import import_tensorrt, open_tensorrt
from corrflow.runtime.commands import doctor
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject
from corrflow.runtime.video.demo_clip import DemoSource

REAL, FAKE = "GPU", "fake"
ON_BOTH = [pytest.param(REAL, marks=pytest.mark.gpu), FAKE]
DEMO = (360, 640)
REFERENCE_FRAMES = 3  # enough for a memory that grows and overwrites slots


@dataclass
class Machine:
    """GPU of a test; short_side: working size of the demo clip, smaller for the slow fake."""

    kind: str
    device: CudaDevice
    short_side: int

    def tensorrt(self, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return the module tensorrt; skip the test without it."""
        if self.kind == REAL:
            try:
                return import_tensorrt()
            except InputError as error:
                pytest.skip(str(error))
        module = fakes.tensorrt(self.device._cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        for target in (tensorrt_builder, tensorrt_backend):
            monkeypatch.setattr(target, "register", lambda trt, library=None: "aot")
            monkeypatch.setattr(target, "CudaDevice", lambda: self.another(fakes))
        return module

    def another(self, fakes: ModuleType) -> CudaDevice:
        """Return another device object of the same GPU, which the caller closes."""
        if self.kind == REAL:
            return CudaDevice()
        return CudaDevice(self.device._cuda, self.device._find_core())


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    if request.param == REAL:
        try:
            return Machine(REAL, CudaDevice(), 240)
        except InputError as error:
            pytest.skip(str(error))
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER}")
    cuda = fakes.Cuda()
    (tmp_path / "kernels").mkdir()
    return Machine(FAKE, CudaDevice(cuda, core_on_cpu(fakes, cuda, tmp_path / "kernels")), 64)


on_both = pytest.mark.parametrize("machine", ON_BOTH, indirect=True)
CASES = kernel.CASES | kernel.INDEXED_CASES
KERNELS = [pytest.param(REAL, name, marks=pytest.mark.gpu) for name in CASES]
KERNELS += [(FAKE, name) for name in ("top_k", "indexed, top_k")]


@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize(("machine", "name"), KERNELS, indirect=["machine"])
def test_the_kernel_matches_the_oracle(machine: Machine, name: str, dtype: kernel.Dtype) -> None:
    case, attributes = CASES[name], CASES[name].attributes
    tensors = kernel.tensors_of(case, dtype, ties=False)
    used = used_references(case.windows, case.K)
    windows = [attributes.window(each.window) for each in used]
    places = [(each.frame, each.dy, each.dx) for each in used]
    expected = oracle(*tensors, windows, attributes.top_k, attributes.temperature, places)
    difference = np.abs(kernel.OnGpu(machine.device).copy(case, dtype, tensors) - expected)
    # If the last of the best scores nearly equals the next score, the last bit of a sum decides between them.
    assert np.isfinite(difference).all() and (difference > kernel.TOLERANCE[dtype]).mean() <= kernel.MAX_SHARE_BEYOND


@on_both
@pytest.mark.parametrize("sizes", [((1080, 1920), (480, 853)), ((37, 53), (11, 20))], ids=["video", "odd"])
def test_frames_are_resized_as_on_the_cpu(sizes: tuple[tuple[int, int], tuple[int, int]], machine: Machine) -> None:
    frame, resized = (machine.device.share((1, *size, 3), np.uint8) for size in sizes)
    frame.host[...] = np.random.default_rng(0).integers(0, 256, frame.host.shape, np.uint8)
    machine.device.upload(frame)
    DeviceResize(machine.device)(frame.buffer, resized.buffer)
    machine.device.download(resized)
    machine.device.wait()
    expected = resize(frame.host[0], sizes[1])
    assert np.abs(resized.host[0].astype(int) - expected).max() <= 1


@on_both
def test_captured_work_runs_at_launch(machine: Machine) -> None:
    """A CUDA graph with a kernel reads the content of its memory at launch."""
    device = machine.device
    frame, resized = device.share((1, 40, 60, 3), np.uint8), device.share((1, 10, 15, 3), np.uint8)
    resize_kernel = DeviceResize(device)

    def work() -> None:
        device.upload(frame)
        resize_kernel(frame.buffer, resized.buffer)
        device.download(resized)

    work()  # loading at first use cannot be captured
    device.wait()
    launch = device.capture_graph(work)
    for level in (7, 200):
        frame.host[...] = level
        launch()
        device.wait()
        assert (resized.host == level).all()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """Copy the default model to a temporary folder, with a temporary key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    shutil.copytree(resolve_model(None), tmp_path / "model", ignore=shutil.ignore_patterns("engines"))
    return load_artifact(tmp_path / "model")


def built(machine: Machine, model: Artifact, trt: Any, precision: str, frame: tuple[int, int]) -> BuildReport:
    return build_engines(
        model, lambda: comparison_frames(None), trt, machine.device, precision=precision, frame=frame,
        num_reference_frames=REFERENCE_FRAMES, num_channels=8, plugin=True,
        calibration=calibration_frames_of(None, min(frame)) if precision == "int8" else None,
    )  # fmt: skip


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@on_both
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99), ("fp16", 0.98), ("int8", 0.9)])
def test_engines_track_the_demo_clip_as_the_cpu_does(
    precision: str, least: float, machine: Machine, model: Artifact, monkeypatch
) -> None:
    """From the second step with a full memory on, resizing, encoding and propagation are one CUDA graph."""
    trt = machine.tensorrt(fakes, monkeypatch)
    frame = Geometry.of(DEMO, machine.short_side).working
    report = built(machine, model, trt, precision, frame)
    assert (
        report.agreement is not None and report.agreement.changed_share <= tensorrt_builder.MAX_CHANGED_SHARE[precision]
    )
    settings = replace(
        model.settings,
        short_side=machine.short_side,
        recent_offsets=model.settings.recent_offsets[: REFERENCE_FRAMES - 1],
    )
    with DemoSource(12, DEMO) as clip:
        frames = [each.image for each in clip]
        mask = clip.true_mask(0)
    backend = open_tensorrt(model, machine.another(fakes))
    ours = Tracker(backend, settings)
    same = model if precision == "int8" else model.with_float_encoder()
    theirs = Tracker(open_backend("onnx-function", replace(same, settings=settings), 0), settings)
    for tracker in (ours, theirs):
        tracker.start(frames[0], [MaskObject(1, mask)])
    overlaps = [overlap(ours.step(each).mask > 0, theirs.step(each).mask > 0) for each in frames[1:]]
    assert min(overlaps) > least, overlaps
    assert backend._resize is not None, "frames are resized on the GPU"
    backend.close()
    theirs.backend.close()


@on_both
def test_the_doctor_confirms_the_backends(machine: Machine, model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = machine.tensorrt(fakes, monkeypatch)
    built(machine, model, trt, "fp16", (96, 128))
    wanted = ["backend tensorrt"]
    if machine.kind == REAL:
        wanted += ["NVIDIA driver", "TensorRT", "CUDA kernel", "backend onnxruntime-cuda"]
    monkeypatch.setattr(doctor, "CHECKS", {part: doctor.CHECKS[part] for part in wanted})
    found = {each.part: each for each in doctor.examine(model.folder)}
    assert found["backend tensorrt"].state == "works", found
    assert doctor.healthy(list(found.values())), found
    if machine.kind == REAL:
        assert found["NVIDIA driver"].state == found["CUDA kernel"].state == "works", found
