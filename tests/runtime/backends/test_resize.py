"""Frames are resized on the GPU as on the CPU: the kernel's source on the CPU, and the backend that launches it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import fakes
from helpers.kernels_on_cpu import COMPILER, Resize, core_on_cpu, resize_on_cpu
from helpers.paths import HELPERS
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.cuda.compiler import compile_source
from corrflow.runtime.artifacts.artifact import Artifact, load_artifact
from corrflow.runtime.backends.cuda_device import CudaDevice
from corrflow.runtime.backends.cuda_resize import ENTRY_POINT, MAX_SIDE, THREADS, DeviceResize, kernel_source
from corrflow.runtime.backends.gpu import DeviceBackend
from corrflow.runtime.backends.onnxruntime_cuda import OnnxRuntimeGraphs
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.backends.resize import resize
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")
WORKING = (64, 95)  # of the moving square's 66x98 pixels at the small model's short side of 64


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Resize:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER}")
    return resize_on_cpu(tmp_path_factory.mktemp("resize"), kernel_source())


def image(height: int, width: int, seed: int, black_and_white: bool = False) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (
        generator.integers(0, 256, (height, width, 3), np.uint8)
        // (128 if black_and_white else 1)
        * (255 if black_and_white else 1)
    )  # type: ignore[return-value]


def levels_apart(got: np.ndarray, expected: np.ndarray) -> int:
    assert got.shape == expected.shape
    return int(np.abs(got.astype(int) - expected).max())


def exact(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Compute the mean of the area of each pixel by definition, in float64 and without rounding."""

    def cover(length: int, resized: int) -> np.ndarray:
        begin = np.arange(resized)[:, None] * length / resized
        inside = np.minimum(begin + length / resized, np.arange(length) + 1) - np.maximum(begin, np.arange(length))
        return inside.clip(0) * resized / length

    (height, width), (rows, columns) = frame.shape[:2], size
    return np.einsum("ry,yxc,sx->rsc", cover(height, rows), frame.astype(float), cover(width, columns))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), black_and_white=st.booleans())
def test_the_kernel_resizes_as_opencv_does(on_cpu: Resize, data: Any, seed: int, black_and_white: bool) -> None:
    """Any size to any smaller size: odd, one pixel wide, integer factors, almost equal."""
    height, width = (data.draw(st.integers(2, 90)) for _ in range(2))
    size = tuple(data.draw(st.integers(1, side - 1)) for side in (height, width))
    frame = image(height, width, seed, black_and_white)
    got = on_cpu(frame, size)
    assert levels_apart(got, resize(frame, size)) <= 1
    assert np.abs(got - exact(frame, size)).max() < 0.5 + 1e-9, "rounded to the nearest"


@pytest.mark.parametrize(
    ("frame", "size"),
    [((1080, 1920), (480, 853)), ((720, 1280), (360, 640)), ((1920, 1080), (427, 240)), ((481, 854), (480, 852))],
    ids=["1080 to 480", "factor two", "portrait", "almost equal"],
)
def test_the_kernel_resizes_video_as_opencv_does(frame, size, on_cpu: Resize) -> None:
    original = image(*frame, seed=1)
    assert levels_apart(on_cpu(original, size), resize(original, size)) <= 1


def test_white_stays_white_and_grey_grey(on_cpu: Resize) -> None:
    for level in (0, 1, 127, 255):
        frame = np.full((37, 53, 3), level, np.uint8)
        assert (on_cpu(frame, (11, 20)) == level).all()


@pytest.mark.parametrize(("frame", "size"), [((37, 53), (11, 20)), ((9, 8), (1, 1)), ((40, 41), (39, 40))])
def test_the_kernel_is_clean_under_the_sanitizers(frame, size, tmp_path: Path) -> None:
    run = resize_on_cpu(tmp_path, kernel_source(), sanitized=True)
    original = image(*frame, seed=2)
    assert levels_apart(run(original, size), resize(original, size)) <= 1


@pytest.mark.parametrize(
    "mutation", [("(end - 1) / pieces", "end / pieces"), ("pixel >= rows * columns", "false")], ids=["read", "write"]
)
def test_the_sanitizers_detect_an_access_beyond_the_frames(mutation: tuple[str, str], tmp_path: Path) -> None:
    broken = kernel_source().replace(*mutation)
    assert broken != kernel_source()
    with pytest.raises(RuntimeError, match="AddressSanitizer"):
        resize_on_cpu(tmp_path, broken, sanitized=True)(image(37, 53, seed=2), (11, 20))


