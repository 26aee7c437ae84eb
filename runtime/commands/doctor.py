"""Checks of the installation for corrflow-doctor: state, reason and remedy of each part.

Each backend tracks a synthetic clip, TensorRT at the size of its engines. The CUDA kernel is compiled.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from corrflow.errors import CorrflowError, InputError

if TYPE_CHECKING:
    from corrflow.runtime.artifacts.artifact import Artifact
    from corrflow.runtime.backends.base import Backend
    from corrflow.runtime.settings import TrackingSettings

State = Literal["works", "found", "absent", "broken"]
_TOLERANCE, _OVERLAP = 1e-4, 0.8
_CLIP = (96, 128)  # (height, width) of the synthetic frames
_CONTAINER = "start a container with --gpus all, on a Jetson with --runtime nvidia"
# Distributions that install the same module over each other.
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_OPENCVS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    state:  works (tested), found (not tested), absent (an optional part) or broken
    detail: version, or reason of the state
    remedy: way to fix the part; "" if there is nothing to do
    """

    part: str
    state: State
    detail: str
    remedy: str = ""


def examine(model: Path | None = None) -> Iterator[Finding]:
    """Run the checks and yield their findings; errors are findings too.

    model: artifact to test, with its engines; None for the default model
    """
    from corrflow.runtime.artifacts.artifact import load_artifact
    from corrflow.runtime.artifacts.bundled import resolve_model

    @cache
    def load() -> Artifact:
        return load_artifact(resolve_model(model))

    for part, check in CHECKS.items():
        try:
            state, detail, remedy = check(load)
        except CorrflowError as error:
            state, (detail, remedy) = "broken", _with_remedy(str(error))
        except Exception as error:  # a damaged installation may raise any error
            reason = next(iter(str(error).splitlines()), "")
            state, detail = "broken", f"{type(error).__name__}: {reason}"
            remedy = "install corrflow again: pip install --force-reinstall --no-deps corrflow"
        yield Finding(part, state, detail, remedy)


def machine() -> dict[str, str]:
    """Return the Python version, system and processor; on a Jetson also "jetson"."""
    about = {"python": platform.python_version(), "system": platform.platform(), "cpu": platform.machine()}
    try:
        release = Path("/etc/nv_tegra_release").read_text(errors="replace")
    except OSError:
        return about
    return about | {"jetson": release.partition(", GCID")[0].strip("# \n")}


def healthy(findings: list[Finding]) -> bool:
    """Return True if no part is broken."""
    return all(finding.state != "broken" for finding in findings)


Outcome = tuple[State, str, str]
Load = Callable[[], "Artifact"]  # loads the model


def _with_remedy(error: str) -> tuple[str, str]:
    """Split "expected ..., got ...; do this" into detail and remedy."""
    detail, _, remedy = error.rpartition("; ")  # the text of a library may contain "; " too
    return (detail, remedy) if detail else (remedy, "")


def _onnxruntime(_: Load) -> Outcome:
    if len(found := _installed(_ONNXRUNTIMES)) > 1:
        return "broken", f"{' and '.join(found)} are installed over each other", _only_one(found)
    import onnxruntime

    return "works", f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}", ""


def _onnx_function(load: Load) -> Outcome:
    from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend

    return _tracks(OnnxRuntimeBackend(load(), threads=1))


def _fused(load: Load) -> Outcome:
    from corrflow.plugins.local_soft_copy import cpu
    from corrflow.runtime.backends.memory import MemoryRing
    from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
    from corrflow.runtime.backends.search_plan import SearchPlan

    if cpu.unavailable():
        reason, _, remedy = cpu.unavailable().rpartition("; ")
        return "absent", f"{reason}; tracking is slower without it", remedy
    artifact = load()
    function = OnnxRuntimeBackend(artifact, threads=1)
    clip, masks = _clip()
    cells = masks[0].shape[0] // 4, masks[0].shape[1] // 4
    memory = MemoryRing(artifact.settings, 8, cells, artifact.channels)
    generator = np.random.default_rng(0)
    for frame in clip[:2]:
        memory.add_frame(function.encode(frame), generator.random((8, *cells), np.float32))
    query = function.encode(clip[2])
    plan = SearchPlan.of(memory.references, artifact.settings.attributes)
    expected = function.propagate(query, memory, plan)
    keys, values = memory.stacked(plan.slots)
    attributes = plan.params
    packed = [cpu.pack(features, 16) for features in (*keys, query)]
    stacked = cpu.PackedFeatures(
        np.stack([one.words for one in packed[:-1]]), np.stack([one.scales for one in packed[:-1]]), 16
    )
    for kernel in cpu.kernels():
        got = cpu.local_soft_copy(query[None], keys[None], values[None], attributes, kernel=kernel)[0]
        apart = float(np.abs(got - expected).max())
        got = cpu.packed_soft_copy(packed[-1], stacked, values, attributes, kernel=kernel)
        apart_packed = float(
            np.quantile(np.abs(got - expected), 0.99)
        )  # other cells may differ, because their top_k differ
        if not (apart <= _TOLERANCE and apart_packed <= 10 * _TOLERANCE):
            return (
                "broken",
                f"the {kernel} kernel is {apart:.1e} from the ONNX function, {apart_packed:.1e} on packed features;"
                f" {_TOLERANCE:.0e} and ten times that are allowed",
                "track with --backend onnx-function, and report this with your processor's name",
            )
    function.close()
    state, detail, remedy = _tracks(OnnxRuntimeBackend(artifact, threads=1, fused=True))
    return state, f"{', '.join(cpu.kernels())}; {detail}", remedy


