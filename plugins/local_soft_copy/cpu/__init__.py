"""LocalSoftCopy (top-k local cross-attention) on the CPU: a fused C++ kernel that never stores a whole window.

The compiled extension is optional: `unavailable()` returns the reason why it is missing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow, output_shape, used_references

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
    """Return the reason why the kernel cannot be used, or "" if it can."""
    return _reason and f"the fused kernel was not built ({_reason}); install a C++ compiler, then corrflow again"


def kernels() -> tuple[str, ...]:
    """Return the kernels that this processor can run, fastest first; none if the extension was not built."""
    return tuple(_fused.kernels()) if _fused else ()


# Kernels with an instruction for products of bytes; the others are faster with 16-bit features or float32.
BYTE_KERNELS = ("avx512-vnni", "avx-vnni", "neon-dotprod")


def multiplies_bytes() -> bool:
    """Return True if the search is faster with 8-bit features than with all others on this processor."""
    return any(kernel in BYTE_KERNELS for kernel in kernels())


def fastest_bits(coarse: bool) -> int:
    """Return the bits of a feature channel with which the search is fastest: 8 (only if `coarse`), 16 or 32.

    NEON has no instruction that adds the products of 16-bit pairs, so float32 is faster there.
    """
    if coarse and multiplies_bytes():
        return 8
    return 32 if platform.machine().lower() in ("aarch64", "arm64") else 16


def available_threads() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class PackedFeatures:
    """Features quantised to integers, the fastest input of the kernel.

    words:  [..., ceil(C / n), H, W] int32; each word holds n = 32 / bits channels
    scales: [...] float32, factors that the features were multiplied by
    bits:   16 or 8; the score error of unit features is below 0.0002 (16 bits) or 0.04 (8 bits, 0.002 typically)
    """

    words: np.ndarray
    scales: np.ndarray
    bits: int


def packed_depth(channels: int, bits: int) -> int:
    """Return the number of words that hold the channels of one cell."""
    return -(-channels * bits // 32)


def pack(features: np.ndarray, bits: int, threads: int = 0) -> PackedFeatures:
    """Quantise features [C, H, W] float32 to 16 or 8 bits per channel.

    Raises InputError for other arrays, or if the kernel was not built.
    """
    if _fused is None:
        raise InputError(unavailable())
    if features.ndim != 3 or features.dtype != np.float32 or 0 in features.shape or bits not in (8, 16):
        raise InputError(
            f"expected features [C, H, W] float32 to pack into 8 or 16 bits, got {features.dtype}"
            f" {list(features.shape)} and {bits} bits"
        )
    words = np.empty((packed_depth(len(features), bits), *features.shape[1:]), np.int32)
    features = np.ascontiguousarray(features)
    scale = _fused.pack(features, bits, words, threads or available_threads())
    return PackedFeatures(words, np.asarray(scale, np.float32), bits)


def packed_soft_copy(
    query: PackedFeatures,
    keys: PackedFeatures,
    values: np.ndarray,
    attributes: Attributes,
    threads: int = 0,
    kernel: str = "auto",
    references: Sequence[SearchWindow] | None = None,
) -> np.ndarray:
    """Compute the op on packed features without a batch axis.

    query words [D, H, W], key words [K, D, H, W], values [K, N, H, W] float32 -> [N, H, W] float32. Raises InputError
    if shapes or bits do not agree, or if the kernel was not built.
    """
    if _fused is None:
        raise InputError(unavailable())
    output_shape(query.words[None].shape, keys.words[None].shape, values[None].shape)
    if query.bits != keys.bits:
        raise InputError(f"expected query and keys packed alike, got {query.bits} and {keys.bits} bits")
    used = used_references(references, len(keys.words))
    scales = [1 / (float(query.scales) * float(keys.scales[each.frame]) * attributes.temperature) for each in used]
    windows, threads = _windows(used, attributes), threads or available_threads()
    return _fused.copy(query.words, keys.words, values, *windows, attributes.top_k, scales, keys.bits, threads, kernel)


def local_soft_copy(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    attributes: Attributes,
    threads: int = 0,
    kernel: str = "auto",
    references: Sequence[SearchWindow] | None = None,
) -> np.ndarray:
    """Compute the op as spec.py defines it: C-contiguous float32 arrays, keys float32 or float16, sums float32.

    threads: 0 for all cores; each thread needs memory for one strip of the window's rows
    Raises InputError if shapes do not agree, or if the kernel was not built.
    """
    if _fused is None:
        raise InputError(unavailable())
    output_shape(query.shape, keys.shape, values.shape)
    used = used_references(references, keys.shape[1])
    windows, threads = _windows(used, attributes), threads or available_threads()
    scales = [1 / attributes.temperature] * len(used)
    copied = [
        _fused.copy(query[b], keys[b], values[b], *windows, attributes.top_k, scales, 0, threads, kernel)
        for b in range(len(query))
    ]
    return copied[0][None] if len(copied) == 1 else np.stack(copied)


def _windows(
    references: Sequence[SearchWindow], attributes: Attributes
) -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
    """Return (frame, dy, dx), radius and dilation of each row, as the kernel expects them."""
    windows = [attributes.window(each.window) for each in references]
    offsets = [(each.frame, each.dy, each.dx) for each in references]
    return offsets, [radius for radius, _ in windows], [dilation for _, dilation in windows]
