"""Roofline of the CUDA kernel: work per frame, and a lower bound of the time on several GPUs.

    python -m corrflow.bench.op.roofline

The work is counted from the tiles of the kernel, not measured. docs/cuda.md has the assumptions and a measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from corrflow.plugins.local_soft_copy.cuda.launch import SIDE, WARP, Dtype, plan
from corrflow.plugins.local_soft_copy.spec import Attributes

# Instructions of a warp: products counted in the machine code of sm_87, the others in the source. A load is one pair of
# 16-bit keys.
LOAD, SIMILARITY, GROUP, VISIT = 10, 7, 40, 8


@dataclass(frozen=True)
class Device:
    """Data-sheet figures of a GPU; matrix_per_clock: operations of a multiprocessor, two per multiply-add."""

    name: str
    multiprocessors: int
    gigahertz: float
    gigabytes_per_second: float
    matrix_per_clock: int


DEVICES = (
    Device("Jetson AGX Orin 64 GB", 16, 1.3, 204.8, 1024),
    Device("GeForce RTX 4070", 46, 2.475, 504.2, 512),
    Device("H200", 132, 1.98, 4800, 4096),
)
FLOAT32_PER_CLOCK = 256  # operations of one multiprocessor in single precision
L2_BYTES_PER_CLOCK, SHARED_BYTES_PER_CLOCK, ISSUED_PER_CLOCK = 32, 128, 4


@dataclass(frozen=True)
class Work:
    """Work per frame: bytes of device memory, L2 and shared memory, arithmetic operations, warp instructions."""

    memory: float
    cached: float
    shared: float
    operations: float
    instructions: float
    blocks: int


@dataclass(frozen=True)
class Workload:
    """Sizes and settings of a search; default: 480 rows of 16:9 video with the bundled model.

    The default radius of recent frames, 12, is that of the kernel's run on a GPU; the model's own is 9 since then.
    """

    height: int = 120
    width: int = 214
    channels: int = 155
    classes: int = 8
    num_windows: int = 6
    radius: tuple[int, ...] = (8, 12)
    dilation: tuple[int, ...] = (1, 2)
    top_k: int = 5

    @property
    def attributes(self) -> Attributes:
        return Attributes(self.radius, self.dilation, self.top_k, 0.07)


def work(workload: Workload, dtype: Dtype) -> Work:
    """Count the work of all blocks, clipped at the borders of the frame as in the kernel."""
    sizes = {name: getattr(workload, name) for name in ("height", "width", "channels", "classes", "num_windows")}
    launch = plan(**sizes, attributes=workload.attributes, dtype=dtype)
    defined = dict(line.split()[1:3] for line in launch.source.splitlines() if line.startswith("#define CORRFLOW_"))
    size, groups, top_k = (4 if dtype == "float32" else 2), int(defined["CORRFLOW_GROUPS"]), workload.top_k
    spread, pair = int(defined["CORRFLOW_SPREAD"]), 4 // size
    rows, steps, chunk = launch.tile[1], math.ceil(workload.channels / SIDE), groups * SIDE
    shared_classes = 0 if top_k else workload.classes
    # The columns of every window are visited as often as the densest window needs.
    turns = math.ceil(SIDE / (2 * min(dilation for _, dilation in workload.attributes.windows(workload.num_windows))))
    cached = shared = similarities = folded = loads = visits = scored = 0.0
    for radius, dilation in workload.attributes.windows(workload.num_windows):
        reach = radius * dilation
        tiles = range(launch.grid[1])
        key_rows = sum(_key_rows(workload.height, rows, spread, reach, dilation, tile) for tile in tiles)
        lefts = np.arange(0, workload.width, SIDE)
        across = np.minimum(lefts + SIDE + reach, workload.width) - np.maximum(lefts - reach, 0)
        chunks = np.ceil(across / chunk).sum()
        distance = np.subtract.outer(np.arange(workload.height), np.arange(workload.height))
        searched = np.count_nonzero((np.abs(distance) <= reach) & (distance % dilation == 0))  # query rows by key rows
        cached += key_rows * across.sum() * (workload.channels + shared_classes) * size
        loads += key_rows * chunks * chunk * (steps * SIDE + shared_classes)
        similarities += searched * chunks * groups * steps
        folded += searched * np.ceil(across / SIDE).sum()
        visits += searched * np.ceil(across / SIDE).sum() * turns
        scored += searched * np.ceil(across / SIDE).sum() * math.ceil(SIDE / (2 * dilation))
    lanes = np.arange(1, int(scored / (math.ceil(workload.width / SIDE) * workload.height)) + 1)
    inserts = (1 - (1 - np.minimum(1, top_k / lanes)) ** WARP).sum() if top_k else 0  # in any lane of the warp
    per_visit = VISIT + (0 if top_k else 4 + 2 * workload.classes)
    warps = math.ceil(workload.width / SIDE) * workload.height
    instructions = loads / pair / WARP * LOAD + similarities * SIMILARITY + folded * GROUP + visits * per_visit
    instructions += warps * inserts * 5 * top_k
    fragments = similarities * (1 + 1 / groups)  # the queries are loaded once for all groups of keys
    shared += loads * size + fragments * SIDE * SIDE * size + folded * SIDE * SIDE * 4
    shared += visits * WARP * 4 * (1 if top_k else 1 + workload.classes)
    channels = workload.channels + workload.classes
    memory = workload.height * workload.width * size * channels * (1 + workload.num_windows)
    return Work(
        memory=float(memory),
        cached=float(cached),
        shared=float(shared),
        operations=float(similarities * 2 * SIDE**3),
        instructions=float(instructions),
        blocks=math.prod(launch.grid),
    )


def _key_rows(height: int, rows: int, spread: int, reach: int, dilation: int, block: int) -> int:
    """Count the rows of keys that a block loads, with the row distance of local_soft_copy.cu."""
    group = block // spread * spread
    apart = min(spread, math.ceil(height / rows) - group)
    first, step = group * rows + block - group, math.gcd(dilation, apart)
    top = first - reach if first >= reach else (first - reach) % step
    return len(range(top, min(first + (rows - 1) * apart + 1 + reach, height), step))


def milliseconds(counted: Work, device: Device, dtype: Dtype) -> dict[str, float]:
    """Return the least time of each resource, and "bound": the largest, with uneven numbers of blocks included."""
    clocks = device.multiprocessors * device.gigahertz * 1e6  # in a millisecond
    per_clock = FLOAT32_PER_CLOCK if dtype == "float32" else device.matrix_per_clock
    times = {
        "memory": counted.memory / (device.gigabytes_per_second * 1e6),
        "L2": counted.cached / (clocks * L2_BYTES_PER_CLOCK),
        "shared": counted.shared / (clocks * SHARED_BYTES_PER_CLOCK),
        "matrix": counted.operations / (clocks * per_clock),
        "instructions": counted.instructions / (clocks * ISSUED_PER_CLOCK),
    }
    share = counted.blocks / device.multiprocessors
    return {**times, "bound": max(times.values()) * math.ceil(share) / share}


KERNELS: tuple[tuple[str, int], ...] = (("top 5", 5), ("all scores", 0))


def work_table() -> str:
    """Return a Markdown table of the work per frame in float16."""
    lines = [
        "| kernel | device memory | L2 | shared memory | matrix operations | warp instructions | blocks |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, top_k in KERNELS:
        counted = work(Workload(top_k=top_k), "float16")
        lines.append(
            f"| {name} | {counted.memory / 1e6:.0f} MB | {counted.cached / 1e6:.0f} MB | {counted.shared / 1e9:.1f} GB"
            f" | {counted.operations / 1e9:.0f} G | {counted.instructions / 1e6:.0f} M | {counted.blocks} |"
        )
    return "\n".join(lines)


def table() -> str:
    """Return a Markdown table of the least times in milliseconds."""
    lines = [
        "| GPU | kernel | memory | L2 | shared | matrix | instructions | bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for device in DEVICES:
        for name, top_k in KERNELS:
            times = milliseconds(work(Workload(top_k=top_k), "float16"), device, "float16")
            lines.append(f"| {device.name} | {name} | {' | '.join(f'{time:.2f}' for time in times.values())} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{work_table()}\n\n{table()}")
