"""Life of the plugin as TensorRT's C++ code leads it, on TensorRT's real Python bindings, in a separate process.

    python tests/helpers/plugin_life.py BINDINGS STUBS

STUBS holds tests/native/plugin_life.cpp as libnvinfer, whose program drives the plugin that Python registers. Only the
compiler and the launch are replaced, because they need a GPU. The exit code is the program's, or that of a crash.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from corrflow.plugins.local_soft_copy import tensorrt_plugin


def launch(stream: Any, config: Any, kernel: str, *arguments: Any) -> None:
    """Print a launch instead of launching."""
    numbers = [argument if isinstance(argument, int) else argument.value for argument in arguments]
    print(f"launch: {kernel} {stream} {config} {numbers}", flush=True)


def main(bindings: str, stubs: str) -> int:
    """Register the plugin and let the C++ program drive it."""
    libraries = {path.name: ctypes.CDLL(str(path), mode=os.RTLD_LOCAL) for path in sorted(Path(stubs).glob("*.so.*"))}
    sys.path.insert(0, bindings)
    trt: Any = importlib.import_module("tensorrt_bindings")
    tensorrt_plugin.device_architecture = lambda: "sm_87"
    tensorrt_plugin.compile_kernel = lambda launch, architecture: SimpleNamespace(get_kernel=lambda name: name)
    tensorrt_plugin.cuda_core = lambda: SimpleNamespace(
        LaunchConfig=lambda grid, block: (grid, block),
        Stream=SimpleNamespace(from_handle=lambda handle: handle),
        launch=launch,
    )
    tensorrt_plugin.register(trt)
    (nvinfer,) = (library for name, library in libraries.items() if name.startswith("libnvinfer.so"))
    return nvinfer.drive_registered(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
