"""What works here and what does not, why, and what to do about it: what corrflow-doctor prints.

Every check looks at one part and never raises. Parts that can be tried are tried: each back end tracks a made-up clip,
that of TensorRT where the engines beside the bundled artifact are for the clip's size.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal

import numpy as np

from corrflow.plugins.errors import CorrflowError

if TYPE_CHECKING:
    from corrflow.runtime.backend import Backend

State = Literal["works", "found", "absent", "broken"]
_TOLERANCE, _OVERLAP = 1e-4, 0.8
_CLIP = (96, 128)  # (height, width) of the frames that back ends are tried on
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
    """One part, why, and the remedy if there is one.

    state: works (tried), found (there, and not tried), absent (nothing else is the worse for it) or broken
    """

    part: str
    state: State
    detail: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """One finding after another, as they are made."""
    for part, check in CHECKS.items():
        try:
            state, detail, remedy = check()
        except CorrflowError as error:  # these name their remedy
            state, detail, remedy = "broken", str(error), ""
        except Exception as error:  # a damaged installation fails in its own ways, and all of them are findings
            reason = next(iter(str(error).splitlines()), "")
            state, detail = "broken", f"{type(error).__name__}: {reason}"
            remedy = "install corrflow again: pip install --force-reinstall corrflow"
        yield Finding(part, state, detail, remedy)


def healthy(findings: list[Finding]) -> bool:
    """True where nothing is broken; parts that are only absent are no illness."""
    return all(finding.state != "broken" for finding in findings)


Outcome = tuple[State, str, str]


def _onnxruntime() -> Outcome:
    if len(found := _installed(_ONNXRUNTIMES)) > 1:
        return "broken", f"{' and '.join(found)} are installed over each other", _only_one(found)
    import onnxruntime

    return "works", f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}", ""


def _onnx_function() -> Outcome:
    from corrflow.runtime.artifact import bundled_artifact_path, load_artifact
    from corrflow.runtime.onnxruntime_backend import OnnxRuntimeBackend

    return _tracks(OnnxRuntimeBackend(load_artifact(bundled_artifact_path()), threads=1))


def _fused() -> Outcome:
    from corrflow.plugins.local_soft_copy import cpu
    from corrflow.runtime.artifact import bundled_artifact_path, load_artifact
    from corrflow.runtime.memory import MemoryRing
    from corrflow.runtime.onnxruntime_backend import OnnxRuntimeBackend

    if cpu.unavailable():
        reason, _, remedy = cpu.unavailable().rpartition("; ")
        return "absent", f"{reason}; tracking is slower without it", remedy
    artifact = load_artifact(bundled_artifact_path())
    function = OnnxRuntimeBackend(artifact, threads=1)
    clip, masks = _clip()
    cells = masks[0].shape[0] // 4, masks[0].shape[1] // 4
    memory = MemoryRing(artifact.settings, 8, cells, artifact.channels)
    generator = np.random.default_rng(0)
    for frame in clip[:2]:
        memory.remember(function.encode(frame), generator.random((8, *cells), np.float32))
    query = function.encode(clip[2])
    expected = function.propagate(query, memory)
    keys, values, attributes = memory.references()
    packed = [cpu.pack(features, 16) for features in (*keys, query)]
    stacked = cpu.Packed(
        np.stack([one.words for one in packed[:-1]]), np.stack([one.scales for one in packed[:-1]]), 16
    )
    for kernel in cpu.kernels():
        got = cpu.local_soft_copy(query[None], keys[None], values[None], attributes, kernel=kernel)[0]
        apart = float(np.abs(got - expected).max())
        got = cpu.packed_soft_copy(packed[-1], stacked, values, attributes, kernel=kernel)
        apart_packed = float(np.quantile(np.abs(got - expected), 0.99))  # beyond it other cells are among the top_k
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


def _opencv() -> Outcome:
    if len(found := _installed(_OPENCVS)) > 1:
        return "broken", f"{' and '.join(found)} are installed over each other", _only_one(found)
    try:
        import cv2
    except ImportError as error:
        return (
            "broken",
            str(error),
            "apt-get install libgl1 libglib2.0-0; pip install --force-reinstall opencv-python",
        )
    return "works", cv2.__version__, ""


def _gstreamer() -> Outcome:
    import cv2

    for line in cv2.getBuildInformation().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "GStreamer" and value.strip().startswith("YES"):
            return "works", value.strip(), ""
    return (
        "absent",
        "this OpenCV was built without it, as all of PyPI's are: no CSI cameras, no pipelines",
        "on a Jetson: pip uninstall opencv-python, and use JetPack's (venv --system-site-packages)",
    )


def _video() -> Outcome:
    import av

    known = {"h264": _has_codec("h264", "r"), "libx264": _has_codec("libx264", "w")}
    missing = [name for name in known if not known[name]]
    if missing:
        return "broken", f"PyAV {av.__version__} lacks {', '.join(missing)}", "pip install --force-reinstall av"
    return "works", f"PyAV {av.__version__} reads and writes H.264", ""


def _driver() -> Outcome:
    try:
        library = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return "absent", "no NVIDIA driver (libcuda.so.1); the CPU tracks", "for a GPU: install NVIDIA's driver"
    if code := library.cuInit(0):
        reasons = {100: "it finds no GPU", 803: "it does not fit the kernel module", 999: "its kernel module failed"}
        return (
            "absent" if code == 100 else "broken",
            f"the driver is there, but {reasons.get(code, 'does not start')} (cuInit gives {code})",
            "look at nvidia-smi; restart after an update of the driver, and give a container its GPU (--gpus all)",
        )
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    return "works", f"CUDA {version.value // 1000}.{version.value % 1000 // 10}, GPUs: {count.value}", ""


def _tensorrt() -> Outcome:
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
    return "found", f"{version} imports; {forms[form]}; its engines are under back end tensorrt", ""


def _onnxruntime_cuda() -> Outcome:
    from corrflow.runtime.artifact import bundled_artifact_path, load_artifact
    from corrflow.runtime.onnxruntime_cuda_backend import open_onnxruntime_cuda, unavailable

    if reason := unavailable():
        detail, _, remedy = reason.partition("; ")
        return "absent", detail, f"for a GPU: {remedy}"
    return _tracks(open_onnxruntime_cuda(load_artifact(bundled_artifact_path())))


def _engines() -> Outcome:
    """Engines beside the bundled artifact; those of another are looked at when they are opened."""
    from corrflow.runtime.artifact import bundled_artifact_path, load_artifact
    from corrflow.runtime.engines import FOLDER, SIDECAR
    from corrflow.runtime.tensorrt_backend import open_tensorrt

    if not (bundled_artifact_path() / FOLDER / SIDECAR).is_file():
        remedy = "on the machine with the GPU: corrflow-export engine bundled"
        return "absent", "no engines beside the bundled model", remedy
    backend = open_tensorrt(load_artifact(bundled_artifact_path()))
    if backend.programs.frame == _CLIP:
        return _tracks(backend)
    height, width = backend.programs.frame or (0, 0)
    backend.close()
    opened = f"{backend.name}; engines open, and are not tried: their frames are {width}x{height}"
    return "found", f"{opened}, the test clip's {_CLIP[1]}x{_CLIP[0]}", ""


def _cuda_core() -> Outcome:
    try:
        importlib.import_module("cuda.core")
    except ImportError as error:
        return "absent", f"what compiles the CUDA kernel ({error})", "pip install 'cuda-core[cu12]', or [cu13]"
    return "found", "imports; not tried, the kernel needs a GPU", ""


CHECKS: dict[str, Callable[[], Outcome]] = {
    "onnxruntime": _onnxruntime,
    "back end onnx-function": _onnx_function,
    "back end onnxruntime, fused kernel": _fused,
    "back end onnxruntime-cuda": _onnxruntime_cuda,
    "OpenCV": _opencv,
    "OpenCV's GStreamer": _gstreamer,
    "video files": _video,
    "NVIDIA driver": _driver,
    "TensorRT": _tensorrt,
    "back end tensorrt": _engines,
    "cuda-core": _cuda_core,
}


def _tracks(backend: Backend) -> Outcome:
    """A square that moves two pixels a frame, tracked with a back end, which is closed."""
    from corrflow.runtime.tracker import Tracker
    from corrflow.runtime.tracks import MaskObject

    clip, masks = _clip()
    tracker = Tracker(backend)
    start = time.perf_counter()
    got = tracker.start(clip[0], [MaskObject(1, masks[0])]).mask > 0
    for frame in clip[1:]:
        got = tracker.step(frame).mask > 0
    seconds = time.perf_counter() - start
    backend.close()
    overlap = float((got & masks[-1]).sum() / (got | masks[-1]).sum())
    detail = f"tracked {len(clip)} frames of {clip[0].shape[1]}x{clip[0].shape[0]} in {seconds:.2f} s"
    if not overlap >= _OVERLAP:
        return "broken", f"{detail}, overlap with the truth {overlap:.2f}, expected {_OVERLAP}", "report this, please"
    return "works", f"{detail}, overlap with the truth {overlap:.2f}", ""


def _clip() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four frames [96, 128, 3] uint8, BGR, and their masks [96, 128] bool."""
    generator = np.random.default_rng(0)
    background = generator.integers(60, 120, (96, 128, 3), np.uint8)
    texture = np.array([30, 30, 180], np.uint8) + generator.integers(0, 60, (48, 48, 3), np.uint8)
    frames, masks = [], []
    for t in range(4):
        frame, mask = background.copy(), np.zeros((96, 128), bool)
        place = slice(24, 72), slice(24 + 2 * t, 72 + 2 * t)
        frame[place], mask[place] = texture, True
        frames.append(frame)
        masks.append(mask)
    return frames, masks


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av
    from av.codec.codec import UnknownCodecError

    try:
        av.Codec(name, mode)
    except UnknownCodecError:
        return False
    return True


def _installed(names: tuple[str, ...]) -> list[str]:
    """Those of these distributions that are installed, with their versions."""
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
