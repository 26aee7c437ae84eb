"""corrflow-doctor says what is wrong for each way of being wrong, and its self-tests can fail."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.cuda.compiler import REMEDY
from corrflow.runtime.artifacts import bundled
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.commands import doctor
from corrflow.runtime.commands.doctor import CHECKS, Finding, examine, healthy

FUSED, FUNCTION = "backend onnxruntime, fused kernel", "backend onnx-function"


def finding(part: str, monkeypatch: pytest.MonkeyPatch) -> Finding:
    """Return the finding of one check alone."""
    monkeypatch.setattr(doctor, "CHECKS", {part: CHECKS[part]})
    (found,) = examine()
    return found


def test_the_report_is_json_and_the_function_works_here() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "corrflow.runtime.commands.doctor_cli", "--json"], capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    by_part = {entry["part"]: entry for entry in report["findings"]}
    assert list(by_part) == list(CHECKS)
    assert by_part[FUNCTION]["state"] == by_part["video files"]["state"] == "works"
    assert all(entry["remedy"] for entry in report["findings"] if entry["state"] == "absent")
    assert done.returncode == (0 if report["healthy"] else 1)
    assert done.stderr == ""


def test_engines_beside_the_model_are_tried_only_where_they_are_ours(tmp_path, monkeypatch) -> None:
    """Absent without any; with some that this machine has not signed, broken and not loaded."""
    model = tmp_path / "model"
    shutil.copytree(bundled.resolve_model(None), model, ignore=shutil.ignore_patterns("engines"))
    monkeypatch.setattr(bundled, "resolve_model", lambda name: model)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = finding("backend tensorrt", monkeypatch)
    assert found.state == "absent" and "corrflow-export engine" in found.remedy
    (model / "engines").mkdir()
    (model / "engines" / "engines.json").write_text('{"format": 3, "spec": {}, "files": {}, "signature": ""}')
    found = finding("backend tensorrt", monkeypatch)
    assert found.state == "broken" and "an engine is code" in found.detail


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, corrflow.runtime.commands.doctor_cli\n"
        "print([name for name in ('numpy', 'onnxruntime', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_two_onnxruntimes_over_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    found = finding("onnxruntime", monkeypatch)
    assert found.state == "broken" and "onnxruntime-gpu 1.31.0" in found.detail
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found.remedy
    assert not healthy([found])


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable() or "-")
def test_every_fused_kernel_is_tried_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    found = finding(FUSED, monkeypatch)
    assert found.state == "works" and all(kernel in found.detail for kernel in cpu.kernels())
    overlap = re.search(r"truth (\d\.\d+)$", found.detail)
    assert overlap and float(overlap[1]) > 0.85


def test_a_kernel_that_was_not_built_is_absent_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_reason", "no working compiler")
    found = finding(FUSED, monkeypatch)
    assert (found.state, found.remedy) == ("absent", "install a C++ compiler, then corrflow again")
    assert "no working compiler" in found.detail and healthy([found])


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable() or "-")
def test_a_kernel_with_wrong_numbers_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.local_soft_copy
    monkeypatch.setattr(cpu, "local_soft_copy", lambda *args, **kwargs: right(*args, **kwargs) + np.float32(1e-3))
    found = finding(FUSED, monkeypatch)
    assert found.state == "broken" and "from the ONNX function" in found.detail
    assert "--backend onnx-function" in found.remedy


def test_a_back_end_that_loses_the_object_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = OnnxRuntimeBackend.propagate
    monkeypatch.setattr(OnnxRuntimeBackend, "propagate", lambda *args: 1 - right(*args))
    found = finding(FUNCTION, monkeypatch)
    assert found.state == "broken" and "overlap with the truth 0" in found.detail


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(OnnxRuntimeBackend, "encode", refuse)
    found = finding(FUNCTION, monkeypatch)
    assert found.state == "broken" and found.detail == "RuntimeError: no such instruction" and found.remedy


@pytest.mark.parametrize(
    ("build", "program", "state", "detail"),
    [
        ("NO", None, "absent", "no CSI cameras"),
        ("NO", "/usr/bin/gst-launch-1.0", "works", "gst-launch-1.0"),
        ("YES (1.20.3)", None, "works", "in OpenCV"),
    ],
)
def test_gstreamer_is_opencvs_or_a_program(
    build: str, program: str | None, state: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"  Video I/O:\n    GStreamer:      {build}\n")
    monkeypatch.setattr(shutil, "which", lambda name: program)
    found = finding("GStreamer", monkeypatch)
    assert found.state == state and detail in found.detail and bool(found.remedy) == (state == "absent")


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [(0, "works", "CUDA 12.6, GPUs: 1"), (100, "absent", "finds no GPU"), (999, "broken", "cuInit gives 999")],
    ids=["works", "no GPU", "broken"],
)
def test_the_driver_is_asked(code: int, state: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(value: int):
        def call(reference) -> int:
            reference._obj.value = value
            return 0

        return call

    driver = SimpleNamespace(cuInit=lambda _: code, cuDriverGetVersion=put(12060), cuDeviceGetCount=put(1))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    found = finding("NVIDIA driver", monkeypatch)
    assert found.state == state and reason in found.detail


def test_no_driver_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert finding("NVIDIA driver", monkeypatch).state == "absent"


@pytest.mark.parametrize(
    ("program", "state", "reason"),
    [
        ("__version__ = '11.4.0.106'", "found", "into the engine"),
        ("__version__ = '10.3.0'", "found", "registered before loading"),
        ("__version__ = '8.6.1'", "absent", "older than the plugin"),
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "broken", "libnvinfer.so.10"),
    ],
    ids=["11.4", "10.3", "8.6", "library missing"],
)
def test_tensorrt_is_told_apart(program: str, state: str, reason: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "tensorrt.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    found = finding("TensorRT", monkeypatch)
    sys.modules.pop("tensorrt", None)
    assert found.state == state and reason in found.detail


def test_the_cuda_kernel_is_compiled_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    found = finding("CUDA kernel", monkeypatch)
    assert found.state == "works" and re.search(r"compiles for sm_\d+, \d{4,} bytes, as .*; not launched", found.detail)


@pytest.mark.parametrize("missing", ["cuda-core", "NVRTC"])
def test_a_missing_compiler_is_absent_with_its_remedy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class DynamicLibNotFoundError(Exception):
        pass

    def refuse(*_: object) -> None:
        raise DynamicLibNotFoundError("libnvrtc.so.12")

    if missing == "NVRTC":
        core = SimpleNamespace(Program=refuse, ProgramOptions=lambda **_: None)
        monkeypatch.setitem(sys.modules, "cuda.core", core)  # type: ignore[arg-type]
    else:
        monkeypatch.setitem(sys.modules, "cuda.core", None)
    found = finding("CUDA kernel", monkeypatch)
    assert found.state == "absent" and f"expected {missing} to compile" in found.detail
    assert found.remedy == f"for TensorRT: {REMEDY}"


def test_a_model_that_is_not_there_is_no_finding(tmp_path) -> None:
    command = [sys.executable, "-m", "corrflow.runtime.commands.doctor_cli", "--model", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: expected a model among") and not done.stdout