def test_the_largest_frame_fits_the_integers_of_the_kernel() -> None:
    """Positions are int32, sums over a row uint32, sums over rows uint64."""
    assert MAX_SIDE**2 < 2**31 and MAX_SIDE * MAX_SIDE * 3 < 2**31 and 255 * MAX_SIDE < 2**32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_the_kernel_without_spills(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    supported = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    if architecture not in supported.split():
        pytest.skip(f"needs an nvcc that supports {architecture}")
    (tmp_path / "resize.cu").write_text(kernel_source())
    command = [nvcc, "--std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas=-v", "-o", "resize.cubin", "resize.cu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert f"entry function '{ENTRY_POINT}' for '{architecture}'" in report
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
    assert int(re.search(r"Used (\d+) registers", report)[1]) * THREADS <= 65536  # type: ignore[index]


def test_the_compiler_of_jetpack_6_needs_no_headers(gpu_wheels: Callable[[str], Path]) -> None:
    if sys.platform != "linux":
        pytest.skip("needs Linux, as the wheel does")
    library = gpu_wheels("nvrtc-12.6") / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"
    options = ("--std=c++17", "--gpu-architecture=sm_87", "--ptxas-options=-v")
    command = [sys.executable, str(HELPERS / "nvrtc_alone.py"), str(library), *options]
    done = subprocess.run(command, input=kernel_source(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in done.stderr
    entry = re.search(rf"\.entry {ENTRY_POINT}\((.*?)\)", done.stdout, re.S)
    assert entry and re.findall(r"\.param \.(\w+)", entry[1]) == ["u64", "u32", "u32", "u32", "u32", "u64"]


def test_cuda_core_compiles_the_kernel_without_a_driver() -> None:
    pytest.importorskip("cuda.core", reason="needs cuda-core")
    assert compile_source(kernel_source(), "sm_87").code[:4] == b"\x7fELF"


@pytest.fixture(scope="module")
def artifact(small_artifact: Path) -> Artifact:
    return load_artifact(small_artifact)


@pytest.fixture(params=[False, True], ids=["desktop", "integrated"])
def gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return (fake CUDA, cuda.core); a launch runs the kernel's source on the CPU."""
    cuda = fakes.Cuda(integrated=request.param)
    return cuda, core_on_cpu(fakes, cuda, tmp_path_factory.mktemp("kernels"))


def open_fake(artifact: Artifact, fakes: ModuleType, cuda: Any, core: Any) -> tuple[DeviceBackend, Any]:
    graphs = fakes.Streamed(OnnxRuntimeGraphs(artifact, ("CPUExecutionProvider", {}), "cpu"), cuda)
    return DeviceBackend(artifact, CudaDevice(cuda, core), graphs), graphs


def noisy(frames: np.ndarray) -> np.ndarray:
    """Add independent noise per frame: a still background would give equal scores over frames of another order."""
    return frames + np.random.default_rng(1).integers(0, 40, frames.shape, np.uint8)


def test_larger_frames_are_tracked_as_on_the_cpu_and_resized_in_the_cuda_graph(
    gpu: Any, artifact: Artifact, moving_square
) -> None:
    cuda, core = gpu
    frames = noisy(np.concatenate([moving_square[0], moving_square[0][::-1]]))
    backend, graphs = open_fake(artifact, fakes, cuda, core)
    ours, theirs = Tracker(backend), Tracker(open_backend("onnx-function", artifact, 1))
    for tracker in (ours, theirs):
        tracker.start(frames[0], [MaskObject(1, moving_square[1][0])])
    for frame in frames[1:6]:
        assert (ours.step(frame).mask != theirs.step(frame).mask).mean() < 0.01  # single grey levels differ
    backend.device.wait()
    assert cuda.captured == 1 and core.compiled == [(kernel_source(), "sm_87")], "captured once, compiled once"
    cuda.copied.clear()
    graphs.runs.clear()
    before, launched, allocated = core.launched.count(ENTRY_POINT), cuda.launched, cuda.allocated
    for frame in frames[6:]:
        assert (ours.step(frame).mask != theirs.step(frame).mask).mean() < 0.01
    backend.device.wait()
    steps = len(frames[6:])
    assert (core.launched.count(ENTRY_POINT) - before, cuda.launched - launched, cuda.allocated) == (
        steps,
        steps,
        allocated,
    )
    assert graphs.runs == ["encode", "propagate"] * steps
    cells = 16 * 24
    ring = [artifact.channels * cells * 4, 8 * cells * 4]
    host = [66 * 98 * 3, 8 * cells * 4]  # upload of the original frame, download of soft masks; not on integrated GPUs
    assert cuda.copied == ([*ring] if cuda.properties.integrated else [*host, *ring]) * steps
    backend.close()
    theirs.backend.close()


class OnDevice:
    """Frame in the fake device's memory, with the interface of torch and CuPy."""

    def __init__(self, device: CudaDevice, frame: np.ndarray) -> None:
        self.shape = frame.shape
        self.shared = device.share(frame.shape, np.uint8)
        self.shared.host[...] = frame
        device.upload(self.shared)
        pointer = self.shared.buffer.pointer
        self.__cuda_array_interface__ = {"shape": frame.shape, "typestr": "|u1", "data": (pointer, True), "version": 3}


def test_larger_frames_on_the_device_are_resized_there(gpu: Any, artifact: Artifact, moving_square) -> None:
    cuda, core = gpu
    results = []
    for on_device in (False, True):
        backend, _ = open_fake(artifact, fakes, cuda, core)
        frames = noisy(moving_square[0])
        inputs: list[Any] = [OnDevice(backend.device, frame) if on_device else frame for frame in frames]
        tracker = Tracker(backend)
        tracker.start(inputs[0], [MaskObject(1, moving_square[1][0])])
        results.append([tracker.step(frame).mask for frame in inputs[1:]])
        backend.close()
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("reason", ["no cuda-core", "no compiler", "an older compiler"])
def test_without_a_compiler_frames_are_resized_on_the_cpu_with_one_warning(
    reason: str, artifact: Artifact, moving_square, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = fakes.Cuda()
    core = None if reason == "no cuda-core" else fakes.core(cuda, lambda *_: None)

    def refuse(*_: Any) -> Any:
        error = type("DynamicLibNotFoundError" if reason == "no compiler" else "NVRTCError", (RuntimeError,), {})
        raise error("libnvrtc.so.13\nand more")

    if core is not None:
        core.Program = refuse
    backend, _ = open_fake(artifact, fakes, cuda, core)
    ours, theirs = Tracker(backend), Tracker(open_backend("onnx-function", artifact, 1))
    frames = noisy(moving_square[0])
    for tracker in (ours, theirs):
        tracker.start(frames[0], [MaskObject(1, moving_square[1][0])])
    for frame in frames[1:]:
        np.testing.assert_array_equal(ours.step(frame).mask, theirs.step(frame).mask)
    (warning,) = (message for message in caplog.messages if "resized on the CPU" in message)
    assert ("did not compile for sm_87" if reason == "an older compiler" else "pip install") in warning
    with pytest.raises(InputError, match=r"in the working size 95x64, got 98x66, which cannot be resized"):
        ours.step(OnDevice(backend.device, frames[1]))  # type: ignore[arg-type]
    backend.close()
    theirs.backend.close()


def test_a_kernel_that_the_gpu_does_not_load_is_an_error_with_its_name() -> None:
    cuda = fakes.Cuda()
    core = fakes.core(cuda, lambda *_: None)
    core.Stream.from_handle = lambda handle: (_ for _ in ()).throw(RuntimeError("CUDA_ERROR_INVALID_IMAGE"))
    with pytest.raises(CorrflowError, match=f"failed to load {ENTRY_POINT}: CUDA_ERROR_INVALID_IMAGE"):
        DeviceResize(CudaDevice(cuda, core))


def test_a_frame_too_large_for_the_kernel_is_refused() -> None:
    cuda = fakes.Cuda()
    device = CudaDevice(cuda, fakes.core(cuda, lambda *_: None))
    frame = replace(device.allocate((1,), np.uint8), shape=(1, 4, MAX_SIDE + 1, 3))
    with pytest.raises(InputError, match=f"at most {MAX_SIDE} pixels a side"):
        DeviceResize(device)(frame, device.allocate((1, 2, 2, 3), np.uint8))


def test_a_frame_of_one_pixel_is_the_mean(on_cpu: Resize) -> None:
    frame = image(30, 50, seed=3)
    expected = frame.reshape(-1, 3).mean(0)
    assert np.abs(on_cpu(frame, (1, 1))[0, 0] - expected).max() <= 0.5