def _opencv(_: Load) -> Outcome:
    if len(found := _installed(_OPENCVS)) > 1:
        return "broken", f"{' and '.join(found)} are installed over each other", _only_one(found)
    try:
        import cv2
    except ImportError as error:
        return (
            "broken",
            str(error),
            "apt-get install libgl1 libglib2.0-0; pip install --force-reinstall --no-deps opencv-python",
        )
    return "works", cv2.__version__, ""


def _gstreamer(_: Load) -> Outcome:
    from corrflow.runtime.live.capture.readers import GST_LAUNCH, opencv_has_gstreamer

    if opencv_has_gstreamer():
        return "works", "in OpenCV", ""
    if shutil.which(GST_LAUNCH):
        return "works", f"{GST_LAUNCH}, since OpenCV was built without GStreamer", ""
    return (
        "absent",
        "this OpenCV was built without it, as all of PyPI's are: no CSI cameras, no pipelines",
        "apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good; or use JetPack's OpenCV (venv"
        " --system-site-packages, without opencv-python)",
    )


def _video(_: Load) -> Outcome:
    import av

    known = {"h264": _has_codec("h264", "r"), "libx264": _has_codec("libx264", "w")}
    missing = [name for name in known if not known[name]]
    if missing:
        return (
            "broken",
            f"PyAV {av.__version__} lacks {', '.join(missing)}",
            "pip install --force-reinstall --no-deps av",
        )
    return "works", f"PyAV {av.__version__} reads and writes H.264", ""


def _driver(_: Load) -> Outcome:
    try:
        library = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        detail = "no NVIDIA driver (libcuda.so.1); the CPU tracks"
        return "absent", detail, f"for a GPU: install NVIDIA's driver; {_CONTAINER}"
    if code := library.cuInit(0):
        reasons = {100: "it finds no GPU", 803: "it does not fit the kernel module", 999: "its kernel module failed"}
        return (
            "absent" if code == 100 else "broken",
            f"the driver is there, but {reasons.get(code, 'does not start')} (cuInit gives {code})",
            f"look at nvidia-smi; restart after an update of the driver; {_CONTAINER}",
        )
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    return "works", f"CUDA {version.value // 1000}.{version.value % 1000 // 10}, GPUs: {count.value}", ""


def _tensorrt(_: Load) -> Outcome:
    from corrflow.plugins.local_soft_copy.tensorrt_plugin import form_for

    try:
        version = importlib.import_module("tensorrt").__version__
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise
        remedy = "JetPack has it (venv --system-site-packages); elsewhere install the one that fits your CUDA"
        return "absent", "the Python module tensorrt is not installed", remedy
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "install TensorRT's libraries of the module's version, and let the loader find them (LD_LIBRARY_PATH)"
        return "broken", f"the module is there, a library is not: {error}", remedy
    forms = {"aot": "the plugin's kernel goes into the engine", "v3": "the plugin is registered before loading"}
    form = form_for(version)
    if form == "none":
        return "absent", f"{version} is older than the plugin, 10.3", "update TensorRT"
    return "found", f"{version} imports; {forms[form]}; its engines are under backend tensorrt", ""


def _onnxruntime_cuda(load: Load) -> Outcome:
    from corrflow.runtime.backends.onnxruntime_cuda import open_onnxruntime_cuda, unavailable

    if reason := unavailable():
        detail, remedy = _with_remedy(reason)
        return "absent", detail, f"for a GPU: {remedy}"
    return _tracks(open_onnxruntime_cuda(load()))


