"""What several test files share: the oracle of the op, a small artifact, and the data that users do not have."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.crashes import pytest_testnodedown  # noqa: F401 (a hook)
from helpers.davis import add_davis_sequence
from helpers.paths import SHARED_DATA, TESTS

SLOW_FILES = frozenset((TESTS / "slow_files.txt").read_text().split("\n\n")[1].split())
"""Paths of the test files that `scripts/test fast` leaves out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--batch-files", type=int, default=16, help="files of the fault suite of corrflow-batch")
    parser.addoption("--train-kills", type=int, default=2, help="how often a training run is killed")
    parser.addoption("--batch-kills", type=int, default=3, help="how often that suite is killed")
    parser.addoption("--soak-seconds", type=float, default=10.0, help="seconds of the live soak")


def pytest_configure() -> None:
    """Take signals again that nohup or a background shell lets this process ignore: commands would inherit that."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if item.path.relative_to(TESTS).as_posix() in SLOW_FILES:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips with real masks; skips where they are not beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the development data is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an untrained quarter-width encoder, 64 rows, three recent frames, a window of 5x5, top 10."""
    from corrflow.export.to_onnx import export_artifact
    from corrflow.runtime.settings import TrackingSettings

    folder = tmp_path_factory.mktemp("artifacts") / "small"
    settings = TrackingSettings(short_side=64, recent_offsets=(1, 2, 3), radius=(2,), top_k=10, temperature=0.1)
    export_artifact("random-init:quarter", folder, settings, (64, 96))
    return folder


@pytest.fixture(scope="session")
def following_artifact(small_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small artifact with windows that follow, the given frame's denser than the others'."""
    from dataclasses import replace

    from corrflow.export.step_graph import graphs_of_settings
    from corrflow.runtime.artifacts.artifact import ENCODE, load_artifact, save_artifact

    small, folder = load_artifact(small_artifact), tmp_path_factory.mktemp("artifacts") / "following"
    settings = replace(small.settings, radius=(4, 3), dilation=(1, 2), move_windows=True)
    files = small.files | graphs_of_settings(small.files[ENCODE], settings, small.channels)
    save_artifact(folder, files, small.channels, settings, small.provenance)
    return folder


@pytest.fixture(scope="session")
def crossing() -> tuple[np.ndarray, np.ndarray]:
    """A red square that crosses a grey picture of texture, 6 pixels a frame, [12, 64, 120, 3] uint8, and its masks.

    A blue one stands still at rows 42 to 61 and columns 70 to 89. There is noise of each frame's own: what stands still
    would tie over references.
    """
    generator = np.random.default_rng(1)
    background = generator.integers(60, 120, (64, 120, 3), np.uint8)
    texture = generator.integers(0, 60, (20, 20, 1), np.uint8)
    frames, masks = np.repeat(background[None], 12, 0), np.zeros((12, 64, 120), bool)
    for t in range(12):
        frames[t, 20:40, 8 + 6 * t : 28 + 6 * t] = np.array([30, 30, 180], np.uint8) + texture
        masks[t, 20:40, 8 + 6 * t : 28 + 6 * t] = True
        frames[t, 42:62, 70:90] = np.array([180, 60, 30], np.uint8) + texture
    return frames + generator.integers(0, 20, frames.shape, np.uint8), masks


@pytest.fixture(scope="session")
def moving_square() -> tuple[np.ndarray, np.ndarray]:
    """Eight textured frames [8, 66, 98, 3] uint8 in which a red square moves 2 pixels a frame, and its masks."""
    generator = np.random.default_rng(0)
    background = generator.integers(60, 120, (66, 98, 3), np.uint8)
    texture = generator.integers(0, 60, (20, 20, 1), np.uint8)
    frames, masks = [], []
    for t in range(8):
        frame, mask = background.copy(), np.zeros((66, 98), bool)
        top, left = 14 + t, 20 + 2 * t
        frame[top : top + 20, left : left + 20] = np.array([30, 30, 180], np.uint8) + texture
        mask[top : top + 20, left : left + 20] = True
        frames.append(frame)
        masks.append(mask)
    return np.stack(frames), np.stack(masks)


@pytest.fixture
def small_davis(tmp_path: Path) -> Path:
    """Six frames of 24x40 pixels, twice: "two" has object 1, which moves, and 5, which does not; "one" a moving one."""
    folder = tmp_path / "davis"
    moving = np.zeros((6, 24, 40), np.uint8)
    for index, mask in enumerate(moving):
        mask[1:9, 2 + 2 * index : 10 + 2 * index] = 1
    still = moving.copy()
    still[:, 13:21, 2:10] = 5
    add_davis_sequence(folder, "two", list(still))
    add_davis_sequence(folder, "one", list(moving * 255))
    return folder


@pytest.fixture(scope="session")
def hidden(moving_square) -> tuple[np.ndarray, np.ndarray]:
    """The square of eight frames there and back, with a blue plank over it on frames 4 to 7, and its true masks."""
    frames, masks = (np.concatenate([part, part[-2:0:-1]]).copy() for part in moving_square)
    for t in range(4, 8):
        rows, columns = np.flatnonzero(masks[t].any(1)), np.flatnonzero(masks[t].any(0))
        frames[t, rows[0] - 3 : rows[-1] + 4, columns[0] - 3 : columns[-1] + 4] = (200, 90, 20)
    return frames, masks


@pytest.fixture(scope="session")
def gpu_wheels() -> Callable[[str], Path]:
    """The folder of one of scripts/gpu-wheels; skips where it was not installed, which is a failure in CI."""

    def folder(name: str) -> Path:
        found = Path(sys.prefix) / "gpu-wheels" / name
        if not found.is_dir():
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {name}: bash scripts/gpu-wheels installs it")
        return found

    return folder
