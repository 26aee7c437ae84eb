"""The machine that a measurement is from: its processor, what it can do at best, and memory as the kernel counts it."""

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

MATRIX = 1536  # rows and columns of the product that the machine's rate is taken from
COPY_BYTES = 128 * 2**20  # beyond any cache

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def processor() -> str:
    """The processor's name as the system states it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load() -> float | None:
    """DistributedContext that ran or waited for a core over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def matrix_products() -> dict[str, Callable[[], object]]:
    """The fp32 matrix product of every library at hand, 2 * MATRIX ** 3 operations a call.

    They differ by a factor of two and more on processors that some of them do not know.
    """
    import onnx
    import onnxruntime
    import torch

    generator = np.random.default_rng(0)
    left, right = (generator.random((MATRIX, MATRIX), np.float32) for _ in range(2))
    product = np.empty_like(left)
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
        "numpy": lambda: np.matmul(left, right, out=product),
        "torch": lambda: torch.mm(tensors[0], tensors[1], out=tensors[2]),
        "onnxruntime": lambda: session.run(None, {"left": left, "right": right}),
    }


def memory_copy() -> Callable[[], object]:
    """Copies COPY_BYTES with torch's threads; the memory moves twice that, read and written."""
    import torch

    source, target = (torch.ones(COPY_BYTES // 4) for _ in range(2))
    return lambda: target.copy_(source)


def resident() -> int | None:
    """Bytes of this process in memory; None where the system does not say."""
    return _status("VmRSS")


def highest() -> int | None:
    """Bytes of this process in memory when it had the most; None where the system does not say."""
    return _status("VmHWM")


def peak_growth(call: Callable[[], object]) -> int | None:
    """Bytes by which a call raises this process's memory at its highest; None where the system does not say."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be taken again and not be seen
    try:
        _CLEAR.write_text("5")  # the highest so far becomes what it is now
    except OSError:
        return None
    before = resident()
    kept = call()
    most = highest()
    del kept
    return None if before is None or most is None else max(0, most - before)


def answer_of(module: str, request: object, failed: str) -> Any:
    """What a module prints as JSON, run in a process of its own that reads the request as JSON.

    Raises CorrflowError, which begins with `failed` and ends with the last line that the process complained with.
    """
    done = subprocess.run([sys.executable, "-m", module], input=json.dumps(request), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CorrflowError(f"{failed}: {reason}")
    return json.loads(done.stdout)


def available_memory() -> int | None:
    """Bytes that a process may still ask for; None where the system does not say."""
    return _status("MemAvailable", Path("/proc/meminfo"))


def _status(name: str, path: Path = _STATUS) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
