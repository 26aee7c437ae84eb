"""Files from strangers that name other places: no address is opened, no other file read, none written outside."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from corrflow.errors import CorrflowError
from corrflow.runtime.formats.frame_images import ImageWriter
from corrflow.runtime.formats.label_schema import LabelSchema
from corrflow.runtime.types import Frame
from corrflow.runtime.video.open_source import open_source

pytestmark = pytest.mark.faults

PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{place}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{place}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_playlist_that_is_called_a_video_opens_no_address(tmp_path: Path, kind: str, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        path = tmp_path / name
        path.write_text(PLAYLISTS[kind].format(place=f"http://127.0.0.1:{port}/secret.ts", port=port))
        with pytest.raises(CorrflowError), open_source(str(path)) as source:
            list(source)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "name", ["../../out.jpg", "/tmp/out.jpg", "a/../../../out.jpg", "..\\..\\out.jpg", "C:\\out.jpg"]
)
def test_names_of_labels_stay_inside_the_results(tmp_path: Path, name: str) -> None:
    results = tmp_path / "deep" / "results"
    writer = ImageWriter(results, ["yolo-seg", "labelme"], LabelSchema(image_names={0: name}), "clip", tmp_path)
    writer.write(Frame(np.zeros((8, 8, 3), np.uint8), 0, 0.0, "00000"))
    written = [os.path.join(folder, file) for folder, _, files in os.walk(tmp_path) for file in files]
    assert written and all(Path(path).is_relative_to(results) for path in written)
