"""Matrix products on the calling thread alone.

OpenBLAS shares large products among threads. These spin for tens of milliseconds afterwards, on the cores that the
encoder and the search need next. The products of a frame are small, so two threads are no faster than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

# The number of BLAS threads belongs to the process: two callers that set it at once would spoil each other's value.
_lock = Lock()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep NumPy's products and solvers on the calling thread."""
    with _lock, _blas().limit(limits=1):
        yield


def matmul_single_threaded(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compute np.matmul on the calling thread."""
    with single_threaded():
        return np.matmul(left, right)


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController  # imported late, since it looks at every library that is loaded

    return ThreadpoolController().select(user_api="blas")
