"""How to compile and launch local_soft_copy.cu: its definitions, grid and shared memory as a pure function of integers.

The kernel is compiled for given channels, classes, windows, top_k, temperature and storage; height, width, batch and
the numbers of pictures and references stay free. Its arguments, in this order:

    query       const storage*   [B, C, H, W]
    keys        const storage*   [B, K, C, H, W]
    values      const storage*   [B, K, N, H, W]
    names       const int32*     [M, 4], spec.py's `references`
    height      int32            H
    width       int32            W
    pictures    int32            K
    references  int32            M
    copied      storage*         [B, N, H, W]

The other tensors are contiguous and of the one storage type; every sum is taken in float32. The order is TensorRT's for
kernels that are compiled ahead of time: inputs, integers, outputs. The batch is in the grid: z = batch * class_blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from corrflow.errors import InputError
from corrflow.plugins.local_soft_copy.spec import Attributes

Storage = Literal["float32", "float16", "bfloat16"]

ENTRY_POINT = "corrflow_local_soft_copy"
OPTIONS = ("--std=c++17",)
SHARED_LIMIT = 48 * 1024  # what a kernel may declare statically on every device
# The list of the best scores is held in registers, twice for each query; a longer one would be spilled.
MOST_KEPT = 32
MOST_OWN_CLASSES = 32
SIDE = 16  # of a matrix fragment, and so the columns of a tile
WARP = 32
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_MOST_GROUPS = 4
_MOST_SPREAD = 4
# Registers of a thread for keys that are on their way, of the best scores and of all: more would be spilled.
_MOST_HELD, _MOST_HELD_OF_ALL = 20, 8
_SCORE_PITCH = SIDE + 4
_LARGEST_GRID = 65535  # in y and z


@dataclass(frozen=True)
class Launch:
    """A kernel and how to launch it.

    source:       CUDA C++ that needs no header and no include path
    entry_point:  name of the kernel, not mangled
    options:      for nvcc and NVRTC; the architecture is for the caller to add
    grid, block:  (x, y, z)
    shared_bytes: declared statically, at most SHARED_LIMIT; pass 0 as dynamic shared memory
    tile:         (columns, rows) of queries that a block computes: grid x and y are width and height over these,
                  rounded up; where windows are dilated the rows of neighbouring tiles alternate
    class_blocks: blocks that share the classes of one tile: grid z is the batch times this
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
    """What of a tile is in shared memory at a time: `rows` of queries, `groups` of 16 key columns, `slice` channels."""

    rows: int
    groups: int
    slice: int
    shared_bytes: int


