"""What needs a GPU: the kernels against the CPU, engines built and tracked with, what corrflow-doctor says of it all.

Each test runs on a real GPU, marked `gpu` and skipped where there is none, and on the fakes, so that the code of the
tests themselves is known to work. On a device: pytest -m gpu tests/test_gpu.py.
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
from kernels_on_cpu import COMPILER, core_on_cpu

from corrflow.bench.op import cuda_kernel as kernel
from corrflow.errors import InputError
from corrflow.export import tensorrt_builder as to_engine
from corrflow.export.tensorrt_builder import build_engines, calibration_pictures, pictures
from corrflow.plugins.local_soft_copy.spec import used_references
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends import tensorrt as tensorrt_backend
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.cuda_resize import DeviceShrink
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.resize import shrink
from corrflow.runtime.backends.tensorrt import import_tensorrt, open_tensorrt
from corrflow.runtime.commands import doctor
from corrflow.runtime.tracking.geometry import Geometry
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject
from corrflow.runtime.video.demo_clip import DemoSource

REAL, FAKE = "GPU", "fake"
ON_BOTH = [pytest.param(REAL, marks=pytest.mark.gpu), FAKE]
DEMO = (360, 640)
REFERENCES = 3  # engines for so many are enough to see a memory grow and slots written over


@dataclass
class Machine:
    """A GPU; rows: at which the demo's clip is tracked, since the fake takes its time."""

    kind: str
    device: CudaDevice
    rows: int

    def tensorrt(self, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The module; skips where it is missing."""
        if self.kind == REAL:
            try:
                return import_tensorrt()
            except InputError as error:
                pytest.skip(str(error))
        module = fakes.tensorrt(self.device._cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        for place in (to_engine, tensorrt_backend):
            monkeypatch.setattr(place, "register", lambda trt: "aot")
            monkeypatch.setattr(place, "CudaDevice", lambda: self.another(fakes))
        return module

    def another(self, fakes: ModuleType) -> CudaDevice:
        """The same GPU once more, for who closes it."""
        if self.kind == REAL:
            return CudaDevice()
        return CudaDevice(self.device._cuda, self.device._find_core())


@pytest.fixture
def machine(request: pytest.FixtureRequest, fakes: ModuleType, tmp_path: Path) -> Machine:
    if request.param == REAL:
        try:
            return Machine(REAL, CudaDevice(), 240)
        except InputError as error:
            pytest.skip(str(error))
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} here")
    cuda = fakes.Cuda()
    (tmp_path / "kernels").mkdir()
    return Machine(FAKE, CudaDevice(cuda, core_on_cpu(fakes, cuda, tmp_path / "kernels")), 64)


on_both = pytest.mark.parametrize("machine", ON_BOTH, indirect=True)
CASES = kernel.CASES | kernel.INDEXED_CASES
KERNELS = [pytest.param(REAL, name, marks=pytest.mark.gpu) for name in CASES]
KERNELS += [(FAKE, name) for name in ("top_k", "named, top_k")]


@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize(("machine", "name"), KERNELS, indirect=["machine"])
def test_the_kernel_matches_the_oracle(machine: Machine, name: str, dtype: kernel.Dtype, oracle) -> None:
    case, attributes = CASES[name], CASES[name].attributes
    tensors = kernel.tensors_of(case, dtype, ties=False)
    named = used_references(case.windows, case.K)
    windows = [attributes.windows(each.window + 1)[-1] for each in named]
    places = [(each.frame, each.dy, each.dx) for each in named]
    expected = oracle(*tensors, windows, attributes.top_k, attributes.temperature, places)
    apart = np.abs(kernel.OnGpu(machine.device).copy(case, dtype, tensors) - expected)
    # Where the last of the best scores is as good as the next, the last bit of a sum decides which of them is kept.
    assert np.isfinite(apart).all() and (apart > kernel.TOLERANCE[dtype]).mean() <= kernel.MAX_SHARE_BEYOND


@on_both
@pytest.mark.parametrize("sizes", [((1080, 1920), (480, 853)), ((37, 53), (11, 20))], ids=["video", "odd"])
def test_frames_are_shrunk_as_on_the_cpu(sizes: tuple[tuple[int, int], tuple[int, int]], machine: Machine) -> None:
    frame, shrunk = (machine.device.share((1, *size, 3), np.uint8) for size in sizes)
    frame.host[...] = np.random.default_rng(0).integers(0, 256, frame.host.shape, np.uint8)
    machine.device.upload(frame)
    DeviceShrink(machine.device)(frame.buffer, shrunk.buffer)
    machine.device.download(shrunk)
    machine.device.wait()
    expected = shrink(frame.host[0], sizes[1])
    assert np.abs(shrunk.host[0].astype(int) - expected).max() <= 1


@on_both
def test_recorded_work_runs_when_it_is_launched(machine: Machine) -> None:
    """A CUDA graph with a kernel in it, on what is in its memory at the time."""
    device = machine.device
    frame, shrunk = device.share((1, 40, 60, 3), np.uint8), device.share((1, 10, 15, 3), np.uint8)
    smaller = DeviceShrink(device)

    def work() -> None:
        device.upload(frame)
        smaller(frame.buffer, shrunk.buffer)
        device.download(shrunk)

    work()  # what is loaded when it is first used cannot be recorded
    device.wait()
    launch = device.record(work)
    for level in (7, 200):
        frame.host[...] = level
        launch()
        device.wait()
        assert (shrunk.host == level).all()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """The bundled model in a folder of its own, and a key of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    shutil.copytree(resolve_model(None), tmp_path / "model", ignore=shutil.ignore_patterns("engines"))
    return load_artifact(tmp_path / "model")


def built(machine: Machine, model: Artifact, trt: Any, precision: str, frame: tuple[int, int]) -> to_engine.Built:
    return build_engines(
        model, lambda: pictures(None), trt, machine.device, precision=precision, frame=frame,
        references=REFERENCES, labels=8, plugin=True,
        calibration=calibration_pictures(None, min(frame)) if precision == "int8" else None,
    )  # fmt: skip


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@on_both
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99), ("fp16", 0.98), ("int8", 0.9)])
def test_engines_track_the_demos_clip_as_the_cpu_does(
    precision: str, least: float, machine: Machine, model: Artifact, fakes: ModuleType, monkeypatch
) -> None:
    """Frames are shrunk, encoded and propagated in one CUDA graph from the second step with a full memory on."""
    trt = machine.tensorrt(fakes, monkeypatch)
    frame = Geometry.of(DEMO, machine.rows).working
    made = built(machine, model, trt, precision, frame)
    assert made.agreement is not None and made.agreement.other_winner <= to_engine.ALLOWED[precision]
    settings = replace(
        model.settings, rows=machine.rows, recent_offsets=model.settings.recent_offsets[: REFERENCES - 1]
    )
    with DemoSource(12, DEMO) as clip:
        frames = [one.image for one in clip]
        mask = clip.true_mask(0)
    backend = open_tensorrt(model, machine.another(fakes))
    ours = Tracker(backend, settings)
    theirs = Tracker(open_backend("onnx-function", replace(model, settings=settings), 0), settings)
    for tracker in (ours, theirs):
        tracker.start(frames[0], [MaskObject(1, mask)])
    overlaps = [overlap(ours.step(one).mask > 0, theirs.step(one).mask > 0) for one in frames[1:]]
    assert min(overlaps) > least, overlaps
    assert backend._shrink is not None, "and not on the CPU"
    backend.close()
    theirs.backend.close()


@on_both
def test_the_doctor_finds_the_back_ends_at_work(
    machine: Machine, model: Artifact, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = machine.tensorrt(fakes, monkeypatch)
    built(machine, model, trt, "fp16", (96, 128))
    wanted = ["back end tensorrt"]
    if machine.kind == REAL:
        wanted += ["NVIDIA driver", "TensorRT", "CUDA kernel", "back end onnxruntime-cuda"]
    monkeypatch.setattr(doctor, "CHECKS", {part: doctor.CHECKS[part] for part in wanted})
    found = {one.part: one for one in doctor.examine(model.folder)}
    assert found["back end tensorrt"].state == "works", found
    assert doctor.healthy(list(found.values())), found
    if machine.kind == REAL:
        assert found["NVIDIA driver"].state == found["CUDA kernel"].state == "works", found
