"""LocalSoftCopy for the CPU: a fused C++ kernel that never holds the window, or nothing where it was not built.

The extension is optional: `unavailable()` says why it is missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow, copied_shape, named_references

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


def multiplies_bytes() -> bool:
    """Whether features of 8 bits are searched faster here than those of 16."""
    return "avx512-vnni" in kernels()


def available_threads() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class PackedFeatures:
    """Features as integers: what the kernel searches fastest.

    words:  [..., ceil(C / n), H, W] int32, of n = 32 / bits channels each
    scales: float32, the shape of what stands before the words' last three axes: what the features were multiplied by
    bits:   16, which moves a score of unit features by less than 0.0002, or 8, by less than 0.04 and usually 0.002
    """

    words: np.ndarray
    scales: np.ndarray
    bits: int


def packed_depth(channels: int, bits: int) -> int:
    """Words for the channels of a cell."""
    return -(-channels * bits // 32)


def pack(features: np.ndarray, bits: int, threads: int = 0) -> PackedFeatures:
    """Pack features [C, H, W] float32, in C order, into 16 or 8 bits a channel.

    Raises InputError for other arrays, or where the kernel was not built.
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
    """The op on packed features of one picture: words [D, H, W] and [K, D, H, W], values [K, N, H, W] -> [N, H, W].

    Raises InputError where shapes or bits do not agree or the kernel was not built.
    """
    if _fused is None:
        raise InputError(unavailable())
    copied_shape(query.words[None].shape, keys.words[None].shape, values[None].shape)
    if query.bits != keys.bits:
        raise InputError(f"expected query and keys packed alike, got {query.bits} and {keys.bits} bits")
    named = named_references(references, len(keys.words))
    scales = [1 / (float(query.scales) * float(keys.scales[each.picture]) * attributes.temperature) for each in named]
    moved, radii, dilations = _moves_and_windows(named, attributes)
    threads = threads or available_threads()
    return _fused.copy(
        query.words, keys.words, values, moved, radii, dilations, attributes.top_k, scales, keys.bits, threads, kernel
    )


def local_soft_copy(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    attributes: Attributes,
    threads: int = 0,
    kernel: str = "auto",
    references: Sequence[SearchWindow] | None = None,
) -> np.ndarray:
    """The op as spec.py defines it: float32 in C order, keys float32 or float16, sums float32.

    threads: 0 for as many as there are cores. Memory besides the result: one strip of the window's rows per thread.
    Raises InputError where the shapes do not agree or the kernel was not built.
    """
    if _fused is None:
        raise InputError(unavailable())
    copied_shape(query.shape, keys.shape, values.shape)
    named = named_references(references, keys.shape[1])
    moved, radii, dilations = _moves_and_windows(named, attributes)
    threads = threads or available_threads()
    scales = [1 / attributes.temperature] * len(named)
    copied = [
        _fused.copy(query[b], keys[b], values[b], moved, radii, dilations, attributes.top_k, scales, 0, threads, kernel)
        for b in range(len(query))
    ]
    return copied[0][None] if len(copied) == 1 else np.stack(copied)


def _moves_and_windows(
    named: Sequence[SearchWindow], attributes: Attributes
) -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
    """(picture, down, right), radius and dilation of each reference, as the kernel takes them."""
    windows = [attributes.window(each.window) for each in named]
    moved = [(each.picture, each.down, each.right) for each in named]
    return moved, [radius for radius, _ in windows], [dilation for _, dilation in windows]
