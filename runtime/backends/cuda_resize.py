"""Resizing of frames on the GPU: each pixel is the mean of the area that it covers.

The CPU uses OpenCV's INTER_AREA; both differ by at most one grey level.
"""

from __future__ import annotations

from importlib.resources import files

from corrflow.errors import InputError
from corrflow.runtime.backends.cuda_device import Buffer, CudaDevice

ENTRY_POINT = "corrflow_resize"
THREADS = 256  # per block, as in the source
# Longest side of a frame in pixels, for positions within 32 bits in the kernel.
MAX_SIDE = 16384


def kernel_source() -> str:
    """Return the CUDA C++ source, without headers; arguments: frame, height, width, rows, columns (int32), resized."""
    return files("corrflow.runtime.backends").joinpath("cuda_resize.cu").read_text(encoding="utf-8")


def blocks_for(size: tuple[int, int]) -> int:
    """Return the number of blocks for a result of this size (height, width)."""
    return -(-size[0] * size[1] // THREADS)


class DeviceResize:
    """Resize kernel, compiled for a device. Raises InputError without cuda-core, its compiler or the driver."""

    def __init__(self, device: CudaDevice) -> None:
        self._kernel = device.kernel(kernel_source(), ENTRY_POINT)

    def __call__(self, frame: Buffer, resized: Buffer) -> None:
        """Enqueue [1, H, W, 3] uint8 -> [1, h, w, 3] uint8, no side longer. Raises InputError beyond MAX_SIDE."""
        (height, width), (rows, columns) = frame.shape[1:3], resized.shape[1:3]
        if max(height, width) > MAX_SIDE:
            raise InputError(
                f"expected frames of at most {MAX_SIDE} pixels a side to resize on the GPU, got {width}x{height};"
                " resize them before"
            )
        assert rows <= height and columns <= width, (frame, resized)
        self._kernel((blocks_for((rows, columns)), 1, 1), (THREADS, 1, 1), frame, height, width, rows, columns, resized)
