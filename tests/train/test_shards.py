"""Training from shards depends neither on their location, nor on interruptions, nor on the number of processes."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.panning import write_panning_images
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.errors import CorrflowError, InputError
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint
from corrflow.train.config import TrainConfig
from corrflow.train.data import download
from corrflow.train.data.clips import ClipSampler
from corrflow.train.data.download import Downloads, public_name
from corrflow.train.data.frames import FrameSampling
from corrflow.train.data.prepare import plan_shards, prepare
from corrflow.train.data.shards import LocalFiles, ShardedVideos, ShardOrder, open_shards, read_index, shard_names

SMALL = TrainConfig(steps=4, batch=2, crop=32, radius=2, colours=4, threads=1, image_share=0.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create five shards of two videos of twelve frames each."""
    root = tmp_path_factory.mktemp("footage")
    for seed in range(10):
        write_panning_images(root / "videos" / str(seed), seed)
    prepare(plan_shards(root / "videos", FrameSampling(6.0, 64), 2, 600.0), root / "shards", 1)
    return root / "shards"


class Handler(SimpleHTTPRequestHandler):
    """Server of a folder with failures by file name."""

    requests: Counter[str]
    failures: dict[str, list[str]]

    def do_GET(self) -> None:
        name = Path(self.path.partition("?")[0]).name
        self.requests[name] += 1
        failure = self.failures[name].pop(0) if self.failures.get(name) else ""
        if failure == "silent":
            time.sleep(3)
            return
        if failure.isdigit():
            self.send_error(int(failure))
            return
        if failure == "short":
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def served(folder: Path, failures: dict[str, list[str]] | None = None) -> Iterator[tuple[str, Counter[str]]]:
    """Serve a folder on a local port; yield its address and the number of requests for each name."""
    requests: Counter[str] = Counter()
    handler = type("CountingHandler", (Handler,), {"requests": requests, "failures": failures or {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def names_of(folder: Path) -> list[str]:
    found = shard_names(str(folder))
    assert found is not None
    return found


def local(shards: Path, order: ShardOrder) -> ShardedVideos:
    return ShardedVideos(names_of(shards), LocalFiles(names_of(shards)), 3, 6.0, order)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 5), st.integers(0, 5))
def test_an_epoch_samples_every_shard_equally_and_few_at_a_time(
    shards: int, window: int, clips: int, epoch: int
) -> None:
    order = ShardOrder(shards, 3, window, clips)
    first = epoch * shards * clips
    sampled = [order.shard_of(number) for number in range(first, first + shards * clips)]
    assert Counter(sampled) == dict.fromkeys(range(shards), clips)
    for start in range(0, len(sampled), window * clips):
        part = sampled[start : start + window * clips]
        position = order.window_of(first + start)
        assert set(part) == set(order.window_shards(*position)) and len(set(part)) <= window
        following = {sampled[start + window * clips]} if start + window * clips < len(sampled) else set()
        assert following | set(part) <= set(order.upcoming_shards(*position))
    # The same clips from another object in another order.
    other = ShardOrder(shards, 3, window, clips)
    for number in reversed(range(0, len(sampled), 3)):
        assert other.shard_of(first + number) == sampled[number]


def test_epochs_and_seeds_have_different_orders() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        order = ShardOrder(20, seed, 4, 2)
        return [order.shard_of(epoch * 40 + number) for number in range(40)]

    assert first(0, 0) != first(0, 1) and first(0, 0) != first(1, 0)


def test_clips_are_the_same_for_any_access(shards: Path, tmp_path: Path) -> None:
    """Clips agree in order, out of order, from four threads, and over HTTP."""
    numbers = list(range(60))  # more than one epoch of 5 shards, 2 at a time, 6 clips each
    order = ShardOrder(5, 0, 2, 6)
    config = replace(SMALL, crop=48)
    with local(shards, order) as videos:
        expected = [ClipSampler(videos, None, config).clip(number) for number in numbers]
        assert len({clip.tobytes() for clip in expected}) > 55
    with local(shards, ShardOrder(5, 0, 2, 6)) as videos:
        sampler = ClipSampler(videos, None, config)
        for number in (37, 59, 4, 22):
            assert np.array_equal(sampler.clip(number), expected[number])
    with local(shards, order) as videos, ThreadPoolExecutor(4) as pool:
        for clip, other in zip(pool.map(ClipSampler(videos, None, config).clip, numbers), expected, strict=True):
            assert np.array_equal(clip, other)
    with served(shards) as (address, requests):
        urls = [f"{address}/{Path(name).name}" for name in names_of(shards)]
        with ShardedVideos(urls, Downloads(urls, tmp_path / "downloads", 5.0), 3, 6.0, order) as videos:
            sampler = ClipSampler(videos, None, config)
            for number in numbers:
                assert np.array_equal(sampler.clip(number), expected[number])
                assert len(list((tmp_path / "downloads").glob("*.tar"))) <= 5
        assert not list((tmp_path / "downloads").glob("*.tar")), "downloads are removed at the end"
    assert set(requests) == {Path(name).name for name in names_of(shards)}


def test_only_shards_in_use_stay_on_disk(shards: Path, tmp_path: Path) -> None:
    with served(shards) as (address, requests):
        urls = [f"{address}/shard-{index % 5:06d}.tar?copy={index}" for index in range(30)]
        with ShardedVideos(urls, Downloads(urls, tmp_path, 5.0), 3, 6.0, ShardOrder(30, 0, 2, 4)) as videos:
            for number in range(0, 120, 2):
                videos.sample(number, 3, np.random.default_rng(number))
                # The previous, current and next window.
                assert len(list(tmp_path.glob("*.tar"))) <= 6
    assert sum(requests.values()) <= 34, "each shard is downloaded once per epoch"


def test_a_shard_that_several_threads_need_is_downloaded_once(shards: Path, tmp_path: Path) -> None:
    with served(shards) as (address, requests), ThreadPoolExecutor(4) as threads:
        urls = [f"{address}/shard-000000.tar"]
        paths = list(threads.map(lambda _: Downloads(urls, tmp_path, 5.0).path(0), range(4)))
    assert len(set(paths)) == 1 and paths[0].is_file()
    assert requests == {"shard-000000.tar": 1}


def test_names_of_shards(tmp_path: Path) -> None:
    assert shard_names("http://host/a-{08..11}.tar") == [f"http://host/a-{n}.tar" for n in ("08", "09", "10", "11")]
    assert shard_names("https://h/{a,b}/{0..1}.tar?k=1") == [
        f"https://h/{folder}/{number}.tar?k=1" for folder in "ab" for number in "01"
    ]
    assert shard_names(str(tmp_path)) is None
    for name in ("b.tar", "a.tar", "notes.txt"):
        (tmp_path / name).touch()
    assert shard_names(str(tmp_path)) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    assert shard_names(str(tmp_path / "b.tar")) == [str(tmp_path / "b.tar")]
    assert shard_names(str(tmp_path / "{a,b}.tar")) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    for pattern in ("http://h/{3..1}.tar", "http://h/{0..99999999}.tar"):
        with pytest.raises(InputError, match=r"expected \{first\.\.last\}"):
            shard_names(pattern)
    assert public_name("https://me:secret@host:81/a.tar?key=secret") == "https://host:81/a.tar"


@pytest.mark.parametrize("failure", ["404", "403", "503", "silent", "short"])
def test_an_initial_server_failure_is_one_sentence(shards: Path, tmp_path: Path, failure: str) -> None:
    message = {
        "404": "HTTP 404",
        "403": "HTTP 403",
        "503": "HTTP 503",
        "silent": "a server that timed out, without a byte for 0.5 s",
        "short": "bytes of",
    }
    with served(shards, {"shard-000000.tar": [failure]}) as (address, _):
        urls = [f"{address}/shard-000000.tar?key=secret"]
        with pytest.raises(InputError, match=message[failure]) as caught:
            open_shards(urls, 3, 6.0, 0, tmp_path, 0.5).__enter__()
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert not list(tmp_path.glob("*tar*"))


def test_a_missing_server_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    for url, message in (
        (f"http://127.0.0.1:{port}/a.tar", "Connection refused"),
        ("http://[::1/a.tar", "an address that is none"),
    ):
        with pytest.raises(InputError, match=message):
            open_shards([url], 3, 6.0, 0, tmp_path, 2.0).__enter__()


@pytest.mark.faults
def test_a_name_and_password_reach_the_server_alone(shards: Path, tmp_path: Path) -> None:
    """They are sent in a header, which a redirect to another server does not repeat, and no message has them."""
    received: list[tuple[str, str | None]] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append((self.path, self.headers["Authorization"]))
            self.send_response(302 if self.path == "/a.tar" else 404)
            self.send_header("Location", f"http://localhost:{server.server_port}/other")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://me:se%63ret@127.0.0.1:{server.server_address[1]}/a.tar"
        with pytest.raises(CorrflowError, match="HTTP 404") as caught:
            Downloads([url], tmp_path, 5.0, ()).path(0)
        server.shutdown()
    assert received == [("/a.tar", "Basic bWU6c2VjcmV0"), ("/other", None)]
    assert "me:" not in str(caught.value) and "cret" not in str(caught.value)


@pytest.mark.faults
@pytest.mark.parametrize(
    "address",
    [
        "http://me:secret@host:port/a.tar",
        "http://me:secret@[::1/a.tar",
        "http://host:secret/a.tar",
        "http://host/a b.tar?key=secret",
        "http://me:secret@host/{9..1}.tar",
    ],
)
def test_no_message_about_an_address_has_its_secrets(tmp_path: Path, address: str) -> None:
    with pytest.raises(CorrflowError) as caught:
        open_shards(shard_names(address) or [], 3, 6.0, 0, tmp_path, 0.5).__enter__()
    assert "secret" not in str(caught.value).replace("//host:secret/", "")


def test_a_temporary_server_failure_is_retried(shards: Path, tmp_path: Path) -> None:
    """Retries begin after the first success; a permanent failure ends the run at once."""
    failures = {"shard-000001.tar": ["503", "short", "429"], "shard-000002.tar": ["404"]}
    with served(shards, failures) as (address, requests):
        files = Downloads([f"{address}/shard-{index:06d}.tar" for index in range(3)], tmp_path, 5.0, (0.01,) * 3)
        for index in range(2):
            assert files.path(index).read_bytes() == (shards / f"shard-{index:06d}.tar").read_bytes()
        assert requests["shard-000001.tar"] == 4
        with pytest.raises(CorrflowError, match="HTTP 404"):
            files.path(2)
        assert requests["shard-000002.tar"] == 1


def test_damaged_shards_are_one_sentence(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "shard-000000.tar").read_bytes()
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 77])
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "none.tar", "w") as tar:
        tar.add(shards / "plan.json", "a.json")
    for name in ("text", "cut", "empty", "none"):
        with pytest.raises(InputError, match=r"expected (a tar file|a sample of at least 3 frames) in .*" + name):
            open_shards([str(tmp_path / f"{name}.tar")], 3, 6.0, 0, tmp_path, 1.0).__enter__()
    start, size = read_index(shards / "shard-000000.tar", "")[0].places[1]
    damaged = bytearray(whole)
    damaged[start : start + size] = bytes(size)
    (tmp_path / "frame.tar").write_bytes(damaged)
    with (
        open_shards([str(tmp_path / "frame.tar")], 12, 6.0, 0, tmp_path, 1.0) as videos,
        pytest.raises(CorrflowError, match=f"frame at byte {start} of .*frame.tar is damaged"),
    ):
        for number in range(8):
            videos.sample(number, 12, np.random.default_rng(number))
    with pytest.raises(InputError, match="shards of 8 frames a second, got 6"):
        open_shards(names_of(shards), 3, 8.0, 0, tmp_path, 1.0).__enter__()
    with pytest.raises(InputError, match="all local files or all on the web"):
        open_shards(["a.tar", "http://h/b.tar"], 3, 8.0, 0, tmp_path, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_a_shard_is_a_corrflow_error(shards: Path, tmp_path_factory, data) -> None:
    content = bytearray((shards / "shard-000000.tar").read_bytes()[:20480])
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, 15)) * 512 + data.draw(st.integers(0, 511))
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "shard.tar"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for sample in read_index(path, "it"):
            assert all(start >= 0 and start + size <= path.stat().st_size for start, size in sample.places.tolist())
    except CorrflowError as error:
        assert "\n" not in str(error)