def plan(
    *,
    channels: int,
    classes: int,
    references: int,
    height: int,
    width: int,
    attributes: Attributes,
    storage: Storage,
    batch: int = 1,
) -> Launch:
    """The kernel for these sizes. One that was compiled for a frame serves every other with the same channels, classes,
    attributes and storage, and with as many references or fewer; only the grid differs.

    references: M, each of which may be searched through any of the windows

    Raises InputError for what the kernel cannot do: too many channels for shared memory, a top_k above MOST_KEPT that
    is below the number of scores, or sizes beyond a grid or 32-bit positions.
    """
    sizes = {
        "channels": channels,
        "classes": classes,
        "references": references,
        "height": height,
        "width": width,
        "batch": batch,
    }
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"LocalSoftCopy on CUDA: expected {name} >= 1, got {size}; give the sizes of real tensors")
    if storage not in _BYTES:
        raise InputError(f"LocalSoftCopy on CUDA: expected storage {' or '.join(_BYTES)}, got {storage}; convert first")
    if references * height * width >= 2**31:
        raise InputError(
            f"LocalSoftCopy on CUDA: expected fewer than 2^31 positions, got {references} references of"
            f" {height}x{width}; use smaller frames or fewer references"
        )
    windows = attributes.distinct_windows
    top_k = _kept(attributes.top_k, references * max((2 * radius + 1) ** 2 for radius, _ in windows))
    scale = math.log2(math.e) / attributes.temperature
    if not 1e-30 < scale < 1e30:
        raise InputError(
            f"LocalSoftCopy on CUDA: expected a temperature between 1e-29 and 1e29, got {attributes.temperature};"
            " scale the features instead"
        )

    class_blocks = math.ceil(classes / MOST_OWN_CLASSES)
    own_classes = math.ceil(classes / class_blocks)
    reach = max(radius * dilation for radius, dilation in windows)
    layout = _layout(channels, 0 if top_k else own_classes, reach, _BYTES[storage])
    definitions = {
        f"CORRFLOW_{storage.upper()}": 1,
        "CORRFLOW_CHANNELS": channels,
        "CORRFLOW_CLASSES": classes,
        "CORRFLOW_OWN_CLASSES": own_classes,
        "CORRFLOW_CLASS_BLOCKS": class_blocks,
        "CORRFLOW_WINDOWS": len(windows),
        "CORRFLOW_RADII": ", ".join(str(radius) for radius, _ in windows),
        "CORRFLOW_DILATIONS": ", ".join(str(dilation) for _, dilation in windows),
        "CORRFLOW_SMALLEST_DILATION": min(dilation for _, dilation in windows),
        "CORRFLOW_TOP_K": top_k,
        "CORRFLOW_SCALE": f"{scale:.9e}f",
        "CORRFLOW_ROWS": layout.rows,
        "CORRFLOW_GROUPS": layout.groups,
        "CORRFLOW_SLICE": layout.slice,
        "CORRFLOW_SPREAD": _spread(windows[-1][1]),
    }
    grid = (math.ceil(width / SIDE), math.ceil(height / layout.rows), batch * class_blocks)
    if max(grid[1:]) > _LARGEST_GRID:
        raise InputError(
            f"LocalSoftCopy on CUDA: expected at most {_LARGEST_GRID} tiles down and {_LARGEST_GRID} in the batch,"
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


def _kept(top_k: int, scores: int) -> int:
    """top_k as the kernel takes it: 0 where all scores are kept anyway."""
    if top_k >= scores:
        return 0
    if top_k > MOST_KEPT:
        raise InputError(
            f"LocalSoftCopy on CUDA: expected top_k up to {MOST_KEPT}, or 0 for all {scores} scores, got {top_k};"
            " use a smaller one, or the ONNX function (--plugin off)"
        )
    return top_k


def _layout(channels: int, shared_classes: int, reach: int, size: int) -> _Layout:
    """The largest tile that fits: more rows share the loaded keys, more channels at a time mean fewer barriers.

    While one slice is multiplied the next is on its way in registers, which limits slices as well.
    """
    across = SIDE + 2 * reach  # key columns that a tile sees
    chunks = math.ceil(across / (_MOST_GROUPS * SIDE))
    groups = math.ceil(across / (chunks * SIDE))
    steps = math.ceil(channels / SIDE)
    most_held = _MOST_HELD_OF_ALL if shared_classes else _MOST_HELD
    for rows in (8, 4, 2, 1):
        for parts in range(1, steps + 1):
            some = math.ceil(steps / parts) * SIDE
            held = math.ceil(some * groups * SIDE * size / 4 / (rows * WARP))
            used = _shared_bytes(rows, groups, some, steps * SIDE, shared_classes, size)
            if used <= SHARED_LIMIT and (held <= most_held or some == SIDE):
                return _Layout(rows, groups, some, used)
    most = SIDE
    while _shared_bytes(1, groups, SIDE, most + SIDE, shared_classes, size) <= SHARED_LIMIT:
        most += SIDE
    raise InputError(
        f"LocalSoftCopy on CUDA: expected at most {most} channels of {size} bytes, got {channels}; export an encoder"
        " with fewer"
    )


def _spread(dilation: int) -> int:
    """How far apart the rows of a tile are: the largest divisor of a dilation that keeps a tile's window small."""
    return next(spread for spread in range(_MOST_SPREAD, 0, -1) if dilation % spread == 0)


def _shared_bytes(rows: int, groups: int, some: int, depth: int, shared_classes: int, size: int) -> int:
    """Bytes of the four arrays of local_soft_copy.cu: queries, keys, values (not for top_k) and scores."""
    pad = 16 // size  # moves the rows of a fragment to different banks
    queries = depth * (rows * SIDE + pad) * size
    keys = some * (groups * SIDE + pad) * size
    values = shared_classes * groups * SIDE * 4
    scores = rows * SIDE * _SCORE_PITCH * 4
    return queries + keys + values + scores


def _source(definitions: dict[str, int | str]) -> str:
    lines = [f"#define {name} {value}" for name, value in definitions.items()]
    name = "local_soft_copy.cu"
    kernel = files("corrflow.plugins.local_soft_copy.cuda").joinpath(name).read_text(encoding="utf-8")
    return "\n".join([*lines, f'#line 1 "{name}"', kernel])
