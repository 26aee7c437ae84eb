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

# Instructions of a warp. Counted in the machine code of sm_87: a product of 16 queries, keys and channels; a score that
# is compared; an insertion, for each score of the list. Counted in the source: a pair of 16-bit keys that is moved to
# shared memory; what a row of keys needs besides.
SIMILARITY, VISIT, INSERTION, LOAD, ROW = 7, 6, 4, 10, 100
SCORES = 8  # of 16 queries with 16 keys that a lane holds: two queries with four keys each


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
    cached = shared = similarities = rows_of_keys = loads = scored = 0.0
    for radius, dilation in workload.attributes.windows(workload.num_windows):
        reach = radius * dilation
        tiles = [range(count) for count in launch.grid[:2]]
        key_rows = sum(len(_keys(workload.height, rows, spread, reach, dilation, tile, tiles[1])) for tile in tiles[1])
        columns = [_keys(workload.width, SIDE, spread, reach, dilation, tile, tiles[0]) for tile in tiles[0]]
        chunks = sum(math.ceil(len(each) / chunk) for each in columns)
        distance = np.subtract.outer(np.arange(workload.height), np.arange(workload.height))
        searched = np.count_nonzero((np.abs(distance) <= reach) & (distance % dilation == 0))  # query rows by key rows
        # Where every second column is searched, L2 gives the columns between as well.
        touched = sum(len(each) * each.step for each in columns)
        cached += key_rows * touched * (workload.channels + shared_classes) * size
        loads += key_rows * chunks * chunk * (steps * SIDE + shared_classes)
        similarities += searched * chunks * groups * steps
        rows_of_keys += searched * chunks
        scored += (2 * radius + 1) ** 2
    visits = rows_of_keys * groups * SCORES
    warps = math.ceil(workload.width / SIDE) * workload.height
    seen = np.arange(1, math.ceil(scored / 4) + 1)  # by one of the four lanes of a query
    inserts = 2 * (1 - (1 - np.minimum(1, top_k / seen)) ** WARP).sum() if top_k else 0  # in any lane of the warp
    # All scores: a weight, its sum, and for two queries one load and two sums of each class.
    per_visit = VISIT + (0 if top_k else 6 + 1.5 * workload.classes)
    instructions = loads / pair / WARP * LOAD + similarities * SIMILARITY + rows_of_keys * ROW + visits * per_visit
    instructions += warps * inserts * INSERTION * top_k
    fragments = similarities * (1 + 1 / groups)  # the queries are loaded once for all groups of keys
    shared += loads * size + fragments * SIDE * SIDE * size + visits / 2 * shared_classes * WARP * 4
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


def _keys(length: int, size: int, spread: int, reach: int, dilation: int, block: int, blocks: range) -> range:
    """Return the rows or columns of keys that a block loads, as in local_soft_copy.cu.

    length: of the frame; size: rows or columns of a tile; blocks: all blocks in this direction
    """
    group = block // spread * spread
    apart = min(spread, len(blocks) - group)
    first, step = group * size + block - group, math.gcd(dilation, apart)
    start = first - reach if first >= reach else (first - reach) % step
    return range(start, min(first + (size - 1) * apart + 1 + reach, length), step)


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