def test_shards_of_other_software_are_read(tmp_path: Path) -> None:
    """The tar file contains folders, names of different lengths, other files and links."""
    image = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    (tmp_path / "p").write_bytes(image)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for video in ("x/one", "y/one"):
            for frame in (2, 0, 1):
                tar.add(tmp_path / "p", f"{video}.{frame}.png")
        tar.add(tmp_path / "p", "x/one.txt")
        link = tarfile.TarInfo("x/one.9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    samples = read_index(tmp_path / "a.tar", "")
    assert [len(sample.places) for sample in samples] == [3, 3]
    # The frames were written in the order 2, 0, 1.
    assert all(sample.places[:, 0].argsort().tolist() == [2, 0, 1] for sample in samples)
    with open_shards([str(tmp_path / "a.tar")], 3, 6.0, 0, tmp_path, 1.0) as videos:
        assert videos.sample(0, 3, np.random.default_rng(0))[0].shape == (40, 40, 3)


def command(data: str, out: Path, *options: str, processes: int = 1) -> list[str]:
    module = ["-m", "corrflow.train"]
    if processes > 1:
        module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *module]
    return [
        sys.executable, *module, "--data", data, "--out", str(out), "--cache", str(out.parent / "cache"),
        "--batch", "2", "--crop", "32", "--radius", "2", "--threads", "1", "--device", "cpu", "--precision", "float32",
        "--log-images-every", "1000", "--save-every", "2", "--steps", "16", *options,
    ]  # fmt: skip


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = load_checkpoint(first), load_checkpoint(second)
    assert one.step == two.step
    for states, others in ((one.model_state, two.model_state), (one.optimiser, two.optimiser)):
        for name, tensor in states.items():
            assert torch.equal(tensor, others[name]), name


