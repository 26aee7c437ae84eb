"""The index of an MP4 file moves before the frames, and the frames stay the same."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from corrflow.runtime.formats import mp4_index
from corrflow.runtime.formats.mp4_index import copy_index_first


def write(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(30):
            image = np.full((64, 96, 3), 8 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))


def frames(path: Path) -> list[tuple[int | None, bytes]]:
    with av.open(str(path)) as container:
        return [(frame.pts, frame.to_ndarray().tobytes()) for frame in container.decode(video=0)]


def test_the_index_is_first_and_every_frame_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    assert copy_index_first(str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"))
    content = (tmp_path / "b.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert len(content) == (tmp_path / "a.mp4").stat().st_size
    assert frames(tmp_path / "b.mp4") == frames(tmp_path / "a.mp4")


def test_a_stop_ends_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mp4")
    monkeypatch.setattr(mp4_index, "stop_requested", lambda: True)
    assert not copy_index_first(str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"))


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\0\0\0\x08ftyp\0\0\0\x00mdat"])
def test_another_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert not copy_index_first(str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"))
