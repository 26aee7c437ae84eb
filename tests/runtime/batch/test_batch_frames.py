"""Every output frame is its source frame, upright and at its time; added labels track again what they change alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
from helpers.counting import Counting, counting_tracker
from PIL import Image

from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.label_discovery import LabelSource, find_annotations
from corrflow.runtime.batch.process_item import Job, finished_result, process_item
from corrflow.runtime.formats.registry import FORMATS
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import MaskObject

SIZE = (64, 96)
UNEVEN = [0.0, 0.04, 0.13, 0.17, 0.4, 0.41, 0.9, 0.94]  # seconds
EVEN = [index / 25 for index in range(8)]


def square(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[24 + index : 44 + index, 30 + 2 * index : 50 + 2 * index] = True
    return mask


def upright(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Render a moving square, and a corner whose grey level is the number of the frame."""
    image = np.random.default_rng(0).integers(60, 120, (*size, 3), np.uint8)
    image[square(index, size)] = (30, 30, 200)
    image[:8, :8] = 30 * index
    return image


def turned_video(path: Path, turn: int, times: list[float]) -> Path:
    """Write a video that is stored rotated, with the rotation in its metadata, as telephones do."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "g": "4"})
        lying = [np.rot90(upright(index), -turn // 90) for index in range(len(times))]
        stream.height, stream.width = lying[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.set_display_rotation(turn)
        for image, time in zip(lying, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def save_square(path: Path, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(square(index).astype(np.uint8) * 255).save(path)


@pytest.fixture(scope="module")
def tracker(small_artifact: Path) -> Iterator[Tracker]:
    with counting_tracker(small_artifact) as tracker:
        yield tracker


def job_in(folder: Path, formats: tuple[str, ...], keep: bool = True) -> Job:
    (folder / "out" / ".staging").mkdir(parents=True, exist_ok=True)
    return Job(folder / "labels", folder / "out", folder / "out" / ".staging", formats, "test", keep)


def do(job: Job, video: Path, tracker: Tracker) -> int:
    """Do it; returns how many frames were encoded, which is what tracking costs."""
    assert isinstance(tracker.backend, Counting)
    before = tracker.backend.encoded
    assert process_item(job, Item(video.stem, video), tracker, lambda done, announced: None).frames == 8
    return tracker.backend.encoded - before


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under NumPy 2
@pytest.mark.parametrize("times", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("turn", [90, 180, 270])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_turned_video_comes_out_upright_and_in_time(
    tmp_path: Path, tracker: Tracker, turn: int, times: list[float], suffix: str
) -> None:
    video = turned_video(tmp_path / f"clip{suffix}", turn, times)
    save_square(tmp_path / "labels" / "clip" / "00003.png", 3)
    (tmp_path / "labels" / "clip.csv").write_text("frame,object,name,x,y\n0,dot,corner,30,24\n")
    do(job_in(tmp_path, tuple(FORMATS)), video, tracker)
    out = tmp_path / "out" / "clip"

    # OpenCV turns by its own code: what it shows is what is written.
    reader = cv2.VideoCapture(str(video))
    with av.open(str(out / "overlay.mp4")) as container:
        shown = list(container.decode(video=0))
    assert len(shown) == 8 and all(frame.rotation == 0 for frame in shown)
    assert [float(frame.time or 0) for frame in shown] == pytest.approx(times, abs=1e-3)
    for index, frame in enumerate(shown):
        seen = reader.read()[1]
        image = cv2.imread(str(out / "youtube-vos" / "JPEGImages" / "clip" / f"{index:05d}.jpg"))
        assert image is not None and seen.shape == image.shape == (*SIZE, 3)
        assert np.abs(seen.astype(int) - image).mean() < 8
        assert abs(float(image[2:6, 2:6].mean()) - 30 * index) < 12
        overlay = frame.to_ndarray(format="bgr24")
        assert overlay.shape == (*SIZE, 3) and abs(float(overlay[2:6, 2:6].mean()) - 30 * index) < 12
    reader.release()

    lines = [json.loads(line) for line in (out / "tracks.jsonl").read_text().splitlines()]
    coco = json.loads((out / "coco.json").read_text())
    by_time = [
        [line["time"] for line in lines],
        [image["time"] for image in coco["images"]],
        [float(row["time"]) for row in rows(out / "points.csv")],
        [float(row["time"]) for row in rows(out / "boxes.csv")],
    ]
    for stated in by_time:
        assert stated == pytest.approx(times, abs=1e-3)
    assert {(image["height"], image["width"]) for image in coco["images"]} == {SIZE}
    cvat = ElementTree.parse(out / "cvat.xml")
    (size,) = cvat.iter("original_size")
    assert (size.findtext("height"), size.findtext("width")) == ("64", "96")
    assert len(list(cvat.iter("polygon"))) + len(list(cvat.iter("box"))) == 8

    for index in range(8):
        mask = np.asarray(Image.open(out / "masks" / f"{index:05d}.png"))
        true = square(index)
        assert mask.shape == SIZE
        assert np.count_nonzero((mask == 1) & true) / np.count_nonzero((mask == 1) | true) > 0.5, index
        assert np.array_equal(np.asarray(Image.open(out / "objects" / "1" / f"{index:05d}.png")) == 255, mask == 1)
        x, y = (float(rows(out / "points.csv")[index][name]) for name in ("x", "y"))
        assert abs(x - 30 - 2 * index) < 8 and abs(y - 24 - index) < 8, index
    with np.load(out / "tapvid.npz") as arrays:
        places = arrays["points"][0] * SIZE[::-1] - 0.5
    assert places == pytest.approx(
        np.array([[float(row[n]) for n in "xy"] for row in rows(out / "points.csv")]), abs=0.01
    )
    # As labels of a next run, formats with sides or shares of them in it give the same masks on the same frames.
    for place, name in (
        ("coco.json", "clip.json"),
        ("cvat.xml", "clip.xml"),
        ("labelme", "clip"),
        ("yolo-seg/labels", "clip"),
    ):
        again = tmp_path / place.replace("/", " ")
        again.mkdir()
        (out / place).rename(again / name)
        labels = find_annotations(LabelSource(again, "clip", Path("clip.mp4")), lambda: SIZE)
        assert len(labels.frames) == 8
        for frame in labels.frames:
            (given,) = (
                one for one in (packed.unpacked() for packed in labels.objects[frame]) if isinstance(one, MaskObject)
            )
            own = np.asarray(Image.open(out / "masks" / f"{int(frame):05d}.png")) == 1
            assert_within_a_pixel(given.mask, own)  # polygons are simplified


def assert_within_a_pixel(mask: np.ndarray, true: np.ndarray) -> None:
    kernel = np.ones((3, 3), np.uint8)
    grown, shrunk = (operation(true.astype(np.uint8), kernel) > 0 for operation in (cv2.dilate, cv2.erode))
    assert not (mask & ~grown).any() and not (shrunk & ~mask).any()


def results(folder: Path) -> dict[str, bytes]:
    """Return the written files without the passes, which may be longer after fewer labels, and without their list."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".passes" not in path.parts and path.name != "item.json"
    }


