"""corrflow-bench kernel: the CUDA kernel by itself on the GPU that is here, held against the CPU, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from corrflow.plugins.local_soft_copy import cpu
from corrflow.plugins.local_soft_copy.cuda.launch import Launch, Storage, plan
from corrflow.plugins.local_soft_copy.spec import UNUSED, Attributes, SearchWindow, named_references
from corrflow.runtime.artifacts.artifact import REFERENCES
from corrflow.runtime.backends.cuda_device import CudaDevice, PinnedBuffer

STORAGES: tuple[Storage, ...] = ("float32", "float16", "bfloat16")
# What the op promises; bfloat16 has half a step of 2^-9 for values up to one.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 4e-3}
# Where the last of the best scores is as good as the next one, the last bit of a sum decides which of them is kept.
MOST_BEYOND = 1e-3
_WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """Sizes as spec.py names them; named: the rows of `references`, or none where each picture is searched once."""

    B: int
    K: int
    C: int
    N: int
    H: int
    W: int
    attributes: Attributes
    named: tuple[SearchWindow, ...] = ()

    @property
    def rows(self) -> tuple[SearchWindow, ...]:
        """What the kernel is given, which has them named always."""
        return self.named or named_references(None, self.K)


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
    "last window for all further references": Case(1, 4, 8, 2, 9, 11, Attributes((3, 1), (1, 2))),
    "last window for all further references, top_k": Case(1, 3, 8, 2, 9, 11, Attributes((1,), (3, 1), top_k=4)),
    "more windows than references": Case(1, 1, 8, 2, 9, 11, Attributes((1, 4), (2, 1), top_k=4)),
    "channels and windows of the bundled model": Case(1, 3, 155, 2, 9, 18, Attributes((12,), (1, 2), 5, 4.0)),
    "several slices of channels": Case(1, 1, 128, 2, 9, 17, Attributes((12,), temperature=8.0)),
    "many classes": Case(1, 1, 8, 21, 8, 16, Attributes((2,))),
    "classes of several blocks": Case(2, 1, 8, 35, 5, 6, Attributes((1,))),
    "classes of several blocks, top_k": Case(2, 1, 8, 35, 5, 6, Attributes((1,), top_k=4)),
}
"""Small ones at every edge of the definition; tests run the kernel's source on the CPU in each of them."""

_MOVED = (SearchWindow(1, 1, -2, 3), UNUSED, SearchWindow(0), SearchWindow(1, 0, 5, -4), SearchWindow(1, 1, 0, 40))
NAMED_CASES = {
    "named": Case(2, 3, 8, 3, 9, 19, Attributes((2, 3), (1, 2)), _MOVED),
    "named, top_k": Case(2, 3, 8, 3, 9, 19, Attributes((2, 3), (1, 2), 6), _MOVED),
    "named, beyond the frame for some queries": Case(
        1, 1, 8, 2, 11, 20, Attributes((1,)), (SearchWindow(0, 0, 7, -12),)
    ),
    "named, beyond it for some, top_k": Case(
        1, 1, 8, 2, 11, 20, Attributes((1,), top_k=4), (SearchWindow(0, 0, -7, 12),)
    ),
    "named, channels and windows of the bundled model": Case(
        1,
        2,
        155,
        2,
        9,
        18,
        Attributes((8, 12), (1, 2), 5, 4.0),
        (SearchWindow(0, 0), SearchWindow(0, 0, 3, 9), _MOVED[0]),
    ),
    "named, classes of several blocks, top_k": Case(2, 3, 8, 35, 5, 6, Attributes((1,), top_k=4), _MOVED),
}
"""The same with windows that are moved and pictures that are searched several times or never."""

_FOLLOWED = (
    *(SearchWindow(0, 0, 12 * k, 30 * k) for k in range(4)),
    *(SearchWindow(k, 1, k, 2 * k) for k in range(1, 6)),
)
TIMED = {
    "480 rows, the bundled model": Case(1, 6, 155, 8, 120, 214, Attributes((12,), (1, 2), 5, 0.07)),
    "480 rows, windows that follow four objects": Case(
        1, 6, 155, 8, 120, 214, Attributes((8, 12), (1, 2), 5, 0.07), _FOLLOWED
    ),
    "480 rows, all scores": Case(1, 6, 155, 8, 120, 214, Attributes((12,), (1, 2), 0, 0.07)),
}


@dataclass(frozen=True)
class Agreement:
    """largest: difference from the CPU; beyond: share of the cells where it is more than the storage's tolerance"""

    largest: float
    beyond: float

    @property
    def holds(self) -> bool:
        return self.beyond <= MOST_BEYOND


