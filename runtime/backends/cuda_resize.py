"""Frames shrunk to the size that they are tracked at, each pixel the mean of what it covers.

On the CPU it is OpenCV's INTER_AREA, on a GPU cuda_resize.cu; they differ by one grey level at most.
"""

from __future__ import annotations

from importlib.resources import files

from corrflow.errors import InputError
from corrflow.runtime.backends.cuda_device import Buffer, CudaDevice

ENTRY_POINT = "corrflow_shrink"
THREADS = 256  # of a block, as the source has it
# Pixels of either side of a frame: up to here the kernel's positions fit into 32 bits.
LONGEST_SIDE = 16384


def kernel_source() -> str:
    """CUDA C++ that needs no header. Its arguments: frame, height, width, rows, columns (int32), shrunk."""
    return files("corrflow.runtime.backends").joinpath("cuda_resize.cu").read_text(encoding="utf-8")


def blocks_for(size: tuple[int, int]) -> int:
    """Blocks that a result of this size (height, width) takes."""
    return -(-size[0] * size[1] // THREADS)


class DeviceShrink:
    """The same on a GPU. Raises InputError where cuda-core, its compiler or the driver are missing."""

    def __init__(self, device: CudaDevice) -> None:
        self._kernel = device.kernel(kernel_source(), ENTRY_POINT)

    def __call__(self, frame: Buffer, shrunk: Buffer) -> None:
        """Put it on the stream: [1, H, W, 3] uint8 -> [1, h, w, 3] uint8, no side longer. Raises InputError for
        frames beyond LONGEST_SIDE."""
        (height, width), (rows, columns) = frame.shape[1:3], shrunk.shape[1:3]
        if max(height, width) > LONGEST_SIDE:
            raise InputError(
                f"expected frames of at most {LONGEST_SIDE} pixels a side to shrink on the GPU, got {width}x{height};"
                " shrink them before"
            )
        assert rows <= height and columns <= width, (frame, shrunk)
        self._kernel((blocks_for((rows, columns)), 1, 1), (THREADS, 1, 1), frame, height, width, rows, columns, shrunk)
