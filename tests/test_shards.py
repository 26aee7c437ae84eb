"""Training from shards is the same wherever they lie, wherever it stopped, and however many draw from them."""

from __future__ import annotations

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.errors import CorrflowError, InputError
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint
from corrflow.train.config import TrainConfig
from corrflow.train.data.clips import ClipSampler
from corrflow.train.data.download import Downloads, public_name
from corrflow.train.data.frames import FrameSampling
from corrflow.train.data.prepare import plan_shards, prepare
from corrflow.train.data.shards import LocalFiles, Order, ShardedVideos, open_shards, read_index, shard_names

SMALL = TrainConfig(steps=4, batch=2, crop=32, radius=2, colours=4, threads=1, image_share=0.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_pictures: Callable[[Path, int], None]) -> Path:
    """Five shards of two videos of twelve frames each."""
    root = tmp_path_factory.mktemp("footage")
    for seed in range(10):
        write_pictures(root / "videos" / str(seed), seed)
    prepare(plan_shards(root / "videos", FrameSampling(6.0, 64), 2, 600.0), root / "shards", 1)
    return root / "shards"


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; a name decides what goes wrong."""

    asked: Counter[str]
    troubles: dict[str, list[str]]

    def do_GET(self) -> None:
        name = Path(self.path.partition("?")[0]).name
        self.asked[name] += 1
        trouble = self.troubles[name].pop(0) if self.troubles.get(name) else ""
        if trouble == "silent":
            time.sleep(3)
            return
        if trouble.isdigit():
            self.send_error(int(trouble))
            return
        if trouble == "short":
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def served(folder: Path, troubles: dict[str, list[str]] | None = None) -> Iterator[tuple[str, Counter[str]]]:
    """The folder on a port of this machine: its address, and how often each name was asked for."""
    asked: Counter[str] = Counter()
    handler = type("Own", (Handler,), {"asked": asked, "troubles": troubles or {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def names_of(folder: Path) -> list[str]:
    found = shard_names(str(folder))
    assert found is not None
    return found


def local(shards: Path, order: Order) -> ShardedVideos:
    return ShardedVideos(names_of(shards), LocalFiles(names_of(shards)), 3, 6.0, order)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 5), st.integers(0, 5))
def test_an_epoch_draws_equally_from_every_shard_and_holds_few_at_a_time(
    shards: int, window: int, clips: int, epoch: int
) -> None:
    order = Order(shards, 3, window, clips)
    first = epoch * shards * clips
    drawn = [order.shard_of(number) for number in range(first, first + shards * clips)]
    assert Counter(drawn) == dict.fromkeys(range(shards), clips)
    for start in range(0, len(drawn), window * clips):
        part = drawn[start : start + window * clips]
        place = order.window_of(first + start)
        assert set(part) == set(order.together(*place)) and len(set(part)) <= window
        following = {drawn[start + window * clips]} if start + window * clips < len(drawn) else set()
        assert following | set(part) <= set(order.from_on(*place))
    # Any clip alone, asked of another object in another order.
    again = Order(shards, 3, window, clips)
    for number in reversed(range(0, len(drawn), 3)):
        assert again.shard_of(first + number) == drawn[number]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        order = Order(20, seed, 4, 2)
        return [order.shard_of(epoch * 40 + number) for number in range(40)]

    assert first(0, 0) != first(0, 1) and first(0, 0) != first(1, 0)


def test_clips_are_the_same_by_whatever_way_they_are_reached(shards: Path, tmp_path: Path) -> None:
    """From the beginning, from the middle, backwards, by four threads, by two processes' shares, and over HTTP."""
    numbers = list(range(60))  # more than one epoch of 5 shards, 2 at a time, 6 clips each
    order = Order(5, 0, 2, 6)
    config = replace(SMALL, crop=48)
    with local(shards, order) as videos:
        expected = [ClipSampler(videos, None, config).clip(number) for number in numbers]
        assert len({clip.tobytes() for clip in expected}) > 55
    with local(shards, Order(5, 0, 2, 6)) as videos:
        sampler = ClipSampler(videos, None, config)
        for number in (37, 59, 4, 22):
            assert np.array_equal(sampler.clip(number), expected[number])
    with local(shards, order) as videos, ThreadPoolExecutor(4) as pool:
        for clip, other in zip(pool.map(ClipSampler(videos, None, config).clip, numbers), expected, strict=True):
            assert np.array_equal(clip, other)
    with served(shards) as (address, asked):
        urls = [f"{address}/{Path(name).name}" for name in names_of(shards)]
        with ShardedVideos(urls, Downloads(urls, tmp_path / "kept", 5.0), 3, 6.0, order) as videos:
            sampler = ClipSampler(videos, None, config)
            for number in numbers:
                assert np.array_equal(sampler.clip(number), expected[number])
                assert len(list((tmp_path / "kept").glob("*.tar"))) <= 5
        assert not list((tmp_path / "kept").glob("*.tar")), "what was fetched is gone at the end"
    assert set(asked) == {Path(name).name for name in names_of(shards)}


