"""CPU kernels as a program beside Python (tests/native/run_jobs.cpp): cross-compiled, or with emulated instructions."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from corrflow.bench.op.cuda_kernel import CASES, Case
from corrflow.plugins.local_soft_copy.cpu import PackedFeatures
from corrflow.plugins.local_soft_copy.spec import Attributes, SearchWindow, used_references
from helpers.oracle import oracle
from helpers.paths import NATIVE, ROOT

Features = np.ndarray | PackedFeatures
SOURCES = ROOT / "plugins" / "local_soft_copy" / "cpu"
# -O1 takes a third of the time of -O3; the further options inline what is a single instruction.
OPTIONS = ["-std=c++17", "-O1", "-finline-small-functions", "-findirect-inlining", "-ffp-contract=fast", "-Wno-psabi"]


class KernelJob(NamedTuple):
    """One call of the op without a batch axis, as in cpu/__init__.py."""

    query: Features
    keys: Features
    values: np.ndarray
    attributes: Attributes
    references: Sequence[SearchWindow] | None = None


class KernelProgram:
    """Program that runs jobs with one of its kernels; `runner` is the emulator's command, if any."""

    def __init__(self, folder: Path, compiler: str, kernels: Mapping[str, Sequence[str]], runner: Sequence[str] = ()):
        self.folder, self.runner, self.program = folder, list(runner), folder / "run_jobs"
        options = [*OPTIONS, f"-I{SOURCES}", *(f"-DCORRFLOW_{name.upper()}=1" for name in kernels)]
        self.assembly = {name: folder / f"{name}.s" for name in ("portable", *kernels)}
        commands = [
            [compiler, *options, *kernels.get(name, ()), "-S", f"{SOURCES}/kernel_{name}.cpp", "-o", str(path)]
            for name, path in self.assembly.items()
        ]
        # Two at a time are compiled together.
        for first in range(0, len(commands), 2):
            for process in [subprocess.Popen(command) for command in commands[first : first + 2]]:
                assert process.wait() == 0, process.args
        sources = [f"{SOURCES}/kernels.cpp", f"{NATIVE}/run_jobs.cpp"]
        linked: list[str] = []
        for name, path in self.assembly.items():
            linked.append(f"{folder}/{name}.o")
            subprocess.run([compiler, *kernels.get(name, ()), "-c", str(path), "-o", linked[-1]], check=True)
        subprocess.run([compiler, *options, "-static", *sources, *linked, "-o", str(self.program)], check=True)

    def kernels(self, *emulator_options: str) -> list[str]:
        """Return the names of the kernels that the (emulated) processor can run."""
        command = [*self.runner, *emulator_options, str(self.program)]
        return subprocess.run(command, capture_output=True, text=True).stdout.split()

    def run(self, kernel: str, jobs: Sequence[KernelJob]) -> list[np.ndarray]:
        """Return the results [N, H, W] of all jobs."""
        files: list[str] = []
        for i, job in enumerate(jobs):
            write_job(self.folder / f"{i}.job", job)
            files += [f"{self.folder}/{i}.job", f"{self.folder}/{i}.result"]
        done = subprocess.run([*self.runner, str(self.program), kernel, "1", *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [
            np.fromfile(path, np.float32).reshape(job.values.shape[1:])
            for path, job in zip(files[1::2], jobs, strict=True)
        ]


def write_job(path: Path, job: KernelJob) -> None:
    """Write the file that run_jobs.cpp reads."""
    query, keys, values, attributes, references = job
    if isinstance(query, PackedFeatures) and isinstance(keys, PackedFeatures):
        dtype = {16: 2, 8: 3}[keys.bits]
        products = [float(query.scales) * float(scale) for scale in keys.scales]
        query, keys = query.words, keys.words
    else:
        assert isinstance(query, np.ndarray) and isinstance(keys, np.ndarray)
        dtype = 1 if keys.dtype == np.float16 else 0
        products = [1.0] * len(keys)
    K, depth, H, W = keys.shape
    windows = used_references(references, K)
    header = [dtype, K, depth, values.shape[1], H, W, min(attributes.top_k, len(windows) * H * W), len(windows)]
    with path.open("wb") as file:
        file.write(np.array(header, np.int32).tobytes())
        for each in windows:
            row = [each.frame, *attributes.window(each.window), each.dy, each.dx]
            file.write(np.array(row, np.int32).tobytes())
            file.write(np.float32(1 / (products[each.frame] * attributes.temperature)).tobytes())
        for array in (query, keys, values):
            file.write(np.ascontiguousarray(array).tobytes())


def packed(integers: np.ndarray, bits: int) -> PackedFeatures:
    """Pack integers [..., C, H, W] without scaling."""
    share = 32 // bits
    padding = [(0, 0)] * (integers.ndim - 3) + [(0, -integers.shape[-3] % share), (0, 0), (0, 0)]
    numbers = np.pad(integers.astype(np.int64), padding) + (0 if bits == 16 else 128)
    parts = np.stack([numbers[..., i::share, :, :] % 2**bits << i * bits for i in range(share)])
    return PackedFeatures(parts.sum(0).astype(np.uint32).view(np.int32), np.ones(integers.shape[:-3], np.float32), bits)


# All edges of the op, one panel of several strips beside another, and windows with offsets.
KERNEL_CASES = CASES | {
    "two panels": Case(1, 2, 5, 2, 6, 75, Attributes((2, 3), (1, 2), top_k=3)),
    "two panels, all scores": Case(1, 1, 9, 3, 7, 70, Attributes((3,), (2,))),
    "offsets": Case(
        1, 2, 7, 5, 9, 40, Attributes((2, 1), (1, 3), top_k=4), (SearchWindow(0, 0, 3, -6), SearchWindow(1, 1, -2, 30))
    ),
}


@functools.cache
def oracle_jobs() -> tuple[list[KernelJob], list[np.ndarray]]:
    """Return jobs of all number types for each case, and the results of the oracle."""
    jobs: list[KernelJob] = []
    expected: list[np.ndarray] = []
    for seed, case in enumerate(KERNEL_CASES.values()):
        generator = np.random.default_rng(seed)
        query = generator.integers(-3, 4, (case.C, case.H, case.W)).astype(np.float32)
        keys = generator.integers(-3, 4, (case.K, case.C, case.H, case.W)).astype(np.float32)
        values = generator.random((case.K, case.N, case.H, case.W), np.float32)
        values[:, 0, :, : case.W // 2] = 0
        windows = [case.attributes.window(each.window) for each in case.windows]
        places = [(each.frame, each.dy, each.dx) for each in case.windows]
        tensors = (query[None], keys[None], values[None])
        copied = oracle(*tensors, windows, case.attributes.top_k, case.attributes.temperature, places)[0]
        of_case = (values, case.attributes, case.windows)
        jobs += [KernelJob(query, keys, *of_case), KernelJob(query, keys.astype(np.float16), *of_case)]
        jobs += [KernelJob(packed(query, bits), packed(keys, bits), *of_case) for bits in (16, 8)]
        expected += 4 * [copied]
    return jobs, expected


def assert_matches_the_oracle(program: KernelProgram, kernel: str) -> None:
    """Compare all number types on all cases with the oracle."""
    jobs, expected = oracle_jobs()
    for got, wanted in zip(program.run(kernel, jobs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
