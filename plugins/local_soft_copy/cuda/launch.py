"""Launch plan of local_soft_copy.cu: definitions, grid and shared memory as a pure function of sizes and attributes.

The kernel is compiled for fixed channels, classes, windows, top_k, temperature and dtype. Height, width, batch and the
numbers of reference frames and windows stay free. Its arguments, in this order:

    query        const dtype*   [B, C, H, W]
    keys         const dtype*   [B, K, C, H, W]
    values       const dtype*   [B, K, N, H, W]
    references   const int32*   [M, 4], see spec.py
    height       int32          H
    width        int32          W
    num_frames   int32          K
    num_windows  int32          M
    copied       dtype*         [B, N, H, W]

All tensors are contiguous and share one dtype, except `references`; sums are float32. The order is TensorRT's for
kernels compiled ahead of time: inputs, integers, outputs. The grid holds the batch: z = batch * class_blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes

Dtype = Literal["float32", "float16", "bfloat16"]

ENTRY_POINT = "corrflow_local_soft_copy"
OPTIONS = ("--std=c++17",)
SHARED_LIMIT = 48 * 1024  # what a kernel may declare statically on every device
# The list of the best scores is in registers, twice for each query; a longer list would be spilled.
MAX_TOP_K = 32
# With all scores, the sums of two queries are in registers.
MAX_CLASSES_PER_BLOCK, MAX_CLASSES_WITHOUT_TOP_K = 32, 16
SIDE = 16  # side of a matrix fragment, and therefore columns of a tile
WARP = 32
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_MAX_GROUPS = 4
_MAX_SPREAD = 4
# Registers of a thread for loaded keys: more would be spilled.
_MAX_KEYS, _MAX_KEYS_LONG_LIST, _MAX_KEYS_WITHOUT_TOP_K = 20, 12, 8
_MIN_SLICE, _MAX_STATE = 48, 11
_MAX_GRID = 65535  # in y and z


@dataclass(frozen=True)
class Launch:
    """Kernel source and launch parameters.

    source:       CUDA C++ without headers or include paths
    entry_point:  unmangled name of the kernel
    options:      compiler options for nvcc and NVRTC, without the architecture
    grid, block:  (x, y, z)
    shared_bytes: static shared memory, at most SHARED_LIMIT; no dynamic shared memory
    tile:         (columns, rows) of queries per block; grid x and y are width and height divided by these, rounded up;
                  with dilation, the rows and columns of neighbouring tiles alternate
    class_blocks: blocks that share the classes of a tile; grid z is the batch times this number
    """

    source: str
    entry_point: str
    options: tuple[str, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    tile: tuple[int, int]
    class_blocks: int


@dataclass(frozen=True)
class _Layout:
    """Shared memory of a tile: `rows` of queries, `groups` of 16 key columns, `slice` channels at a time."""

    rows: int
    groups: int
    slice: int
    shared_bytes: int


def plan(
    *,
    channels: int,
    classes: int,
    num_windows: int,
    height: int,
    width: int,
    attributes: Attributes,
    dtype: Dtype,
    batch: int = 1,
) -> Launch:
    """Plan the kernel for these sizes.

    num_windows: M, rows of `references`

    The source depends on channels, classes, attributes and dtype. It serves all frame sizes and batches, and at most
    this number of windows; only the grid differs.

    Raises InputError for too many channels for shared memory, or sizes beyond a grid or 32-bit positions. A top_k above
    MAX_TOP_K is an error unless it covers all scores.
    """
    sizes = {
        "channels": channels,
        "classes": classes,
        "num_windows": num_windows,
        "height": height,
        "width": width,
        "batch": batch,
    }
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"LocalSoftCopy on CUDA: expected {name} >= 1, got {size}; give the sizes of real tensors")
    if dtype not in _BYTES:
        raise InputError(f"LocalSoftCopy on CUDA: expected dtype {' or '.join(_BYTES)}, got {dtype}; convert first")
    if num_windows * height * width >= 2**31:
        raise InputError(
            f"LocalSoftCopy on CUDA: expected fewer than 2^31 positions, got {num_windows} windows in frames of"
            f" {height}x{width}; use smaller frames or fewer windows"
        )
    windows = attributes.distinct_windows
    top_k = _effective_top_k(attributes.top_k, num_windows * max((2 * radius + 1) ** 2 for radius, _ in windows))
    scale = math.log2(math.e) / attributes.temperature
    if not 1e-30 < scale < 1e30:
        raise InputError(
            f"LocalSoftCopy on CUDA: expected a temperature between 1e-29 and 1e29, got {attributes.temperature};"
            " scale the features instead"
        )

    class_blocks = math.ceil(classes / (MAX_CLASSES_PER_BLOCK if top_k else MAX_CLASSES_WITHOUT_TOP_K))
    classes_per_block = math.ceil(classes / class_blocks)
    spread = _spread(windows[-1][1])
    across = max(_positions(radius, dilation, spread) for radius, dilation in windows)
    state = 2 * top_k + 1 if top_k else classes_per_block + 4
    layout = _layout(channels, 0 if top_k else classes_per_block, across, _BYTES[dtype], state)
    definitions = {
        f"CORRFLOW_{dtype.upper()}": 1,
        "CORRFLOW_CHANNELS": channels,
        "CORRFLOW_CLASSES": classes,
        "CORRFLOW_OWN_CLASSES": classes_per_block,
        "CORRFLOW_CLASS_BLOCKS": class_blocks,
        "CORRFLOW_WINDOWS": len(windows),
        "CORRFLOW_RADII": ", ".join(str(radius) for radius, _ in windows),
        "CORRFLOW_DILATIONS": ", ".join(str(dilation) for _, dilation in windows),
        "CORRFLOW_TOP_K": top_k,
        "CORRFLOW_SCALE": f"{scale:.9e}f",
        "CORRFLOW_ROWS": layout.rows,
        "CORRFLOW_GROUPS": layout.groups,
        "CORRFLOW_SLICE": layout.slice,
        "CORRFLOW_SPREAD": spread,
    }
    grid = (math.ceil(width / SIDE), math.ceil(height / layout.rows), batch * class_blocks)
    if max(grid[1:]) > _MAX_GRID:
        raise InputError(
            f"LocalSoftCopy on CUDA: expected at most {_MAX_GRID} tiles down and {_MAX_GRID} in the batch,"
            f" got {grid[1]} and {grid[2]}; use smaller frames or a smaller batch"
        )
    return Launch(
        source=_source(definitions),
        entry_point=ENTRY_POINT,
        options=OPTIONS,
        grid=grid,
        block=(WARP * layout.rows, 1, 1),
        shared_bytes=layout.shared_bytes,
        tile=(SIDE, layout.rows),
        class_blocks=class_blocks,
    )


def _effective_top_k(top_k: int, scores: int) -> int:
    """Return top_k for the kernel: 0 if top_k covers all scores."""
    if top_k >= scores:
        return 0
    if top_k > MAX_TOP_K:
        raise InputError(
            f"LocalSoftCopy on CUDA: expected top_k up to {MAX_TOP_K}, or 0 for all {scores} scores, got {top_k};"
            " use a smaller one, or the ONNX function (--plugin off)"
        )
    return top_k


def _layout(channels: int, shared_classes: int, across: int, size: int, state: int) -> _Layout:
    """Choose the largest tile that fits: more rows share the loaded keys, more channels at a time need fewer barriers.

    across: key positions within reach of a tile
    state:  registers of a query, for its running state and what it needs besides

    The next slice is loaded to registers while the current one is multiplied, so registers limit a slice as well. Tiles
    of 8 rows need slices of _MIN_SLICE channels, because every slice costs two barriers. With a state beyond _MAX_STATE
    they would need too many registers for two blocks on a multiprocessor.
    """
    chunks = math.ceil(across / (_MAX_GROUPS * SIDE))
    groups = math.ceil(across / (chunks * SIDE))
    steps = math.ceil(channels / SIDE)
    max_keys = _MAX_KEYS_WITHOUT_TOP_K if shared_classes else _MAX_KEYS if state <= _MAX_STATE else _MAX_KEYS_LONG_LIST
    for rows in (8, 4, 2, 1):
        for parts in range(1, steps + 1):
            slice_channels = math.ceil(steps / parts) * SIDE
            if rows == 8 and (state > _MAX_STATE or slice_channels < min(_MIN_SLICE, steps * SIDE)):
                break
            keys = math.ceil(slice_channels * groups * SIDE * size / 4 / (rows * WARP))
            used = _shared_bytes(rows, groups, slice_channels, steps * SIDE, shared_classes, size)
            if used <= SHARED_LIMIT and (keys <= max_keys or slice_channels == SIDE):
                return _Layout(rows, groups, slice_channels, used)
    most = SIDE
    while _shared_bytes(1, groups, SIDE, most + SIDE, shared_classes, size) <= SHARED_LIMIT:
        most += SIDE
    raise InputError(
        f"LocalSoftCopy on CUDA: expected at most {most} channels of {size} bytes, got {channels}; export an encoder"
        " with fewer"
    )


def _positions(radius: int, dilation: int, spread: int) -> int:
    """Return how many key positions of a row are within reach of a tile whose columns are `spread` apart."""
    apart = math.gcd(dilation, spread)
    return math.ceil(((SIDE - 1) * spread + 1 + 2 * radius * dilation) / apart)


def _spread(dilation: int) -> int:
    """Return the distance of rows and columns in a tile: the largest divisor of the dilation up to _MAX_SPREAD."""
    return next(spread for spread in range(_MAX_SPREAD, 0, -1) if dilation % spread == 0)


def _shared_bytes(rows: int, groups: int, channels: int, depth: int, shared_classes: int, size: int) -> int:
    """Sum the bytes of the arrays of local_soft_copy.cu: queries, keys, and values (without top_k)."""
    pad = 16 // size  # moves the rows of a fragment to different banks
    queries = depth * (rows * SIDE + pad) * size
    keys = channels * (groups * SIDE + pad) * size
    values = shared_classes * groups * SIDE * 4
    return queries + keys + values


def _source(definitions: dict[str, int | str]) -> str:
    lines = [f"#define {name} {value}" for name, value in definitions.items()]
    name = "local_soft_copy.cu"
    kernel = files("corrflow.plugins.local_soft_copy.cuda").joinpath(name).read_text(encoding="utf-8")
    return "\n".join([*lines, f'#line 1 "{name}"', kernel])