def test_of_many_shards_on_the_web_only_those_in_use_are_kept(shards: Path, tmp_path: Path) -> None:
    with served(shards) as (address, asked):
        urls = [f"{address}/shard-{index % 5:06d}.tar?copy={index}" for index in range(30)]
        with ShardedVideos(urls, Downloads(urls, tmp_path, 5.0), 3, 6.0, Order(30, 0, 2, 4)) as videos:
            for number in range(0, 120, 2):
                videos.draw(number, 3, np.random.default_rng(number))
                # Those of the last window, of this one and of the next.
                assert len(list(tmp_path.glob("*.tar"))) <= 6
    assert sum(asked.values()) <= 34, "each is fetched once an epoch"


def test_a_shard_that_several_ask_for_is_fetched_once(shards: Path, tmp_path: Path) -> None:
    with served(shards) as (address, asked), ThreadPoolExecutor(4) as threads:
        urls = [f"{address}/shard-000000.tar"]
        paths = list(threads.map(lambda _: Downloads(urls, tmp_path, 5.0).path(0), range(4)))
    assert len(set(paths)) == 1 and paths[0].is_file()
    assert asked == {"shard-000000.tar": 1}


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


@pytest.mark.parametrize("trouble", ["404", "403", "503", "silent", "short"])
def test_what_is_wrong_at_once_is_one_sentence(shards: Path, tmp_path: Path, trouble: str) -> None:
    said = {"404": "HTTP 404", "403": "HTTP 403", "503": "HTTP 503", "silent": "no byte for 0.5 s", "short": "bytes of"}
    with served(shards, {"shard-000000.tar": [trouble]}) as (address, _):
        urls = [f"{address}/shard-000000.tar?key=secret"]
        with pytest.raises(InputError, match=said[trouble]) as caught:
            open_shards(urls, 3, 6.0, 0, tmp_path, 0.5).__enter__()
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert not list(tmp_path.glob("*tar*"))


def test_a_server_that_nobody_runs_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for url, said in ((f"http://127.0.0.1:{port}/a.tar", "Connection refused"), ("http://[::1/a.tar", "Invalid")):
        with pytest.raises(InputError, match=said):
            open_shards([url], 3, 6.0, 0, tmp_path, 2.0).__enter__()


def test_a_server_that_fails_for_a_while_is_asked_again(shards: Path, tmp_path: Path) -> None:
    """Once it has answered; what is missing for good ends the run at once."""
    troubles = {"shard-000001.tar": ["503", "short", "429"], "shard-000002.tar": ["404"]}
    with served(shards, troubles) as (address, asked):
        files = Downloads([f"{address}/shard-{index:06d}.tar" for index in range(3)], tmp_path, 5.0, (0.01,) * 3)
        for index in range(2):
            assert files.path(index).read_bytes() == (shards / f"shard-{index:06d}.tar").read_bytes()
        assert asked["shard-000001.tar"] == 4
        with pytest.raises(CorrflowError, match="HTTP 404"):
            files.path(2)
        assert asked["shard-000002.tar"] == 1


def test_damaged_shards_are_one_sentence(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "shard-000000.tar").read_bytes()
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 77])
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "none.tar", "w") as tar:
        tar.add(shards / "plan.json", "a.json")
    for name in ("text", "cut", "empty", "none"):
        with pytest.raises(InputError, match=r"expected (a tar file|a sample of at least 3 pictures) in .*" + name):
            open_shards([str(tmp_path / f"{name}.tar")], 3, 6.0, 0, tmp_path, 1.0).__enter__()
    start, size = read_index(shards / "shard-000000.tar", "")[0].places[1]
    damaged = bytearray(whole)
    damaged[start : start + size] = bytes(size)
    (tmp_path / "picture.tar").write_bytes(damaged)
    with (
        open_shards([str(tmp_path / "picture.tar")], 12, 6.0, 0, tmp_path, 1.0) as videos,
        pytest.raises(CorrflowError, match=f"picture at byte {start} of .*picture.tar is damaged"),
    ):
        for number in range(8):
            videos.draw(number, 12, np.random.default_rng(number))
    with pytest.raises(InputError, match="shards of 8 frames a second, got 6"):
        open_shards(names_of(shards), 3, 8.0, 0, tmp_path, 1.0).__enter__()
    with pytest.raises(InputError, match="all files here or all on the web"):
        open_shards(["a.tar", "http://h/b.tar"], 3, 8.0, 0, tmp_path, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_shard_is_anything_but_a_corrflow_error(shards: Path, tmp_path_factory, data) -> None:
    content = bytearray((shards / "shard-000000.tar").read_bytes()[:20480])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, 15)) * 512 + data.draw(st.integers(0, 511))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "shard.tar"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for sample in read_index(path, "it"):
            assert all(start >= 0 and start + size <= path.stat().st_size for start, size in sample.places.tolist())
    except CorrflowError as error:
        assert "\n" not in str(error)


