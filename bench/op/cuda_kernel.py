"""corrflow-bench kernel: the CUDA kernel alone on this machine's GPU, compared with the CPU and timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.cuda.launch import Dtype, Launch, plan
from corrflow.plugins.local_soft_copy.spec import UNUSED, Attributes, SearchWindow, used_references
from corrflow.runtime.artifacts.artifact import REFERENCES
from corrflow.runtime.backends.cuda_device import CudaDevice, PinnedBuffer

DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
# Rounding of the result; bfloat16 has half a step of 2^-9 for values up to one.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 4e-3}
# If the last of the best scores nearly equals the next score, the last bit of a sum decides between them.
MAX_SHARE_BEYOND = 1e-3
_WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """Sizes as in spec.py; references: rows of the op's input, or empty to search each frame once."""

    B: int
    K: int
    C: int
    N: int
    H: int
    W: int
    attributes: Attributes
    references: tuple[SearchWindow, ...] = ()

    @property
    def windows(self) -> tuple[SearchWindow, ...]:
        """Rows of `references` for the kernel, which always takes this input."""
        return self.references or used_references(None, self.K)


CASES = {
    "one reference": Case(1, 1, 8, 2, 12, 17, Attributes((3,))),
    "batch and references": Case(2, 3, 8, 3, 9, 11, Attributes((2,), temperature=0.5)),
    "top_k": Case(2, 2, 8, 3, 10, 9, Attributes((2,), top_k=5)),
    "top_k beyond the window": Case(1, 1, 4, 2, 5, 4, Attributes((1,), top_k=100)),
    "longest list": Case(1, 2, 4, 2, 9, 9, Attributes((3,), top_k=32)),
    "radius beyond the frame": Case(1, 2, 4, 2, 5, 4, Attributes((9,), top_k=10)),
    "radius zero": Case(1, 1, 4, 1, 3, 3, Attributes((0,))),
    "one cell": Case(1, 1, 4, 1, 1, 1, Attributes((2,), top_k=3)),
    "one row": Case(1, 1, 4, 2, 1, 19, Attributes((2,))),
    "dilation": Case(1, 2, 8, 2, 13, 8, Attributes((2,), (3,))),
    "dilation beyond the frame": Case(1, 1, 4, 2, 4, 5, Attributes((2,), (7,))),
    "several chunks of columns": Case(1, 1, 5, 2, 3, 70, Attributes((12,), (2,), top_k=6)),
    "window per reference": Case(1, 3, 8, 2, 17, 11, Attributes((3, 1, 2), (1, 2, 4))),
    "window per reference, top_k": Case(2, 2, 8, 2, 9, 11, Attributes((3, 1), (1, 3), top_k=4)),
    "last shape repeated": Case(1, 4, 8, 2, 9, 11, Attributes((3, 1), (1, 2))),
    "last shape repeated, top_k": Case(1, 3, 8, 2, 9, 11, Attributes((1,), (3, 1), top_k=4)),
    "more windows than references": Case(1, 1, 8, 2, 9, 11, Attributes((1, 4), (2, 1), top_k=4)),
    "channels and windows of the bundled model": Case(1, 3, 155, 2, 9, 18, Attributes((12,), (1, 2), 5, 4.0)),
    "several slices of channels": Case(1, 1, 128, 2, 9, 17, Attributes((12,), temperature=8.0)),
    "many classes": Case(1, 1, 8, 21, 8, 16, Attributes((2,))),
    "classes of several blocks": Case(2, 1, 8, 35, 5, 6, Attributes((1,))),
    "classes of several blocks, top_k": Case(2, 1, 8, 35, 5, 6, Attributes((1,), top_k=4)),
}
"""Small cases at all edges of the definition; tests run the kernel's source on the CPU for each."""

_OFFSETS = (SearchWindow(1, 1, -2, 3), UNUSED, SearchWindow(0), SearchWindow(1, 0, 5, -4), SearchWindow(1, 1, 0, 40))
INDEXED_CASES = {
    "indexed": Case(2, 3, 8, 3, 9, 19, Attributes((2, 3), (1, 2)), _OFFSETS),
    "indexed, top_k": Case(2, 3, 8, 3, 9, 19, Attributes((2, 3), (1, 2), 6), _OFFSETS),
    "indexed, outside the frame for some queries": Case(
        1, 1, 8, 2, 11, 20, Attributes((1,)), (SearchWindow(0, 0, 7, -12),)
    ),
    "indexed, outside the frame for some, top_k": Case(
        1, 1, 8, 2, 11, 20, Attributes((1,), top_k=4), (SearchWindow(0, 0, -7, 12),)
    ),
    "indexed, channels and windows of the bundled model": Case(
        1,
        2,
        155,
        2,
        9,
        18,
        Attributes((8, 12), (1, 2), 5, 4.0),
        (SearchWindow(0, 0), SearchWindow(0, 0, 3, 9), _OFFSETS[0]),
    ),
    "indexed, classes of several blocks, top_k": Case(2, 3, 8, 35, 5, 6, Attributes((1,), top_k=4), _OFFSETS),
}
"""Small cases with offsets of windows, and with frames that are searched several times or never."""