def _engines(load: Load) -> Outcome:
    from corrflow.runtime.artifacts.bundled import BUNDLED
    from corrflow.runtime.backends.engine_files import FOLDER, SIDECAR
    from corrflow.runtime.backends.tensorrt import open_tensorrt

    artifact = load()
    if artifact.folder is None or not (artifact.folder / FOLDER / SIDECAR).is_file():
        where = artifact.folder or "of its folder"
        if artifact.folder is not None and artifact.folder.parent == BUNDLED:
            where = artifact.folder.name
        remedy = f"on the machine with the GPU: corrflow-export engine {where} --frames VIDEO"
        return "absent", f"no engines beside the model {artifact.name}", remedy
    backend = open_tensorrt(artifact)
    # Engines have fixed numbers of reference frames and frame sizes, whatever the artifact states.
    settings, limit = artifact.settings, backend.graphs.num_reference_frames
    if limit is not None and settings.num_reference_frames > limit:
        settings = replace(settings, recent_offsets=settings.recent_offsets[: limit - len(settings.permanent_frames)])
    return _tracks(backend, backend.graphs.frame or _CLIP, settings)


def _cuda_kernel(load: Load) -> Outcome:
    """Compile the kernels, which needs neither a driver nor a GPU."""
    from corrflow.plugins.local_soft_copy.cuda import compiler
    from corrflow.plugins.local_soft_copy.cuda.launch import plan
    from corrflow.runtime.backends import cuda_resize as resize

    try:
        architecture = compiler.device_architecture()
    except CorrflowError:
        architecture = "sm_87"
    artifact = load()
    sizes = {"channels": artifact.channels, "classes": 8, "num_windows": 2, "height": 24, "width": 32}
    launch = plan(**sizes, attributes=artifact.settings.attributes, dtype="float16")
    try:
        code = compiler.compile_kernel(launch, architecture).code
        compiler.compile_source(resize.kernel_source(), architecture)
    except InputError as error:
        detail, remedy = _with_remedy(str(error))
        return "absent", detail, f"for TensorRT: {remedy}"
    return (
        "works",
        f"compiles for {architecture}, {len(code)} bytes, as does that which shrinks frames; not launched",
        "",
    )


CHECKS: dict[str, Callable[[Load], Outcome]] = {
    "onnxruntime": _onnxruntime,
    "backend onnx-function": _onnx_function,
    "backend onnxruntime, fused kernel": _fused,
    "backend onnxruntime-cuda": _onnxruntime_cuda,
    "OpenCV": _opencv,
    "GStreamer": _gstreamer,
    "video files": _video,
    "NVIDIA driver": _driver,
    "TensorRT": _tensorrt,
    "CUDA kernel": _cuda_kernel,
    "backend tensorrt": _engines,
}


def _tracks(backend: Backend, frame: tuple[int, int] = _CLIP, settings: TrackingSettings | None = None) -> Outcome:
    """Track a moving square with a backend, and close the backend."""
    from corrflow.runtime.tracking.tracker import Tracker
    from corrflow.runtime.types import MaskObject

    clip, masks = _clip(frame)
    try:
        tracker = Tracker(backend, replace(settings or backend.artifact.settings, short_side=0))
        start = time.perf_counter()
        got = tracker.start(clip[0], [MaskObject(1, masks[0])]).mask > 0
        for image in clip[1:]:
            got = tracker.step(image).mask > 0
        seconds = time.perf_counter() - start
    finally:
        backend.close()
    overlap = float((got & masks[-1]).sum() / (got | masks[-1]).sum())
    detail = f"tracked {len(clip)} frames of {frame[1]}x{frame[0]} in {seconds:.2f} s"
    if not overlap >= _OVERLAP:
        return "broken", f"{detail}, overlap with the truth {overlap:.2f}, expected {_OVERLAP}", "report this, please"
    return "works", f"{detail}, overlap with the truth {overlap:.2f}", ""


def _clip(frame: tuple[int, int] = _CLIP) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return four frames [H, W, 3] uint8, BGR, of a moving square, and its masks [H, W] bool.

    The square moves so far that a mask without motion fails the check.
    """
    generator = np.random.default_rng(0)
    side, top, step = min(frame) // 2, min(frame) // 4, -(-min(frame) // 32)
    background = generator.integers(60, 120, (*frame, 3), np.uint8)
    texture = np.array([30, 30, 180], np.uint8) + generator.integers(0, 60, (side, side, 3), np.uint8)
    frames, masks = [], []
    for t in range(4):
        image, mask = background.copy(), np.zeros(frame, bool)
        square = slice(top, top + side), slice(top + step * t, top + step * t + side)
        image[square], mask[square] = texture, True
        frames.append(image)
        masks.append(mask)
    return frames, masks


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    """Return True if FFmpeg reads ("r") or writes ("w") a codec."""
    import av
    from av.codec.codec import UnknownCodecError

    try:
        av.Codec(name, mode)
    except UnknownCodecError:
        return False
    return True


def _installed(names: tuple[str, ...]) -> list[str]:
    """Return the installed distributions among these names, with their versions."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _only_one(found: list[str]) -> str:
    names = [name.partition(" ")[0] for name in found]
    return f"pip uninstall {' '.join(names)}, then install the one you want"
