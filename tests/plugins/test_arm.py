"""The kernels of ARM processors, cross-compiled and emulated, match the oracle and the kernels of this processor."""

from __future__ import annotations

import functools
import platform
import shutil

import numpy as np
import pytest
from helpers.kernel_jobs import KernelJob, KernelProgram, assert_matches_the_oracle

from corrflow.bench.op import cpu_cycles
from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from corrflow.runtime.video.demo_clip import DemoSource

COMPILER = "aarch64-linux-gnu-g++"
DOTPROD = ["-march=armv8.2-a+dotprod", "-O2"]  # at -O1, inner loops have needless copies of registers


def emulator() -> str:
    """Return the command of QEMU's user emulation, or ""."""
    return next((name for name in ("qemu-aarch64-static", "qemu-aarch64") if shutil.which(name)), "")


def missing_tools() -> str:
    """Return the reason why ARM programs cannot be built and run here, or ""."""
    if platform.system() != "Linux":
        return "QEMU's user emulation runs on Linux alone"
    if shutil.which(COMPILER) is None or not emulator():
        return "no aarch64 compiler or emulator; install g++-aarch64-linux-gnu and qemu-user-static"
    return ""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> KernelProgram:
    """Build the ARM kernels once."""
    if reason := missing_tools():
        pytest.skip(reason)
    runner = [emulator(), "-cpu", "max"]
    return KernelProgram(tmp_path_factory.mktemp("arm"), COMPILER, {"neon_dotprod": DOTPROD}, runner)


def test_the_kernel_with_dot_products_is_chosen_where_the_processor_has_them(program: KernelProgram) -> None:
    assert program.kernels() == ["neon-dotprod", "portable"]
    assert program.kernels("-cpu", "cortex-a72") == ["portable"]


@pytest.mark.parametrize("kernel", ["neon-dotprod", "portable"])
def test_arm_kernels_match_the_oracle(program: KernelProgram, kernel: str) -> None:
    assert_matches_the_oracle(program, kernel)


def test_arm_kernels_have_the_instructions_that_make_them_fast(program: KernelProgram) -> None:
    """Products of bytes are `sdot` alone; half precision is converted by `fcvtl`, and 16 bits multiplied by `smlal`."""

    @functools.cache
    def instructions(kernel: str) -> list[str]:
        lines = program.assembly[kernel].read_text().splitlines()
        return [line.split()[0] for line in lines if line.startswith("\t") and line.strip()]

    # One for each product of the blocks of 1 to 4 query rows and up to 8 offsets.
    blocks = sum(rows * (most * (most + 1) // 2) for rows, most in ((4, 6), (3, 8), (2, 8), (1, 8)))
    assert instructions("neon_dotprod").count("sdot") == blocks
    assert "sdot" not in instructions("portable")
    for kernel in ("neon_dotprod", "portable"):
        assert instructions(kernel).count("smlal") >= blocks and "fcvtl" in instructions(kernel)


def test_the_model_of_a_processor_does_20_multiply_adds_of_bytes_per_cycle(program: KernelProgram) -> None:
    target = cpu_cycles.TARGETS["neoverse-n1"]
    if reason := cpu_cycles.missing(target):
        pytest.skip(reason)
    loop = cpu_cycles.densest_loop(program.assembly["neon_dotprod"].read_text(), "sdot")
    products = sum(line.split()[0] == "sdot" for line in loop)
    assert products == 24  # four query rows and six offsets
    assert 16 * products / cpu_cycles.cycles(loop, target) > 20


def test_masks_of_video_frames_are_those_of_this_processor(program: KernelProgram) -> None:
    """Ten frames of the demo clip, with a bundled encoder: no pixel differs. Scores are equal to the last bit."""
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    artifact = load_artifact(resolve_model("fast-int8"))
    source = DemoSource(11, (96, 168))
    features = [OnnxRuntimeBackend(artifact, 1).encode(frame.image) for frame in source]
    attributes = Attributes((8, 9), (1, 2), 5, 0.07)
    mask = source.true_mask(0)[::4, ::4].astype(np.float32)
    soft = [np.stack([1 - mask, mask])]
    jobs, expected = [], []
    for t in range(1, 11):
        memory = sorted({0, max(t - 2, 0), t - 1})
        parts = [cpu.pack(features[k], 8) for k in memory]
        keys = cpu.PackedFeatures(
            np.stack([part.words for part in parts]), np.stack([part.scales for part in parts]), 8
        )
        jobs.append(KernelJob(cpu.pack(features[t], 8), keys, np.stack([soft[k] for k in memory]), attributes))
        soft.append(cpu.packed_soft_copy(*jobs[-1][:4], threads=1))
        expected.append(soft[-1])
    for kernel in ("neon-dotprod", "portable"):
        for got, wanted in zip(program.run(kernel, jobs), expected, strict=True):
            assert np.count_nonzero((got[1] > 0.5) != (wanted[1] > 0.5)) == 0
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)  # compilers fuse products and sums differently
    assert 10 < np.count_nonzero(soft[-1][1] > 0.5) < mask.size / 2
