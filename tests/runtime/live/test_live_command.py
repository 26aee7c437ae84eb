"""corrflow-track --camera on a real MJPEG stream over HTTP, which breaks in every way, and on files and pipes."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from corrflow.runtime.commands.track_cli import app

INTERVAL = 0.03

# What one connection sends: (images, how many times larger, what then): "close" the connection, "stall", or "on".
Script = tuple[int, int, str]


class Camera(ThreadingHTTPServer):
    """Serves the moving square, there and back, as multipart JPEG; each connection plays the next script."""

    daemon_threads = True

    def __init__(self, images: np.ndarray, scripts: list[Script], damage: Callable[[int, bytes], bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.images = np.concatenate([images, images[-2:0:-1]])
        self.scripts, self.damage = scripts, damage
        self.connections, self.over = 0, threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/video"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        camera = self.server
        assert isinstance(camera, Camera)
        count, scale, then = camera.scripts[min(camera.connections, len(camera.scripts) - 1)]
        camera.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            number = 0
            while not camera.over.is_set() and (number < count or then == "on"):
                image = camera.images[number % len(camera.images)].repeat(scale, 0).repeat(scale, 1)
                data = camera.damage(number, cv2.imencode(".jpg", image)[1].tobytes())
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                number += 1
                time.sleep(INTERVAL)
            if then == "stall":
                camera.over.wait(60)
        except OSError:
            pass  # the viewer left


@pytest.fixture
def serve(moving_square) -> Iterator[Callable[..., Camera]]:
    cameras: list[Camera] = []

    def start(*scripts: Script, damage: Callable[[int, bytes], bytes] = lambda number, data: data) -> Camera:
        camera = Camera(moving_square[0], list(scripts), damage)
        threading.Thread(target=camera.serve_forever, args=(0.05,), daemon=True).start()
        cameras.append(camera)
        return camera

    yield start
    for camera in cameras:
        camera.over.set()
        camera.shutdown()
        camera.server_close()


class Run:
    """A corrflow-track process in the test's folder."""

    def __init__(self, folder: Path, *arguments: object, stdin=subprocess.DEVNULL, file_limit: int = 0) -> None:
        def limit() -> None:
            if file_limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "corrflow.runtime.commands.track_cli", *map(str, arguments)],
            cwd=folder, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=stdin is not subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=limit,
        )  # fmt: skip
        self.error = ""

    def lines(self, name: str = "out.jsonl") -> list[dict]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, condition: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                pytest.fail(f"it never happened; {self.process.communicate()[1]}")
            time.sleep(0.02)

    def stop(self, number: int) -> float:
        """Send a signal; seconds until the process has ended."""
        begin = time.monotonic()
        self.process.send_signal(number)
        self.error = self.process.communicate(timeout=20)[1]
        return time.monotonic() - begin

    def counts(self) -> tuple[int, int, int, int]:
        """Return captured, tracked, dropped and reconnects from the last lines."""
        found = re.search(r"captured (\d+) frames: (\d+) tracked, (\d+) dropped, (\d+) reconnects", self.error)
        assert found is not None, self.error
        captured, tracked, dropped, reconnects = (int(number) for number in found.groups())
        return captured, tracked, dropped, reconnects


