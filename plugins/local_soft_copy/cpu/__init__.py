"""LocalSoftCopy for the CPU: a fused C++ kernel that never holds the window, or nothing where it was not built.

The extension is optional: `unavailable()` says why it is missing.
"""

from __future__ import annotations

import os

import numpy as np

from corrflow.plugins.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes, copied_shape

try:
    import corrflow.plugins.local_soft_copy.cpu._fused as _fused  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:
    _fused = None
    _reason = "no working compiler when corrflow was installed"
except ImportError as error:
    _fused = None
    _reason = str(error)
else:
    _reason = ""


def unavailable() -> str:
    """Why the kernel cannot be used, or "" where it can."""
    return _reason and f"the fused kernel was not built ({_reason}); install a C++ compiler, then corrflow again"


def kernels() -> tuple[str, ...]:
    """The kernels that this processor can run, the fastest first; none where the extension was not built."""
    return tuple(_fused.kernels()) if _fused else ()


def available_threads() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_soft_copy(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    attributes: Attributes,
    threads: int = 0,
    kernel: str = "auto",
) -> np.ndarray:
    """The op as spec.py defines it: float32 in C order, keys float32 or float16, sums float32.

    threads: 0 for as many as there are cores. Memory besides the result: one strip of the window's rows per thread.
    Raises InputError where the shapes do not agree or the kernel was not built.
    """
    if _fused is None:
        raise InputError(unavailable())
    copied_shape(query.shape, keys.shape, values.shape)
    radii, dilations = zip(*attributes.windows(keys.shape[1]), strict=True)
    threads = threads or available_threads()
    top_k, temperature = attributes.top_k, attributes.temperature
    copied = [
        _fused.copy(query[b], keys[b], values[b], radii, dilations, top_k, temperature, threads, kernel)
        for b in range(len(query))
    ]
    return copied[0][None] if len(copied) == 1 else np.stack(copied)
