"""The compiled binding, module.cpp."""

from collections.abc import Sequence

import numpy as np

def kernels() -> list[str]: ...
def copy(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    radius: Sequence[int],
    dilation: Sequence[int],
    top_k: int,
    temperature: float,
    threads: int,
    kernel: str,
) -> np.ndarray: ...