@pytest.fixture
def live(tmp_path: Path, small_artifact: Path, moving_square) -> Iterator[Callable[..., Run]]:
    """Start corrflow-track --camera with the square's first mask in mask.png; none outlives the test."""
    Image.fromarray(moving_square[1][0].astype(np.uint8) * 255).save(tmp_path / "mask.png")
    runs: list[Run] = []

    def start(camera: str, *arguments: object, **options) -> Run:
        runs.append(Run(tmp_path, "--camera", camera, "--model", small_artifact, *arguments, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.communicate()


def frame_count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_within_two_seconds_with_whole_files(serve, live, tmp_path: Path, number: int) -> None:
    run = live(serve((0, 1, "on")).url, "--init", "mask.png", "--save", "out.mkv", "--jsonl", "out.jsonl")
    run.wait_for(lambda: len(run.lines()) > 20)
    assert run.stop(number) < 2.0
    assert run.process.returncode == 0, run.error
    captured, tracked, dropped, reconnects = run.counts()
    assert captured == tracked + dropped and reconnects == 0
    lines = run.lines()
    assert len(lines) == tracked == frame_count(tmp_path / "out.mkv")
    assert [line["number"] for line in lines] == list(range(tracked))
    indices = [line["frame"] for line in lines]
    assert indices == sorted(set(indices)) and indices[-1] < captured
    assert "latency" in run.error and "frames/s" in run.error


def test_a_kill_leaves_a_recording_that_plays(serve, live, tmp_path: Path) -> None:
    run = live(serve((0, 1, "on")).url, "--init", "mask.png", "--save", "out.mp4", "--jsonl", "out.jsonl")
    run.wait_for(lambda: run.lines() and run.lines()[-1]["time"] > 4)
    run.stop(signal.SIGKILL)
    with av.open(str(tmp_path / "out.mp4")) as container:
        last = [frame.time for frame in container.decode(video=0)][-1]
    assert last is not None and last > run.lines()[-1]["time"] - 2.5


def test_a_stream_that_breaks_off_stalls_and_returns_larger_is_followed(serve, live, tmp_path: Path) -> None:
    camera = serve((15, 1, "close"), (15, 1, "stall"), (0, 2, "on"))
    run = live(
        camera.url, "--init", "mask.png", "--save", "out.mkv", "--jsonl", "out.jsonl", "--timeout", 1
    )  # fmt: skip
    run.wait_for(lambda: len([line for line in run.lines() if line["size"] == [196, 132]]) > 10)
    run.stop(signal.SIGTERM)
    captured, tracked, dropped, reconnects = run.counts()
    assert captured == tracked + dropped and reconnects == camera.connections - 1 == 2
    lines = run.lines()
    assert {tuple(line["size"]) for line in lines} == {(98, 66), (196, 132)}
    assert all([one["id"] for one in line["objects"]] == [1] for line in lines)
    before = [line for line in lines if line["size"] == [98, 66]]
    assert frame_count(tmp_path / "out.mkv") == len(before)
    assert frame_count(tmp_path / "out-2.mkv") == len(lines) - len(before)
    # The stall is noticed after 1 s and the camera opened after the wait of 0.5 s; one more second is allowed.
    pauses = np.diff([line["time"] for line in lines])
    assert pauses.max() < 1 + 0.5 + 1
    assert "trying again" in run.error and "196x132" in run.error


def test_damaged_pictures_do_not_end_it(serve, live) -> None:
    def damage(number: int, data: bytes) -> bytes:
        if number % 5 == 2:
            return data[: len(data) // 3]
        return bytes(len(data)) if number % 5 == 3 else data

    run = live(serve((0, 1, "on"), damage=damage).url, "--init", "mask.png", "--jsonl", "out.jsonl", "--timeout", 2)
    run.wait_for(lambda: len(run.lines()) > 30)
    assert run.stop(signal.SIGTERM) < 2.0
    captured, tracked, dropped, _ = run.counts()
    assert captured == tracked + dropped


def test_a_later_run_starts_from_what_an_earlier_one_kept(serve, live) -> None:
    camera = serve((0, 1, "on"))
    run = live(camera.url, "--init", "mask.png", "--save-prompt", "square.npz", "--jsonl", "first.jsonl")
    run.wait_for(lambda: run.lines("first.jsonl"))
    run.stop(signal.SIGTERM)
    run = live(camera.url, "--prompt-file", "square.npz", "--jsonl", "second.jsonl")
    run.wait_for(lambda: len(run.lines("second.jsonl")) > 5)
    run.stop(signal.SIGTERM)
    first = run.lines("second.jsonl")[0]["objects"][0]
    assert (first["id"], first["visible"]) == (1, True)


def test_a_full_disk_loses_lines_and_not_the_run(serve, live) -> None:
    run = live(serve((0, 1, "on")).url, "--init", "mask.png", "--jsonl", "out.jsonl", file_limit=5000)
    time.sleep(0.1)
    run.wait_for(lambda: run.lines() and (run.folder / "out.jsonl").stat().st_size > 4000)
    time.sleep(1)
    assert run.stop(signal.SIGTERM) < 2.0 and run.process.returncode == 0
    captured, tracked, dropped, _ = run.counts()
    assert captured == tracked + dropped and tracked > len(run.lines()) > 3
    assert "free some space" in run.error and "lost" in run.error


def test_a_file_is_played_at_its_own_pace_to_its_end(live, moving_square, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(moving_square[0]):
        cv2.imwrite(str(tmp_path / "clip" / f"{number}.png"), frame)
    run = live("clip", "--init", "mask.png")
    run.error = run.process.communicate(timeout=60)[1]
    assert run.process.returncode == 0, run.error
    captured, tracked, dropped, _ = run.counts()
    assert captured == 8 == tracked + dropped
    assert frame_count(tmp_path / "clip_tracked.mkv") == tracked


def test_raw_pictures_come_through_a_pipe(live, moving_square) -> None:
    run = live(
        "-?raw=bgr24&size=98x66", "--init", "mask.png", "--jsonl", "out.jsonl", stdin=subprocess.PIPE
    )  # fmt: skip
    _, error = run.process.communicate(moving_square[0].tobytes(), timeout=60)
    run.error = error.decode()
    assert run.process.returncode == 0, run.error
    assert run.counts()[0] == 8 and run.lines()[-1]["size"] == [98, 66]


def test_a_stream_over_udp_is_tracked_though_it_is_met_midway(live, moving_square) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{probe.getsockname()[1]}"
    over = threading.Event()

    def send() -> None:
        with av.open(f"{address}?pkt_size=1316", "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=30, options={"tune": "zerolatency", "g": "5"})
            stream.height, stream.width, stream.pix_fmt = 66, 98, "yuv420p"
            while not over.wait(INTERVAL):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moving_square[0][0], format="bgr24")))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        run = live(address, "--init", "mask.png", "--jsonl", "out.jsonl")
        run.wait_for(lambda: len(run.lines()) > 10)
        assert run.stop(signal.SIGTERM) < 2.0
    finally:
        over.set()
        sender.join(10)
    captured, tracked, dropped, _ = run.counts()
    assert captured == tracked + dropped and run.lines()[-1]["size"] == [98, 66]


def test_a_model_that_hangs_does_not_keep_it_from_ending(serve, live, tmp_path: Path, small_artifact: Path) -> None:
    program = (
        "import sys, time\n"
        "from corrflow.runtime.tracking.tracker import Tracker\n"
        "from corrflow.runtime.commands.track_cli import main\n"
        "Tracker.step = lambda self, frame: (print('stepping', flush=True), time.sleep(60))\n"
        "sys.argv[0] = 'corrflow-track'\n"
        "main()\n"
    )
    arguments = ["--camera", serve((0, 1, "on")).url, "--init", "mask.png", "--save", "out.mkv"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--model", str(small_artifact)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "stepping\n"
        begin = time.monotonic()
        process.terminate()
        error = process.communicate(timeout=20)[1]
        assert time.monotonic() - begin < 2.0
        assert process.returncode == 0 and "1 tracked" in error, error
    finally:
        process.kill()
        process.communicate()
    assert frame_count(tmp_path / "out.mkv") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--camera", "0"], "got neither"),
        (["--camera", "0", "--show"], "add --serve"),
        (["--camera", "0", "--init", "mask.png", "--prompt-file", "a.npz"], "got both"),
        (["video.mp4", "--camera", "0", "--init", "mask.png"], "leave one of them out"),
        (["video.mp4", "--init", "mask.png", "--show"], "add --camera"),
        (["--camera", "0", "--prompt-file", "missing.npz"], "check the path"),
        (["--camera", "0", "--prompt-file", "mask.png"], "is no prompt file"),
        (["--camera", "missing.mp4", "--init", "mask.png"], "check the path"),
        (["--camera", "ftp://host/a", "--init", "mask.png"], "use one of those"),
        (["--camera", "0", "--init", "mask.png", "--save", "out.avi"], "name it .mkv"),
        (["--camera", "0", "--init", "mask.png", "--timeout", "0"], "timeouts"),
        (["rtsp://host/a", "--init", "mask.png"], "put --camera before"),
        (["--camera", "csi://0", "--init", "mask.png", "--jsonl", "out.jsonl"], "GStreamer"),
        (["--camera", "clip", "--init", "small.png", "--jsonl", "out.jsonl"], "mask of the frame's size"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch, capfd, moving_square
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(moving_square[1][0].astype(np.uint8)).save("mask.png")
    Image.fromarray(moving_square[1][0][:40].astype(np.uint8)).save("small.png")
    Path("clip").mkdir()
    cv2.imwrite("clip/0.png", moving_square[0][0])
    with pytest.raises(SystemExit) as stopped:
        app(arguments)
    error = capfd.readouterr().err
    assert stopped.value.code == 2
    assert words in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "mask.png", "small.png"]


def test_no_window_is_opened_where_there_is_no_screen(tmp_path: Path, monkeypatch, capfd, moving_square) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux says by its environment whether there is a screen")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    Image.fromarray(moving_square[1][0].astype(np.uint8)).save("mask.png")
    with pytest.raises(SystemExit):
        app(["--camera", "0", "--init", "mask.png", "--show"])
    assert "got no DISPLAY" in capfd.readouterr().err


def test_an_opencv_without_windows_is_said_in_one_sentence(tmp_path: Path, monkeypatch, capfd, moving_square) -> None:
    """In the place of OpenCV, one like the headless package."""
    (tmp_path / "headless").mkdir()
    (tmp_path / "headless" / "cv2.py").write_text(
        "WINDOW_AUTOSIZE = 1\ndef namedWindow(*_): raise RuntimeError('The function is not implemented. Rebuild')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "headless"))
    Path("clip").mkdir()
    cv2.imwrite("clip/0.png", moving_square[0][0])
    Image.fromarray(moving_square[1][0].astype(np.uint8)).save("mask.png")
    with pytest.raises(SystemExit) as stopped:
        app(["--camera", "clip", "--init", "mask.png", "--show"])
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and "expected an OpenCV with windows" in error and error.count("\n") == 1
