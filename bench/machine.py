"""Machine of a measurement: processor, upper bounds of its speed, and memory as the kernel counts it."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.errors import CorrflowError

MATRIX = 1536  # rows and columns of the matrix product that measures the arithmetic rate
COPY_BYTES = 128 * 2**20  # larger than any cache

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def processor() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load() -> float | None:
    """Return the mean number of running or waiting processes over the last minute; None if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def matrix_products() -> dict[str, Callable[[], object]]:
    """Return calls of each library's fp32 matrix product, 2 * MATRIX ** 3 operations per call.

    Libraries differ by a factor of two and more on processors that some of them do not support.
    """
    import onnx
    import onnxruntime
    import torch

    generator = np.random.default_rng(0)
    left, right = (generator.random((MATRIX, MATRIX), np.float32) for _ in range(2))
    output = np.empty_like(left)
    tensors = torch.from_numpy(left), torch.from_numpy(right), torch.from_numpy(np.empty_like(left))
    shapes = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [MATRIX, MATRIX])
        for name in ("left", "right", "product")
    ]
    node = onnx.helper.make_node("MatMul", ["left", "right"], ["product"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "product", shapes[:2], shapes[2:]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {
        "numpy": lambda: np.matmul(left, right, out=output),
        "torch": lambda: torch.mm(tensors[0], tensors[1], out=tensors[2]),
        "onnxruntime": lambda: session.run(None, {"left": left, "right": right}),
    }


def memory_copy() -> Callable[[], object]:
    """Return a call that copies COPY_BYTES with torch's threads; each byte is read and written."""
    import torch

    source, target = (torch.ones(COPY_BYTES // 4) for _ in range(2))
    return lambda: target.copy_(source)


def resident() -> int | None:
    """Return the resident memory of this process in bytes; None if unknown."""
    return _status("VmRSS")


def highest() -> int | None:
    """Return the peak resident memory of this process in bytes; None if unknown."""
    return _status("VmHWM")


def peak_growth(call: Callable[[], object]) -> int | None:
    """Return the bytes by which a call raises the peak memory of this process; None if unknown."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # otherwise a call could reuse freed memory
    try:
        _CLEAR.write_text("5")  # reset the peak to the current memory
    except OSError:
        return None
    before = resident()
    result = call()
    peak = highest()
    del result
    return None if before is None or peak is None else max(0, peak - before)


def answer_of(module: str, request: object, failed: str) -> Any:
    """Run a module in a separate process with a JSON request on standard input, and return its JSON output.

    Raises CorrflowError that begins with `failed` and ends with the last line of the process's error output.
    """
    done = subprocess.run([sys.executable, "-m", module], input=json.dumps(request), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CorrflowError(f"{failed}: {reason}")
    return json.loads(done.stdout)


def available_memory() -> int | None:
    """Return the bytes that are free for processes; None if unknown."""
    return _status("MemAvailable", Path("/proc/meminfo"))


def _status(name: str, path: Path = _STATUS) -> int | None:
    """Read a size in bytes from a status file of the kernel."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
