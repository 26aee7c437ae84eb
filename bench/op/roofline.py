"""Roofline of the CUDA kernel: the work of a frame, and the least time that a GPU needs for it.

Run it with python -m corrflow.bench.op.roofline.

Counted from the kernel's own tiles, not measured. docs/cuda.md says what is assumed, and what one GPU took.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from corrflow.plugins.local_soft_copy.cuda.launch import SIDE, WARP, Storage, plan
from corrflow.plugins.local_soft_copy.spec import Attributes

# Instructions of a warp, read off the source; a load is of one pair of keys in 16 bits.
LOAD, PRODUCT, GROUP, VISIT = 10, 12, 40, 8


@dataclass(frozen=True)
class Device:
    """Data-sheet figures; per_clock: matrix operations of one multiprocessor, each multiply-add being two."""

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
PLAIN_PER_CLOCK = 256  # single precision, of one multiprocessor
L2_BYTES_PER_CLOCK, SHARED_BYTES_PER_CLOCK, ISSUED_PER_CLOCK = 32, 128, 4


@dataclass(frozen=True)
class Work:
    """Of a whole frame: bytes of device memory, L2 and shared memory, multiply-adds times two, warp instructions."""

    memory: float
    cached: float
    shared: float
    operations: float
    instructions: float
    blocks: int


@dataclass(frozen=True)
class Frame:
    """What is searched; as it stands, 480 rows of video at 16:9 with the bundled model's settings."""

    height: int = 120
    width: int = 214
    channels: int = 155
    classes: int = 8
    references: int = 6
    radius: tuple[int, ...] = (8, 12)
    dilation: tuple[int, ...] = (1, 2)
    top_k: int = 5

    @property
    def attributes(self) -> Attributes:
        return Attributes(self.radius, self.dilation, self.top_k, 0.07)


def work(frame: Frame, storage: Storage) -> Work:
    """Counts what every block does, clipped at the borders of the frame as the kernel does it."""
    sizes = {name: getattr(frame, name) for name in ("height", "width", "channels", "classes", "references")}
    launch = plan(**sizes, attributes=frame.attributes, storage=storage)
    defined = dict(line.split()[1:3] for line in launch.source.splitlines() if line.startswith("#define CORRFLOW_"))
    size, groups, kept = (4 if storage == "float32" else 2), int(defined["CORRFLOW_GROUPS"]), frame.top_k
    spread, pair = int(defined["CORRFLOW_SPREAD"]), 4 // size
    rows, steps, chunk = launch.tile[1], math.ceil(frame.channels / SIDE), groups * SIDE
    shared_classes = 0 if kept else frame.classes
    # Every reference's columns are visited as often as the densest window needs it.
    turns = math.ceil(SIDE / (2 * min(dilation for _, dilation in frame.attributes.windows(frame.references))))
    cached = shared = products = folded = loads = visits = scored = 0.0
    for radius, dilation in frame.attributes.windows(frame.references):
        reach = radius * dilation
        seen = sum(_rows_seen(frame.height, rows, spread, reach, dilation, block) for block in range(launch.grid[1]))
        lefts = np.arange(0, frame.width, SIDE)
        across = np.minimum(lefts + SIDE + reach, frame.width) - np.maximum(lefts - reach, 0)
        chunks = np.ceil(across / chunk).sum()
        apart = np.subtract.outer(np.arange(frame.height), np.arange(frame.height))
        searched = np.count_nonzero((np.abs(apart) <= reach) & (apart % dilation == 0))  # query rows by key rows
        cached += seen * across.sum() * (frame.channels + shared_classes) * size
        loads += seen * chunks * chunk * (steps * SIDE + shared_classes)
        products += searched * chunks * groups * steps
        folded += searched * np.ceil(across / SIDE).sum()
        visits += searched * np.ceil(across / SIDE).sum() * turns
        scored += searched * np.ceil(across / SIDE).sum() * math.ceil(SIDE / (2 * dilation))
    lanes = np.arange(1, int(scored / (math.ceil(frame.width / SIDE) * frame.height)) + 1)
    inserts = (1 - (1 - np.minimum(1, kept / lanes)) ** WARP).sum() if kept else 0  # in any lane of the warp
    per_visit = VISIT + (0 if kept else 4 + 2 * frame.classes)
    warps = math.ceil(frame.width / SIDE) * frame.height
    instructions = loads / pair / WARP * LOAD + products * PRODUCT + folded * GROUP + visits * per_visit
    instructions += warps * inserts * 5 * kept
    shared += loads * size + products * 2 * SIDE * SIDE * size + folded * SIDE * SIDE * 4
    shared += visits * WARP * 4 * (1 if kept else 1 + frame.classes)
    once = frame.height * frame.width * size
    memory = once * (frame.channels + frame.classes + frame.references * (frame.channels + frame.classes))
    return Work(
        memory=float(memory),
        cached=float(cached),
        shared=float(shared),
        operations=float(products * 2 * SIDE**3),
        instructions=float(instructions),
        blocks=math.prod(launch.grid),
    )


def _rows_seen(height: int, rows: int, spread: int, reach: int, dilation: int, block: int) -> int:
    """Rows of keys that the block's tile brings in, as local_soft_copy.cu spreads the tile's own rows."""
    group = block // spread * spread
    apart = min(spread, math.ceil(height / rows) - group)
    first, step = group * rows + block - group, math.gcd(dilation, apart)
    top = first - reach if first >= reach else (first - reach) % step
    return len(range(top, min(first + (rows - 1) * apart + 1 + reach, height), step))


def milliseconds(counted: Work, device: Device, storage: Storage) -> dict[str, float]:
    """The least time of each resource, and "bound": the slowest where some multiprocessors have a block more."""
    clocks = device.multiprocessors * device.gigahertz * 1e6  # in a millisecond
    per_clock = PLAIN_PER_CLOCK if storage == "float32" else device.matrix_per_clock
    times = {
        "memory": counted.memory / (device.gigabytes_per_second * 1e6),
        "L2": counted.cached / (clocks * L2_BYTES_PER_CLOCK),
        "shared": counted.shared / (clocks * SHARED_BYTES_PER_CLOCK),
        "products": counted.operations / (clocks * per_clock),
        "instructions": counted.instructions / (clocks * ISSUED_PER_CLOCK),
    }
    share = counted.blocks / device.multiprocessors
    return {**times, "bound": max(times.values()) * math.ceil(share) / share}


KERNELS: tuple[tuple[str, int], ...] = (("top 5", 5), ("all scores", 0))


def work_table() -> str:
    """Markdown: what a frame takes, in float16, on any GPU."""
    lines = [
        "| kernel | device memory | L2 | shared memory | matrix operations | warp instructions | blocks |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, top_k in KERNELS:
        counted = work(Frame(top_k=top_k), "float16")
        lines.append(
            f"| {name} | {counted.memory / 1e6:.0f} MB | {counted.cached / 1e6:.0f} MB | {counted.shared / 1e9:.1f} GB"
            f" | {counted.operations / 1e9:.0f} G | {counted.instructions / 1e6:.0f} M | {counted.blocks} |"
        )
    return "\n".join(lines)


def table() -> str:
    """Markdown, in milliseconds."""
    lines = [
        "| GPU | kernel | memory | L2 | shared | products | instructions | bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for device in DEVICES:
        for name, top_k in KERNELS:
            times = milliseconds(work(Frame(top_k=top_k), "float16"), device, "float16")
            lines.append(f"| {device.name} | {name} | {' | '.join(f'{time:.2f}' for time in times.values())} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{work_table()}\n\n{table()}")
