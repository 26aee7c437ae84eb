"""Shared libraries of tests/native, built by the machine's C++ compiler."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from helpers.paths import NATIVE

COMPILER = os.environ.get("CXX", "g++")
TENSORRT_INCLUDE = os.environ.get("TENSORRT_INCLUDE", str(NATIVE / "nvinfer"))
"""Folder of NvInfer.h: of a TensorRT installation if this variable is set, otherwise the tests' own declarations."""
CUDA_INCLUDE = os.environ.get("CUDA_INCLUDE", "/usr/local/cuda/include")


def build_shared(source: Path, library: Path, *options: str) -> Path:
    """Compile a C++ file to a shared library whose name in the loader is that of its file."""
    folders = [f"-isystem{TENSORRT_INCLUDE}", f"-isystem{CUDA_INCLUDE}"]
    command = [COMPILER, "-std=c++17", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", *folders, *options]
    subprocess.run([*command, str(source), "-o", str(library), "-ldl", "-lpthread"], check=True)
    return library
