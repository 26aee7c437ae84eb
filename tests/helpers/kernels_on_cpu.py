"""CUDA kernel sources compiled to programs for the CPU (tests/native), and a cuda.core whose launches run them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from corrflow.bench.op.cuda_kernel import CASES, DTYPES, INDEXED_CASES, planned
from corrflow.plugins.local_soft_copy.cuda.launch import Dtype, Launch
from corrflow.plugins.local_soft_copy.spec import SearchWindow
from corrflow.runtime.backends.cuda_resize import ENTRY_POINT as RESIZE
from corrflow.runtime.backends.cuda_resize import THREADS, blocks_for
from helpers.paths import NATIVE

COMPILER = os.environ.get("CXX", "g++")
OPTIONS = ["-std=c++17", "-O1", "-pipe", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing"]
# GCC cannot see that a window that is fetched ahead is one that exists; with the smallest windows it warns.
OPTIONS += ["-Wno-maybe-uninitialized"]
OPTIONS += [f"-I{NATIVE}"]
FORWARDS, BACKWARDS, SHUFFLED = 0, 1, 7  # orders of threads

Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


class OnCpu:
    """Compiler and runner of planned kernels on the CPU; each source is compiled once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, source: str, flags: tuple[str, ...] = ()) -> Path:
        program = self.folder / hashlib.sha256("\n".join((source, *flags)).encode()).hexdigest()[:16]
        if program.exists():
            return program
        kernel = program.with_suffix(".cu")
        kernel.write_text(source)
        threads = self.folder / f"threads{'-'.join(('', *flags)).replace('/', '')}.o"
        if not threads.exists():  # shared by all kernels, and the slowest to compile
            self.compile("-c", str(NATIVE / "threads_on_cpu.cpp"), "-o", str(threads), *flags)
        definition = f'-DKERNEL="{kernel}"'
        self.compile(definition, *flags, str(NATIVE / "kernel_on_cpu.cpp"), str(threads), "-o", str(program))
        return program

    def compile(self, *words: str) -> None:
        done = subprocess.run([COMPILER, *OPTIONS, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    def run(
        self,
        launch: Launch,
        tensors: tuple[np.ndarray, ...],
        references: Sequence[SearchWindow] | np.ndarray,
        order: int = FORWARDS,
        flags: tuple[str, ...] = (),
    ) -> np.ndarray:
        """Return [B, N, H, W] in the dtype of query, keys and values. Raises RuntimeError with the output of a failed
        program.
        """
        query, keys, values = tensors
        work = self.folder / "tensors"
        work.mkdir(exist_ok=True)
        for name, tensor in zip(("query", "keys", "values"), tensors, strict=True):
            tensor.tofile(work / name)
        np.array(references, np.int32).tofile(work / "references")
        B, _, H, W = query.shape
        numbers = (order, B, H, W, keys.shape[1], *launch.grid, launch.block[0])
        program = self.build(launch.source, flags)
        done = subprocess.run([str(program), *map(str, numbers), str(work)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-3000:])
        return np.fromfile(work / "copied", query.dtype).reshape(B, values.shape[2], H, W)


def resize_on_cpu(folder: Path, source: str, sanitized: bool = False) -> Resize:
    """Compile a kernel's source to resize(frame, size) on the CPU; sanitizer errors are raised as RuntimeError."""
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all") if sanitized else ()
    kernel, program = folder / "resize.cu", folder / "resize"
    kernel.write_text(source)
    words = [f'-DKERNEL="{kernel}"', str(NATIVE / "resize_on_cpu.cpp"), "-o", str(program)]
    done = subprocess.run([COMPILER, *OPTIONS, *flags, *words], capture_output=True, text=True)
    if done.returncode and flags:
        pytest.skip(f"{COMPILER} has no such sanitizers here")
    assert done.returncode == 0, done.stderr

    def run(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        numbers = (*frame.shape[:2], *size, blocks_for(size), THREADS)
        done = subprocess.run([str(program), *map(str, numbers)], input=frame.tobytes(), capture_output=True)
        if done.returncode:
            raise RuntimeError(done.stderr.decode()[-3000:])
        return np.frombuffer(done.stdout, np.uint8).reshape(*size, 3)

    return run


def dtype_of(launch: Launch) -> Dtype:
    return next(dtype for dtype in DTYPES if f"#define CORRFLOW_{dtype.upper()} 1" in launch.source)


def core_on_cpu(fakes: ModuleType, cuda: Any, folder: Path) -> Any:
    """Make a cuda.core (fakes.py) that launches both kernels; the op only for the cases of bench/op/cuda_kernel.py.

    `launched` lists the names of the kernels that have run.
    """
    on_cpu = OnCpu(folder)
    resizes: list[Resize] = []
    launched: list[str] = []

    def run(source: str, name: str, config: Any, *arguments: int) -> None:
        launched.append(name)
        if name == RESIZE:
            frame, height, width, rows, columns, resized = arguments
            assert (config.grid, config.block) == ((blocks_for((rows, columns)), 1, 1), (THREADS, 1, 1))
            if not resizes:
                resizes.append(resize_on_cpu(folder, source))
            source_frame = fakes.view(cuda, frame, (height, width, 3), np.uint8)
            fakes.view(cuda, resized, (rows, columns, 3), np.uint8)[...] = resizes[0](source_frame, (rows, columns))
        else:
            copy(source, name, config, *arguments)

    def copy(source: str, name: str, config: Any, *arguments: int) -> None:
        query, keys, values, references, height, width, num_frames, num_windows, copied = arguments
        case, launch = next(
            (case, launch)
            for case in (CASES | INDEXED_CASES).values()
            for launch in (planned(case, dtype) for dtype in DTYPES)
            if (launch.source, launch.entry_point, launch.grid) == (source, name, config.grid)
            and (height, width, num_frames, num_windows) == (case.H, case.W, case.K, len(case.windows))
        )
        assert config.block == launch.block
        shapes = ((case.B, case.C, case.H, case.W), (case.B, case.K, case.C, case.H, case.W))
        shapes += ((case.B, case.K, case.N, case.H, case.W),)
        number = np.float32 if dtype_of(launch) == "float32" else np.uint16
        pointers = query, keys, values
        tensors = tuple(fakes.view(cuda, *each, number) for each in zip(pointers, shapes, strict=True))
        rows = fakes.view(cuda, references, (num_windows, 4), np.int32)
        result = on_cpu.run(launch, tensors, rows, SHUFFLED)
        fakes.view(cuda, copied, result.shape, number)[...] = result

    core = fakes.core(cuda, run)
    core.launched = launched
    return core
