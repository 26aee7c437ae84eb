"""Check of an HDF5 file in a process of its own, because its library may crash or never return on a damaged file."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

_SECONDS = 20.0
_BYTES = 2 << 30  # address space of the process, of which the libraries take one
_LARGEST = 1 << 27  # bytes of a dataset that is read; larger ones are images, or not in the file


def check_hdf5(path: Path) -> None:
    """Raise ValueError for a file on which the library crashes or never returns, OSError for an unreadable one."""
    status = path.stat()
    _check(os.fspath(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)  # one file may have the labels of many videos
def _check(path: str, changed: int, size: int) -> None:
    command = [sys.executable, "-m", __name__, path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"a damaged file, on which its library does not return within {_SECONDS:.0f} s") from None
    if done.returncode < 0:
        raise ValueError(f"a damaged file, on which its library crashes (signal {-done.returncode})")


def _read_all(path: str) -> None:
    """Read every table of a file, in the checking process; errors of Python are left to the reader."""
    import resource

    import h5py

    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))

    def read(name: str, node: object) -> None:
        if not isinstance(node, h5py.Dataset) or node.size is None or node.is_virtual or node.external:
            return
        if node.size * max(node.dtype.itemsize, 8) <= _LARGEST:
            node[()]
        dict(node.attrs)  # pyright: ignore[reportAttributeAccessIssue]

    with h5py.File(path, "r", locking=False) as file:
        dict(file.attrs)
        file.visititems(read)


if __name__ == "__main__":
    try:
        _read_all(sys.argv[1])
    except Exception:  # h5py reports damage with exceptions of many kinds, which the reader meets again
        sys.exit(1)
