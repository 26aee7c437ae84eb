"""Installation for NVIDIA GPUs: extras are whole, and what does not fit the driver is one sentence with its remedy."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from helpers.paths import ROOT
from packaging.requirements import Requirement

from corrflow.plugins.local_soft_copy.cuda import compiler

tomllib = pytest.importorskip("tomllib")


def requirements(extra: str) -> dict[str, Requirement]:
    """Return the requirements of an extra by name, those of the extras that it names included."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found: dict[str, Requirement] = {}
    for text in extras[extra]:
        requirement = Requirement(text)
        if requirement.name == "corrflow":
            for more in requirement.extras:
                found |= requirements(more)
        else:
            found[requirement.name] = requirement
    return found


@pytest.mark.parametrize(("extra", "cuda"), [("cu12", "12"), ("cu13", "13"), ("jetson6", "12")])
def test_an_extra_brings_bindings_and_compiler_of_one_cuda(extra: str, cuda: str) -> None:
    found = requirements(extra)
    assert found["cuda-core"].extras == {f"cu{cuda}"} and "onnx" in found
    try:
        lines = [Requirement(line) for line in metadata.requires("cuda-core") or ()]
    except metadata.PackageNotFoundError:
        pytest.skip("needs cuda-core")
    (bindings,) = (
        line
        for line in lines
        if line.name == "cuda-bindings" and line.marker and line.marker.evaluate({"extra": f"cu{cuda}"})
    )
    assert "all" in bindings.extras and bindings.specifier.contains(f"{cuda}.9")


def test_jetpack_keeps_its_numpy_and_its_compiler() -> None:
    found = requirements("jetson6")
    assert not found["numpy"].specifier.contains("2.0.0") and found["numpy"].specifier.contains("1.26.4")
    compiler_of_jetpack = found["nvidia-cuda-nvrtc-cu12"].specifier
    assert compiler_of_jetpack.contains("12.6.85") and not compiler_of_jetpack.contains("12.9.86")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in project["dependencies"]]
    on_jetson = [
        line for line in needed if not line.marker or line.marker.evaluate({"platform_release": "5.15.148-tegra"})
    ]
    assert "opencv-python" not in {line.name for line in on_jetson}, "it would hide JetPack's"
    assert any(line.name == "numpy" and not line.specifier.contains("2.0.0") for line in on_jetson)


@pytest.mark.parametrize(
    ("bindings", "driver", "sentence"),
    [
        ("13.5.0", 12060, "expected a driver for CUDA 13, as the bindings are, got one for 12.6; use corrflow[cu12]"),
        ("12.9.0", 11080, "expected a driver for CUDA 12, as the bindings are, got one for 11.8; update the driver"),
        ("12.9.0", 12060, ""),
        ("12.9.0", 13000, ""),
        ("13.5.0", None, ""),
        (None, 12060, ""),
    ],
)
def test_bindings_newer_than_the_driver_are_named(
    bindings: str | None, driver: int | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        assert name == "cuda-bindings"
        if bindings is None:
            raise metadata.PackageNotFoundError(name)
        return bindings

    def get_version(number: ctypes.c_int) -> int:
        ctypes.cast(number, ctypes.POINTER(ctypes.c_int))[0] = driver or 0
        return 0

    def load(name: str) -> SimpleNamespace:
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace(cuDriverGetVersion=get_version)

    monkeypatch.setattr(compiler, "version", version)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert compiler.older_driver() == sentence
    core = SimpleNamespace(Device=lambda: (_ for _ in ()).throw(RuntimeError("no device")))
    monkeypatch.setattr(compiler, "cuda_core", lambda: core)
    with pytest.raises(compiler.InputError, match=sentence.replace("[", r"\[") or "found none .no device."):
        compiler.device_architecture()


def test_a_source_folder_that_shadows_the_package_is_named() -> None:
    program = "import corrflow; corrflow.track"
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT / "src", capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: expected the installed corrflow, got the source folder ")
    assert last.endswith("which shadows it; run Python in another folder, or correct PYTHONPATH")
