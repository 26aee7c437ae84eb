"""The kernels with VNNI instructions match the oracle on processors without these, where plain code replaces them."""

from __future__ import annotations

import os
import platform
import shutil

import pytest
from helpers.kernel_jobs import KernelProgram, assert_matches_the_oracle
from helpers.paths import NATIVE

from corrflow.plugins.local_soft_copy import cpu

COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-mavx2", "-mfma", "-mf16c", "-include", f"{NATIVE}/vnni_emulated.h"]
MACROS = {"avx-vnni": "avx_vnni", "avx512-vnni": "avx512_vnni"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> KernelProgram:
    """Build both kernels once, where the processor cannot run them itself."""
    if platform.machine().lower() not in ("x86_64", "amd64") or "avx2" not in cpu.kernels():
        pytest.skip("needs an x86-64 processor with AVX2")
    if set(MACROS) <= set(cpu.kernels()):
        pytest.skip("this processor has VNNI, and test_local_soft_copy.py runs its kernels")
    if platform.system() != "Linux" or shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} on Linux")
    return KernelProgram(tmp_path_factory.mktemp("vnni"), COMPILER, dict.fromkeys(MACROS.values(), FLAGS))


@pytest.mark.parametrize("kernel", MACROS)
def test_kernels_with_emulated_vnni_match_the_oracle(program: KernelProgram, kernel: str) -> None:
    assert_matches_the_oracle(program, kernel)
