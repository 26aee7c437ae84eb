"""Matrix products on the calling thread alone.

NumPy hands large products to its BLAS, and OpenBLAS shares them among threads which then spin for tens of milliseconds,
waiting for more, on the cores that the encoder and the search need next. The products of a frame are small: two threads
are no faster, and what follows on two cores took half as long again.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any

import numpy as np

# The number of threads is the process's; two that set it at once would leave each other's behind.
_limited = Lock()


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """As np.matmul, without threads of its own."""
    with _limited, _blas().limit(limits=1):
        return np.matmul(left, right)


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController  # here, for it looks at every library that is loaded

    return ThreadpoolController().select(user_api="blas")
