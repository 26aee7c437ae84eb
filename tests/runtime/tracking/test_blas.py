"""Matrix products on one thread leave the number of threads as it was for everybody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from corrflow.runtime.tracking import blas


def blas_threads() -> list[int]:
    """Return the number of threads of NumPy's BLAS; other packages bring further libraries."""
    own = [library for library in threadpool_info() if library["user_api"] == "blas" and "numpy" in library["filepath"]]
    return [library["num_threads"] for library in own]


def test_the_product_matches_numpy() -> None:
    left, right = np.random.default_rng(0).random((2, 3, 40, 40), np.float32)
    np.testing.assert_allclose(blas.matmul_single_threaded(left, right), np.matmul(left, right), rtol=1e-6)


def test_the_product_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the number of threads while NumPy multiplies."""
    if not blas_threads():
        pytest.skip("NumPy brings no BLAS that tells its number of threads")
    seen = []

    def matmul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        seen.append(blas_threads())
        return left

    monkeypatch.setattr(blas.np, "matmul", matmul)
    with threadpool_limits(3, user_api="blas"):
        blas.matmul_single_threaded(np.eye(2), np.eye(2))
        assert seen == [[1] * len(blas_threads())] and set(blas_threads()) == {3}


def test_many_at_once_leave_the_number_of_threads_as_it_was() -> None:
    square = np.ones((60, 60), np.float32)
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with ThreadPoolExecutor(8) as pool:
            assert all(
                np.all(one == 60) for one in pool.map(blas.matmul_single_threaded, [square] * 400, [square] * 400)
            )
        assert blas_threads() == before