def test_a_run_killed_within_an_epoch_has_the_same_bits(shards: Path, tmp_path: Path) -> None:
    """One run reads local shards without a stop; the other reads over HTTP with three threads and is killed."""
    subprocess.run(command(str(shards), tmp_path / "whole"), check=True, capture_output=True)
    with served(shards) as (address, _):
        line = command(f"{address}/shard-{{000000..000004}}.tar", tmp_path / "killed", "--workers", "3")
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / FILE_NAME).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert load_checkpoint(tmp_path / "killed").step < 16, "the kill came after the end of the run"
        done = subprocess.run(line, check=True, capture_output=True, text=True)
    assert "resuming" in done.stderr and "5 shards" in done.stderr
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    lines = (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 17))
    names = "\n".join(Path(name).name for name in names_of(shards))
    expected = {"count": 5, "sha256": hashlib.sha256(names.encode()).hexdigest()}
    assert load_checkpoint(tmp_path / "killed").provenance["sources"] == expected


def test_two_processes_train_from_shards_as_one_process(shards: Path, tmp_path: Path) -> None:
    with served(shards) as (address, requests):
        for processes in (1, 2):
            line = command(
                f"{address}/shard-{{000000..000004}}.tar", tmp_path / str(processes), "--precision", "float64",
                "--steps", "3", processes=processes,
            )  # fmt: skip
            done = subprocess.run(line, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            if processes == 1:
                single = sum(requests.values())
        assert sum(requests.values()) == 2 * single, "two processes of a machine download each shard once"
    one, two = load_checkpoint(tmp_path / "1"), load_checkpoint(tmp_path / "2")
    for name, tensor in one.model_state.items():
        torch.testing.assert_close(two.model_state[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_missing_shard_stops_the_command_with_a_sentence(shards: Path, tmp_path: Path) -> None:
    """The exit code is 2, without output, for the first shard, and 1 for a later shard."""
    with served(shards) as (address, _):
        done = subprocess.run(command(f"{address}/none.tar", tmp_path / "a"), capture_output=True, text=True)
        assert done.returncode == 2 and "HTTP 404" in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "a").exists()
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    first = ShardOrder(5, 0).shard_of(0)
    (copy / f"shard-{(first + 1) % 5:06d}.tar").write_text("damaged")
    done = subprocess.run(command(str(copy), tmp_path / "b"), capture_output=True, text=True)
    assert done.returncode == 1 and "expected a tar file" in done.stderr and "Traceback" not in done.stderr


def test_keep_every_retains_checkpoints(shards: Path, tmp_path: Path) -> None:
    line = command(str(shards), tmp_path / "run", "--steps", "5", "--keep-every", "2")
    subprocess.run(line, check=True, capture_output=True)
    retained = sorted((tmp_path / "run" / "retained").iterdir())
    assert [path.name for path in retained] == ["0000002.safetensors", "0000004.safetensors"]
    assert [load_checkpoint(path).step for path in retained] == [2, 4]


def test_clips_from_images_change_no_other_clip(shards: Path, tmp_path: Path) -> None:
    from corrflow.train.data.clips import open_cache

    cv2.imwrite(str(tmp_path / "image.png"), np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    images = open_cache([tmp_path / "image.png"], 6.0, 64, tmp_path / "cache")
    with local(shards, ShardOrder(5, 0)) as videos:
        alone = ClipSampler(videos, None, SMALL)
        mixed = ClipSampler(videos, images, replace(SMALL, image_share=0.5))
        same = [np.array_equal(alone.clip(number), mixed.clip(number)) for number in range(40)]
    assert 8 < sum(same) < 32


@pytest.mark.faults
@pytest.mark.parametrize(("pause", "reason"), [(0.0, "more than 100000 bytes"), (0.05, "bytes in 0 s")])
def test_a_server_that_never_ends_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float, reason: str
) -> None:
    class Endless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(10 if pause else 10_000))
                    time.sleep(pause)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(download, "MAX_SHARD_BYTES", 100_000)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        files = Downloads([f"http://127.0.0.1:{server.server_address[1]}/a.tar"], tmp_path / "shards", 0.2, ())
        with pytest.raises(CorrflowError, match=f"got .*{reason}"):
            files.path(0)
        server.shutdown()
    assert not list((tmp_path / "shards").glob("*.tar"))
