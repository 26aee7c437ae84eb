"""Choice of the stream: thumbnails, previews and covers are never taken for the film."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from corrflow.runtime.video.open_source import open_source

FILM = (96, 128)


def write(path: Path, others: list[tuple[str, int, tuple[int, int], Disposition | None]]) -> Path:
    """Write a film of 12 frames behind other streams of (codec, frames, size, disposition)."""
    with av.open(str(path), "w") as container:
        streams = []
        for codec, count, size, disposition in [*others, ("libx264", 12, FILM, None)]:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if disposition is not None:
                stream.disposition = disposition
            streams.append((stream, count, size))
        for stream, count, size in streams:
            for index in range(count):
                image = np.full((*size, 3), 9 * index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("a.mkv", [("mjpeg", 1, (48, 64), None)]),
        ("a.mov", [("mjpeg", 12, (48, 64), None)]),
        ("a.mp4", [("libx264", 12, (48, 64), None)]),
        ("a.mkv", [("mjpeg", 1, (480, 640), None)]),
        ("a.mp4", [("mjpeg", 1, (480, 640), Disposition.attached_pic)]),
        ("a.mkv", [("mjpeg", 2, (48, 64), None), ("mjpeg", 1, (480, 640), None)]),
    ],
    ids=["picture", "preview", "small film", "large picture", "cover", "several"],
)
def test_the_film_is_chosen(tmp_path: Path, name: str, others: list) -> None:
    with open_source(str(write(tmp_path / name, others))) as source:
        frames = list(source)
    assert len(frames) == 12 and frames[0].image.shape == (*FILM, 3)
    films = sum(count > 1 for _, count, _, _ in others)
    assert len(source.notes) == (films > 0)
    assert not films or f"of {films + 1} films in it the one of 128x96" in source.notes[0]