def test_shards_of_other_makers_are_read(tmp_path: Path) -> None:
    """Folders in the tar, names that are not padded to one length of key, other files, links."""
    picture = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    (tmp_path / "p").write_bytes(picture)
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
    # Written as 2, 0, 1.
    assert all(sample.places[:, 0].argsort().tolist() == [2, 0, 1] for sample in samples)
    with open_shards([str(tmp_path / "a.tar")], 3, 6.0, 0, tmp_path, 1.0) as videos:
        assert videos.draw(0, 3, np.random.default_rng(0))[0].shape == (40, 40, 3)


def command(data: str, out: Path, *options: str, processes: int = 1) -> list[str]:
    start = ["-m", "corrflow.train"]
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *start]
    return [
        sys.executable, *start, "--data", data, "--out", str(out), "--cache", str(out.parent / "cache"), "--batch", "2",
        "--crop", "32", "--radius", "2", "--threads", "1", "--device", "cpu", "--precision", "float32",
        "--picture-every", "1000", "--save-every", "2", "--steps", "16", *options,
    ]  # fmt: skip


def weights_are_the_same(first: Path, second: Path) -> None:
    one, two = load_checkpoint(first), load_checkpoint(second)
    assert one.step == two.step
    for states, others in ((one.model_state, two.model_state), (one.optimiser, two.optimiser)):
        for name, tensor in states.items():
            assert torch.equal(tensor, others[name]), name


def test_a_run_killed_in_mid_epoch_ends_with_the_same_bits(shards: Path, tmp_path: Path) -> None:
    """One reads the shards here without a stop, the other over HTTP with three threads and is killed."""
    subprocess.run(command(str(shards), tmp_path / "whole"), check=True, capture_output=True)
    with served(shards) as (address, _):
        line = command(f"{address}/shard-{{000000..000004}}.tar", tmp_path / "killed", "--workers", "3")
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / FILE_NAME).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert load_checkpoint(tmp_path / "killed").step < 16, "the kill came too late to show anything"
        done = subprocess.run(line, check=True, capture_output=True, text=True)
    assert "going on with" in done.stderr and "5 shards" in done.stderr
    weights_are_the_same(tmp_path / "whole", tmp_path / "killed")
    lines = (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 17))
    assert load_checkpoint(tmp_path / "killed").provenance["sources"] == [Path(name).name for name in names_of(shards)]


def test_two_processes_train_from_shards_as_one_does(shards: Path, tmp_path: Path) -> None:
    with served(shards) as (address, asked):
        for processes in (1, 2):
            line = command(
                f"{address}/shard-{{000000..000004}}.tar", tmp_path / str(processes), "--precision", "float64",
                "--steps", "3", processes=processes,
            )  # fmt: skip
            done = subprocess.run(line, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            if processes == 1:
                once = sum(asked.values())
        assert sum(asked.values()) == 2 * once, "two processes of a machine fetch what one does"
    one, two = load_checkpoint(tmp_path / "1"), load_checkpoint(tmp_path / "2")
    for name, tensor in one.model_state.items():
        torch.testing.assert_close(two.model_state[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_missing_shard_stops_the_command_with_a_sentence(shards: Path, tmp_path: Path) -> None:
    """Exit code 2 and nothing written where it is the first one, 1 and a checkpoint to go on from later."""
    with served(shards) as (address, _):
        done = subprocess.run(command(f"{address}/none.tar", tmp_path / "a"), capture_output=True, text=True)
        assert done.returncode == 2 and "HTTP 404" in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "a").exists()
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    first = Order(5, 0).shard_of(0)
    (copy / f"shard-{(first + 1) % 5:06d}.tar").write_text("damaged")
    done = subprocess.run(command(str(copy), tmp_path / "b"), capture_output=True, text=True)
    assert done.returncode == 1 and "expected a tar file" in done.stderr and "Traceback" not in done.stderr


def test_kept_checkpoints_stay(shards: Path, tmp_path: Path) -> None:
    line = command(str(shards), tmp_path / "run", "--steps", "5", "--keep-every", "2")
    subprocess.run(line, check=True, capture_output=True)
    kept = sorted((tmp_path / "run" / "kept").iterdir())
    assert [path.name for path in kept] == ["0000002.safetensors", "0000004.safetensors"]
    assert [load_checkpoint(path).step for path in kept] == [2, 4]


def test_photographs_are_mixed_in_and_change_no_other_clip(
    shards: Path, tmp_path: Path, write_video: Callable[..., None]
) -> None:
    from corrflow.train.data.clips import open_cache

    cv2.imwrite(str(tmp_path / "still.png"), np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    stills = open_cache([tmp_path / "still.png"], 6.0, 64, tmp_path / "cache")
    with local(shards, Order(5, 0)) as videos:
        alone = ClipSampler(videos, None, SMALL)
        mixed = ClipSampler(videos, stills, replace(SMALL, image_share=0.5))
        same = [np.array_equal(alone.clip(number), mixed.clip(number)) for number in range(40)]
    assert 8 < sum(same) < 32
