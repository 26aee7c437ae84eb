"""Compiled binding, built from module.cpp."""

from collections.abc import Sequence

import numpy as np

def kernels() -> list[str]: ...
def pack(features: np.ndarray, bits: int, words: np.ndarray, threads: int) -> float: ...
def copy(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    references: Sequence[tuple[int, int, int]],
    radius: Sequence[int],
    dilation: Sequence[int],
    top_k: int,
    scales: Sequence[float],
    bits: int,
    threads: int,
    kernel: str,
) -> np.ndarray: ...