def test_one_label_more_tracks_from_and_to_that_label_alone(tmp_path: Path, tracker: Tracker) -> None:
    video, folder = turned_video(tmp_path / "clip.mp4", 0, EVEN), tmp_path / "labels" / "clip"
    job = job_in(tmp_path, ("davis", "jsonl"))
    for index in (0, 5):
        save_square(folder / f"{index:05d}.png", index)
    assert do(job, video, tracker) == 5 + 8  # from 5 back to 1, and forward all the way
    first = results(tmp_path / "out" / "clip")
    assert finished_result(job, Item("clip", video)) is not None

    save_square(folder / "00003.png", 3)
    assert finished_result(job, Item("clip", video)) is None
    assert do(job, video, tracker) == 3 + 2  # from 3 back to 1, and on to 4
    added = results(tmp_path / "out" / "clip")
    # The frames after 5 depend on no other label than that of 5.
    assert all(added[f"masks/{index:05d}.png"] == first[f"masks/{index:05d}.png"] for index in (0, 5, 6, 7))

    save_square(folder / "00005.png", 6)  # drawn again
    assert do(job, video, tracker) == 2 + 3  # from 5 back to 4, and on to the end
    changed = results(tmp_path / "out" / "clip")

    fresh = job_in(tmp_path / "fresh", job.formats, keep=False)
    fresh = Job(job.annotations, fresh.out, fresh.staging, job.formats, job.model, False)
    assert do(fresh, video, tracker) == 3 + 2 + 8  # from 3 and 5 backward, and all the way forward
    assert results(fresh.out / "clip") == changed
    assert not (fresh.out / "clip" / ".passes").exists()
    assert do(fresh, video, tracker) == 3 + 2 + 8  # nothing was kept


def test_another_format_alone_tracks_nothing(tmp_path: Path, tracker: Tracker) -> None:
    video = turned_video(tmp_path / "clip.mp4", 0, EVEN)
    save_square(tmp_path / "labels" / "clip.png", 0)
    assert do(job_in(tmp_path, ("davis",)), video, tracker) == 8
    assert do(job_in(tmp_path, ("davis", "coco")), video, tracker) == 0
