"""Every output of corrflow-track works for files and for cameras."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers import fake_ros
from helpers.fake_network import TinyBroker, receiver
from PIL import Image
from typer.testing import CliRunner

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.commands.track_cli import app
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.registry import FORMATS, open_sink
from corrflow.runtime.live.outputs.destinations import Destinations, LiveSource, open_recorder
from corrflow.runtime.types import Frame, FrameResult, ObjectResult

COUNT = 5
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
Call = Callable[..., str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, moving_square) -> Path:
    """Write clip.mkv with five frames, so slow that a live session drops none, mask.png and points.csv."""
    folder = tmp_path_factory.mktemp("scene")
    frames, masks = moving_square
    with av.open(str(folder / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.height, stream.width, stream.pix_fmt = 66, 98, "bgr0"
        for frame in frames[:COUNT]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode(None))
    Image.fromarray(masks[0].astype(np.uint8)).save(folder / "mask.png")
    (folder / "points.csv").write_text("name,x,y\nnose,30,24\n")
    return folder


@pytest.fixture(params=["file", "camera"])
def track(request: pytest.FixtureRequest, scene: Path, small_artifact: Path, tmp_path: Path, monkeypatch) -> Call:
    """Run corrflow-track on the clip as a file or as a live source, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        source = ["--camera"] if request.param == "camera" else []
        prompts = ["--init", scene / "mask.png", "--keypoints", scene / "points.csv", "--model", small_artifact]
        words = [*source, scene / "clip.mkv", *prompts, *arguments]
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    return call


def test_every_format_is_written(track: Call, tmp_path: Path) -> None:
    track(*(word for name in FORMATS for word in ("--format", name)), "--out", tmp_path / "out")
    for name, one in FORMATS.items():
        path = tmp_path / "out" / one.result
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        assert files and all(file.stat().st_size for file in files), name
    assert len(list((tmp_path / "out" / "masks").iterdir())) == COUNT
    assert len((tmp_path / "out" / "tracks.jsonl").read_text().splitlines()) == COUNT
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_the_short_options_write_their_formats(track: Call, tmp_path: Path) -> None:
    track("--coco", "a.json", "--csv", "a.csv", "--masks", "m", "--jsonl", "a.jsonl", "--save", "a.mkv")
    coco = json.loads(Path("a.json").read_text())
    assert len(coco["images"]) == COUNT and len(coco["annotations"]) == 2 * COUNT
    assert len(Path("a.csv").read_text().splitlines()) == 1 + COUNT
    assert [path.name for path in sorted(Path("m").iterdir())] == [f"{index:05d}.png" for index in range(COUNT)]
    assert len(Path("a.jsonl").read_text().splitlines()) == COUNT
    with av.open("a.mkv") as container:
        assert sum(1 for _ in container.decode(video=0)) == COUNT
    # A folder has a hidden completion record beside it, by which a later run may replace it.
    visible = sorted(path.name for path in tmp_path.iterdir() if path.name != ".m.corrflow.json")
    assert visible == ["a.csv", "a.json", "a.jsonl", "a.mkv", "m"]


def test_formats_without_out_go_beside_the_name_of_the_source(track: Call) -> None:
    track("--format", "cvat")
    assert [path.as_posix() for path in Path().rglob("*")] == ["clip_results", "clip_results/cvat.xml"]


def received(ours: socket.socket) -> list[dict]:
    ours.settimeout(0.5)
    records = []
    try:
        while True:
            records.append(json.loads(ours.recv(65536)))
    except TimeoutError:
        return records


def check_records(records: list[dict]) -> None:
    """Check the lines of all frames, which have masks wherever they go to a network."""
    assert [record["frame"] for record in records] == list(range(COUNT))
    assert all([one["id"] for one in record["objects"]] == [1, 2] for record in records)
    assert all(record["objects"][0]["mask"]["size"] == [66, 98] for record in records)


def test_datagrams_are_sent(track: Call) -> None:
    with receiver() as ours:
        track("--udp", f"127.0.0.1:{ours.getsockname()[1]}")
        check_records(received(ours))


def test_messages_reach_the_broker(track: Call) -> None:
    pytest.importorskip("paho.mqtt.client")
    broker = TinyBroker()
    track("--mqtt", f"mqtt://127.0.0.1:{broker.port}/lab")
    messages = [broker.messages.get(timeout=10) for _ in range(COUNT)]
    assert {topic for topic, _ in messages} == {"lab"}
    check_records([json.loads(data) for _, data in messages])
    broker.close()


def test_topics_of_ros_are_published(track: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    ros = fake_ros.Ros(monkeypatch)
    track("--ros", "/lab")
    lines: list[Any] = [message for topic, message in ros.published if topic == "/lab/tracks"]
    check_records([json.loads(line.data) for line in lines])
    assert len([topic for topic, _ in ros.published if topic == "/lab/mask"]) == COUNT


def test_a_recording_for_rerun_is_written(track: Call) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    track("--rerun", "a.rrd")
    assert Path("a.rrd").read_bytes()[:4] == b"RRF2"


def test_every_destination_at_once(track: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    ros = fake_ros.Ros(monkeypatch)
    with receiver() as ours:
        track("--udp", f"127.0.0.1:{ours.getsockname()[1]}", "--ros", "/lab", "--jsonl", "a.jsonl", "--format", "coco")
        check_records(received(ours))
    assert len([topic for topic, _ in ros.published if topic == "/lab/tracks"]) == COUNT
    assert len(Path("a.jsonl").read_text().splitlines()) == COUNT and Path("clip_results/coco.json").is_file()


class FailingSink(Sink):
    """Sink that fails at every frame."""

    def write(self, result: FrameResult) -> None:
        raise CorrflowError("nobody receives")

    def close(self) -> None:
        pass


def test_a_network_that_loses_frames_of_a_file_is_an_error_after_everything_else_is_written(
    scene: Path, small_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("corrflow.runtime.live.outputs.udp.UdpSink", lambda *address: FailingSink())
    words = [scene / "clip.mkv", "--init", scene / "mask.png", "--model", small_artifact, "--jsonl", "a.jsonl"]
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--udp", "127.0.0.1:9")])
    assert done.exit_code == 1 and f"lost {COUNT} of {COUNT} frames (nobody receives)" in done.output
    assert len(Path("a.jsonl").read_text().splitlines()) == COUNT


@pytest.mark.parametrize("name", ["coco", "davis"])
def test_a_live_session_overwrites_no_result(name: str, tmp_path: Path) -> None:
    frame = Frame(np.zeros((4, 6, 3), np.uint8), 0, 0.0, "00000")
    for _ in range(3):
        with open_recorder(name, tmp_path / FORMATS[name].result, LiveSource("clip")) as sink:
            sink.write(FrameResult(np.ones((4, 6), np.uint8), (ObjectResult(1, "", 1.0, True, (0, 0, 6, 4)),), frame))
    place = Path(FORMATS[name].result)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{place.stem}{number}{place.suffix}" for number in ("", "-2", "-3")
    )


def test_a_destination_that_cannot_be_opened_closes_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = {"jsonl": tmp_path / "a.jsonl", "coco": tmp_path / "file" / "coco.json"}
    with pytest.raises(InputError, match="choose another place"):
        Destinations(files).open_sinks(LiveSource("clip"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_at_once_that_its_place_cannot_be_written_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another place"):
        open_sink(name, tmp_path / "file" / FORMATS[name].result, LiveSource("clip"))