class OnGpu:
    """Launches planned kernels; raises InputError where GPU or driver are missing, and at the first where NVRTC is."""

    def __init__(self, device: CudaDevice | None = None) -> None:
        self.device = device or CudaDevice()

    def prepare(
        self, case: Case, storage: Storage, tensors: tuple[np.ndarray, ...]
    ) -> tuple[Callable[[], None], PinnedBuffer]:
        """Compile, and upload query, keys and values; returns what launches the kernel, and where its result is."""
        launch = planned(case, storage)
        kernel = self.device.kernel(launch.source, launch.entry_point)
        inputs = [*(stored(tensor, storage) for tensor in tensors), np.array(case.rows, np.int32)]
        uploaded = [self._uploaded(array) for array in inputs]
        copied = self._uploaded(stored(np.full((case.B, case.N, case.H, case.W), np.nan, np.float32), storage))

        def go() -> None:  # which also keeps all of it allocated
            buffers = (one.buffer for one in uploaded)
            sizes = case.H, case.W, case.K, len(case.rows)
            kernel(launch.grid, launch.block, *buffers, *sizes, copied.buffer)

        return go, copied

    def copy(self, case: Case, storage: Storage, tensors: tuple[np.ndarray, ...]) -> np.ndarray:
        """query, keys and values in float32 -> copied [B, N, H, W] float32."""
        go, copied = self.prepare(case, storage, tensors)
        go()
        self.device.download(copied)
        self.device.wait()
        return numbers(copied.host, storage)

    def milliseconds(self, case: Case, storage: Storage, tensors: tuple[np.ndarray, ...], runs: int) -> float:
        """Mean of that many launches in a row."""
        go, _ = self.prepare(case, storage, tensors)
        for _ in range(_WARM_UP):
            go()
        self.device.wait()
        start = time.perf_counter()
        for _ in range(runs):
            go()
        self.device.wait()
        return (time.perf_counter() - start) / runs * 1e3

    def _uploaded(self, array: np.ndarray) -> PinnedBuffer:
        shared = self.device.share(array.shape, array.dtype)
        shared.host[...] = array
        self.device.upload(shared)
        return shared


def planned(case: Case, storage: Storage) -> Launch:
    return plan(
        channels=case.C,
        classes=case.N,
        references=len(case.rows),
        height=case.H,
        width=case.W,
        batch=case.B,
        attributes=case.attributes,
        storage=storage,
    )


def tensors_of(case: Case, storage: Storage, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """query, keys and values in float32, of numbers that the storage has; features of -1, 0 and 1 make exact ties."""
    generator = np.random.default_rng(0)
    shapes = [(case.B, case.C, case.H, case.W), (case.B, case.K, case.C, case.H, case.W)]
    made: list[np.ndarray] = []
    for shape in shapes:
        if ties:
            made.append(generator.integers(-1, 2, shape).astype(np.float32))
        else:
            features = generator.standard_normal(shape, np.float32)
            made.append(features / np.linalg.norm(features, axis=-3, keepdims=True))
    made.append(generator.random((case.B, case.K, case.N, case.H, case.W), np.float32))
    query, keys, values = (numbers(stored(array, storage), storage) for array in made)
    return query, keys, values


def compare(gpu: OnGpu, case: Case, storage: Storage, ties: bool) -> Agreement:
    """The GPU against the CPU, in float32 there, on the same numbers."""
    tensors = tensors_of(case, storage, ties)
    got, expected = gpu.copy(case, storage, tensors), on_cpu(case, tensors)
    apart = np.nan_to_num(np.abs(got - expected), nan=np.inf)
    return Agreement(float(apart.max()), float((apart.max(1) > TOLERANCE[storage]).mean()))


def on_cpu(case: Case, tensors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """The fused kernel where it is built, the ONNX function otherwise."""
    query, keys, values = tensors
    if not cpu.unavailable():
        return cpu.local_soft_copy(query, keys, values, case.attributes, references=case.rows)
    import onnxruntime

    from corrflow.export.propagate_graph import propagate_model

    model = propagate_model(case.attributes, case.C, named=True).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = np.array(case.rows, np.int32)
    inputs = ({"query": query[[b]], "keys": keys[[b]], "values": values[[b]]} for b in range(case.B))
    return np.concatenate([np.asarray(session.run(None, one | {REFERENCES: rows})[0]) for one in inputs])


def stored(array: np.ndarray, storage: Storage) -> np.ndarray:
    """float32 as the kernel reads it; bfloat16 as its 16 bits, rounded to nearest even."""
    if storage != "bfloat16":
        return array.astype(storage)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def numbers(array: np.ndarray, storage: Storage) -> np.ndarray:
    """The other way round."""
    if storage != "bfloat16":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << 16).view(np.float32)