_MOTION = (
    *(SearchWindow(0, 0, 12 * k, 30 * k) for k in range(4)),
    *(SearchWindow(k, 1, k, 2 * k) for k in range(1, 6)),
)
TIMED = {
    "480 rows, bundled model": Case(1, 6, 155, 8, 120, 214, Attributes((12,), (1, 2), 5, 0.07)),
    "480 rows, windows of four moving objects": Case(
        1, 6, 155, 8, 120, 214, Attributes((8, 12), (1, 2), 5, 0.07), _MOTION
    ),
    "480 rows, all scores": Case(1, 6, 155, 8, 120, 214, Attributes((12,), (1, 2), 0, 0.07)),
}


@dataclass(frozen=True)
class Agreement:
    """Difference from the CPU: the largest one, and the share of cells beyond the tolerance of the dtype."""

    largest: float
    beyond: float

    @property
    def holds(self) -> bool:
        return self.beyond <= MAX_SHARE_BEYOND


class OnGpu:
    """Launcher of planned kernels. Raises InputError without GPU or driver, and at the first launch without NVRTC."""

    def __init__(self, device: CudaDevice | None = None) -> None:
        self.device = device or CudaDevice()

    def prepare(
        self, case: Case, dtype: Dtype, tensors: tuple[np.ndarray, ...]
    ) -> tuple[Callable[[], None], PinnedBuffer]:
        """Compile the kernel and upload its inputs; return a launch function, and the buffer of the result."""
        launch = planned(case, dtype)
        kernel = self.device.kernel(launch.source, launch.entry_point)
        inputs = [*(stored(tensor, dtype) for tensor in tensors), np.array(case.windows, np.int32)]
        uploaded = [self._uploaded(array) for array in inputs]
        copied = self._uploaded(stored(np.full((case.B, case.N, case.H, case.W), np.nan, np.float32), dtype))

        def run() -> None:  # also keeps the buffers allocated
            buffers = (each.buffer for each in uploaded)
            sizes = case.H, case.W, case.K, len(case.windows)
            kernel(launch.grid, launch.block, *buffers, *sizes, copied.buffer)

        return run, copied

    def copy(self, case: Case, dtype: Dtype, tensors: tuple[np.ndarray, ...]) -> np.ndarray:
        """Run the kernel: query, keys and values in float32 -> [B, N, H, W] float32."""
        run, copied = self.prepare(case, dtype, tensors)
        run()
        self.device.download(copied)
        self.device.wait()
        return numbers(copied.host, dtype)

    def milliseconds(self, case: Case, dtype: Dtype, tensors: tuple[np.ndarray, ...], runs: int) -> float:
        """Return the mean time of `runs` consecutive launches."""
        run, _ = self.prepare(case, dtype, tensors)
        for _ in range(_WARM_UP):
            run()
        self.device.wait()
        start = time.perf_counter()
        for _ in range(runs):
            run()
        self.device.wait()
        return (time.perf_counter() - start) / runs * 1e3

    def _uploaded(self, array: np.ndarray) -> PinnedBuffer:
        shared = self.device.share(array.shape, array.dtype)
        shared.host[...] = array
        self.device.upload(shared)
        return shared


def planned(case: Case, dtype: Dtype) -> Launch:
    """Plan the kernel for a case."""
    return plan(
        channels=case.C,
        classes=case.N,
        num_windows=len(case.windows),
        height=case.H,
        width=case.W,
        batch=case.B,
        attributes=case.attributes,
        dtype=dtype,
    )


def tensors_of(case: Case, dtype: Dtype, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make query, keys and values in float32, rounded to the dtype. ties: features of -1, 0 and 1 give equal scores."""
    generator = np.random.default_rng(0)
    shapes = [(case.B, case.C, case.H, case.W), (case.B, case.K, case.C, case.H, case.W)]
    arrays: list[np.ndarray] = []
    for shape in shapes:
        if ties:
            arrays.append(generator.integers(-1, 2, shape).astype(np.float32))
        else:
            features = generator.standard_normal(shape, np.float32)
            arrays.append(features / np.linalg.norm(features, axis=-3, keepdims=True))
    arrays.append(generator.random((case.B, case.K, case.N, case.H, case.W), np.float32))
    query, keys, values = (numbers(stored(array, dtype), dtype) for array in arrays)
    return query, keys, values


def compare(gpu: OnGpu, case: Case, dtype: Dtype, ties: bool) -> Agreement:
    """Compare the GPU with the CPU (in float32) on the same numbers."""
    tensors = tensors_of(case, dtype, ties)
    got, expected = gpu.copy(case, dtype, tensors), on_cpu(case, tensors)
    difference = np.nan_to_num(np.abs(got - expected), nan=np.inf)
    return Agreement(float(difference.max()), float((difference.max(1) > TOLERANCE[dtype]).mean()))


def on_cpu(case: Case, tensors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Compute a case with the fused kernel, or with the ONNX function if the kernel was not built."""
    query, keys, values = tensors
    if not cpu.unavailable():
        return cpu.local_soft_copy(query, keys, values, case.attributes, references=case.windows)
    import onnxruntime

    from corrflow.export.propagate_graph import propagate_model

    model = propagate_model(case.attributes, case.C, indexed_references=True).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    references = np.array(case.windows, np.int32)
    inputs = ({"query": query[[b]], "keys": keys[[b]], "values": values[[b]]} for b in range(case.B))
    return np.concatenate([np.asarray(session.run(None, each | {REFERENCES: references})[0]) for each in inputs])


def stored(array: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Convert float32 to the dtype; bfloat16 is returned as its 16 bits, rounded to nearest even."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def numbers(array: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Convert an array of the dtype to float32."""
    if dtype != "bfloat16":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << 16).view(np.float32)
