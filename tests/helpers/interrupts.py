"""Interrupts corrflow-track and corrflow-batch at random moments, and checks that they end in time and lose nothing.

    python tests/helpers/interrupts.py --track 400 --batch 100 [--seed 0] [--load 1]

Each run is a fork of this process, which has imported everything, so that most signals come while it works. Earlier
results are in place: after every interrupt there has to be a whole result, the earlier or the new one.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

LIMIT, HUNG = 2.0, 15.0  # seconds
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HEIGHT, WIDTH = 96, 128
_MODULES = (
    "corrflow.runtime.commands.track", "corrflow.runtime.batch.command", "corrflow.runtime.tracking.tracker",
    "corrflow.runtime.formats.overlay_video", "corrflow.runtime.formats.jsonl", "corrflow.runtime.formats.mask_png",
    "corrflow.runtime.backends.onnxruntime_cpu", "multiprocessing.popen_spawn_posix",
)  # fmt: skip


def make_clip(path: Path, frames: int) -> None:
    """Write a video of a square that moves."""
    background = np.random.default_rng(0).integers(60, 120, (HEIGHT, WIDTH, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for index in range(frames):
            image = background.copy()
            left = 10 + index % 60
            image[30:60, left : left + 30] = (30, 30, 200)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))


def save_mask(path: Path) -> None:
    """Write the mask of the square on the first frame."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[30:60, 10:40] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def fork(module: str, arguments: list[str], log: Path) -> int:
    """Run a command in a fork of this process, in a group of its own; return the fork's number."""
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    output = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [module, *arguments]
    code: object = 1
    try:
        importlib.import_module(module).main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    # Ends as Python does, without the blocks of this program around the fork.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def run(module: str, arguments: list[str], log: Path) -> None:
    """Run a command to its end."""
    _, status = os.waitpid(fork(module, arguments, log), 0)
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()


def interrupt(
    module: str, arguments: list[str], log: Path, dice: random.Random, longest: float
) -> tuple[int, float, int]:
    """Interrupt a command at a random moment; return the signal, the seconds until its end, and its exit code."""
    child = fork(module, arguments, log)
    number = dice.choice(SIGNALS)
    time.sleep(dice.random() * longest)
    sent = time.monotonic()
    try:
        (os.killpg if dice.random() < 0.5 else os.kill)(child, number)
    except ProcessLookupError:  # before its own group, or after its end
        os.kill(child, number)
    while time.monotonic() - sent < HUNG:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return number, time.monotonic() - sent, os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return number, HUNG, -9


def check_track(folder: Path) -> int:
    """Check that every result is whole; return the number of frames."""
    lines = [json.loads(line) for line in (folder / "c.jsonl").read_text().splitlines()]
    with av.open(str(folder / "c.mp4")) as container:
        shown = sum(1 for _ in container.decode(video=0))
    masks = sorted((folder / "masks").iterdir())
    for path in masks:
        np.asarray(Image.open(path))
    assert [line["frame"] for line in lines] == list(range(len(lines))) and lines, "c.jsonl"
    assert shown and masks, "no frames"
    return len(lines)


def digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b""))
    return total.hexdigest()


def tries_of_track(root: Path, count: int, dice: random.Random, report: Callable[[str, int, float, int], None]) -> None:
    """Interrupt corrflow-track."""
    folder, module = root / "track", "corrflow.runtime.commands.track_cli"
    folder.mkdir()
    make_clip(folder / "clip.mp4", 100)
    save_mask(folder / "m.png")
    arguments = [str(folder / "clip.mp4"), "--init", str(folder / "m.png"), "--threads", "1", "--model", "fast"]
    for option, name in (("--save", "c.mp4"), ("--jsonl", "c.jsonl"), ("--masks", "masks")):
        arguments += [option, str(folder / name)]
    begin = time.monotonic()
    run(module, arguments, folder / "log")
    seconds = time.monotonic() - begin
    assert check_track(folder) == 100
    for _ in range(count):
        number, took, code = interrupt(module, arguments, folder / "log", dice, 1.1 * seconds)
        check_track(folder)
        report("track", number, took, code)
        if "Traceback" in (text := (folder / "log").read_text()):
            print(text)
    for part in folder.glob(".*.part"):
        print("left over:", part.name)


def tries_of_batch(root: Path, count: int, dice: random.Random, report: Callable[[str, int, float, int], None]) -> None:
    """Interrupt corrflow-batch; half of its items are finished before."""
    folder, module = root / "batch", "corrflow.runtime.commands.batch_cli"
    (folder / "videos").mkdir(parents=True)
    for name in "abcd":
        make_clip(folder / "videos" / f"{name}.mp4", 20)
        save_mask(folder / "labels" / f"{name}.png")
    out = folder / "out"
    arguments = ["--labels", str(folder / "labels"), "--out", str(out), "--threads", "1", "--workers", "2"]
    arguments += ["--model", "fast"]
    run(module, [str(folder / "videos" / "[ab].mp4"), *arguments], folder / "log")
    finished = {name: digest(out / name) for name in "ab"}
    begin = time.monotonic()
    run(module, [str(folder / "videos"), *arguments], folder / "log")
    seconds = time.monotonic() - begin
    whole = {name: digest(out / name) for name in "cd"}
    for _ in range(count):
        for name in whole:
            shutil.rmtree(out / name, ignore_errors=True)
        number, took, code = interrupt(module, [str(folder / "videos"), *arguments], folder / "log", dice, seconds)
        assert all(digest(out / name) == value for name, value in finished.items()), "a finished result changed"
        made = [path.name for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")]
        assert all(digest(out / name) == {**finished, **whole}[name] for name in made), "half a result"
        states = {one["name"]: one["state"] for one in json.loads((out / "manifest.json").read_text())["items"]}
        if code == 128 + number:
            assert "running" not in states.values(), states
        report("batch", number, took, code)
        if "Traceback" in (text := (folder / "log").read_text()):
            print(text)
    run(module, [str(folder / "videos"), *arguments], folder / "log")
    assert not (out / ".staging").exists()


def main() -> int:
    """Interrupt as often as the options say; return 1 if a run ended late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--track", type=int, default=14)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load", type=int, default=0, help="busy processes beside")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in _MODULES:
        importlib.import_module(module)
    dice, codes, longest = random.Random(options.seed), Counter[str](), [0.0]
    late: list[str] = []

    def report(name: str, number: int, took: float, code: int) -> None:
        kind = "ended before" if code == 0 else f"exit {code}" if code > 0 else f"killed by {-code}"
        codes[f"{name} {signal.Signals(number).name} {kind}"] += 1
        longest[0] = max(longest[0], took)
        if took > LIMIT:
            late.append(f"{name} {signal.Signals(number).name}: {took:.1f} s")
            print(late[-1], flush=True)

    spin = [sys.executable, "-c", "while True: pass"]
    root = Path(tempfile.mkdtemp())  # a TemporaryDirectory would end with the first fork
    busy = [subprocess.Popen(spin) for _ in range(options.load)]
    try:
        tries_of_track(root, options.track, dice, report)
        tries_of_batch(root, options.batch, dice, report)
    finally:
        shutil.rmtree(root)
        for process in busy:
            process.kill()
    for name, amount in sorted(codes.items()):
        print(f"{amount:5} {name}")
    print(
        f"{sum(codes.values())} interrupts, {len(late)} ended after more than {LIMIT} s, the longest {longest[0]:.2f} s"
    )
    return bool(late)


if __name__ == "__main__":
    sys.exit(main())
