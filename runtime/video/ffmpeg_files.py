"""Files for FFmpeg: names that are never taken for a protocol or a pattern, and a limit for the size of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError

from corrflow.errors import CorrflowError
from corrflow.runtime.video.image_header import MAX_PIXELS

# PyAV raises ValueError for pixel formats that it cannot convert.
DECODING_ERRORS = (FFmpegError, OSError, ValueError)
"""Errors of a damaged file, in the context `shortage_reported` alone: FFmpeg's MemoryError is among its errors."""

DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}

# FFmpeg takes an image whose path has %d for a numbered series, unless the format is given.
_FORMATS_OF_IMAGES = {".gif": "gif", ".png": "apng", ".apng": "apng", ".avif": "mov"}


@contextmanager
def shortage_reported(path: Path) -> Iterator[None]:
    """Turn a lack of memory or threads into CorrflowError, so that it is never taken for a damaged file."""
    try:
        yield
    except (MemoryError, BlockingIOError) as error:
        what = "memory" if isinstance(error, MemoryError) else "threads"
        raise CorrflowError(
            f"expected enough {what} to decode {path.name}, got no more from the system; end other programs, or raise "
            "the limit of this one"
        ) from None


def file_url(path: str | Path) -> str:
    """Return the name of a file for FFmpeg, which otherwise takes "12:30.mp4" for a protocol."""
    return f"file:{os.path.abspath(path)}"


def open_input(path: Path) -> InputContainer:
    """Open a file for reading. Raises one of DECODING_ERRORS, or CorrflowError without memory."""
    file_format = _FORMATS_OF_IMAGES.get(path.suffix.lower()) if "%" in os.path.abspath(path) else None
    options = {
        "protocol_whitelist": "file",  # otherwise a playlist could make the demuxer open network addresses
        "correct_ts_overflow": "0",  # otherwise time stamps that start again seem to jump by 26 hours
        **DECODER_OPTIONS,
    }
    with shortage_reported(path):
        return av.open(file_url(path), format=file_format, options=options, metadata_errors="replace")
