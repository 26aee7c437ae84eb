"""Formats by name: readers of annotations and writers of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.boxes_csv import BoxCsvSink, is_boxes, read_boxes
from corrflow.runtime.formats.coco import CocoSink, read_coco
from corrflow.runtime.formats.cvat import CvatSink, read_cvat
from corrflow.runtime.formats.deeplabcut import DeepLabCutSink, is_deeplabcut, read_deeplabcut
from corrflow.runtime.formats.deeplabcut_h5 import DeepLabCutH5Sink, read_deeplabcut_h5
from corrflow.runtime.formats.html_report import ReportSink
from corrflow.runtime.formats.image_folders import BinaryMaskSink, CutoutSink
from corrflow.runtime.formats.jsonl import JsonLinesSink
from corrflow.runtime.formats.labelme import LabelMeSink, read_labelme
from corrflow.runtime.formats.mask_png import MaskFolderSink, read_mask_objects
from corrflow.runtime.formats.overlay_video import VideoSink
from corrflow.runtime.formats.points_csv import KeypointCsvSink, read_keypoints, read_points_by_frame
from corrflow.runtime.formats.sleap import SleapSink, read_sleap
from corrflow.runtime.formats.tapvid import TapVidSink
from corrflow.runtime.formats.yolo import YoloSink, read_yolo
from corrflow.runtime.formats.youtube_vos import YouTubeVosSink
from corrflow.runtime.types import MaskObject, TrackedObject
from corrflow.runtime.video.open_source import NOMINAL_FRAMES_PER_SECOND, FrameSource

FORMATS: dict[str, Callable[[Path, FrameSource], Sink]] = {
    "davis": lambda folder, source: MaskFolderSink(folder / "masks"),
    "binary": lambda folder, source: BinaryMaskSink(folder / "objects"),
    "csv": lambda folder, source: KeypointCsvSink(folder / "points.csv"),
    "coco": lambda folder, source: CocoSink(folder / "coco.json"),
    "youtube-vos": lambda folder, source: YouTubeVosSink(folder / "youtube-vos", source.name),
    "labelme": lambda folder, source: LabelMeSink(folder / "labelme"),
    "cvat": lambda folder, source: CvatSink(folder / "cvat.xml"),
    "yolo-seg": lambda folder, source: YoloSink(folder / "yolo-seg", "segment"),
    "yolo-pose": lambda folder, source: YoloSink(folder / "yolo-pose", "pose"),
    "deeplabcut": lambda folder, source: DeepLabCutSink(folder / "deeplabcut.csv"),
    "deeplabcut-h5": lambda folder, source: DeepLabCutH5Sink(folder / "deeplabcut.h5"),
    "sleap": lambda folder, source: SleapSink(folder / "tracks.slp", source.name),
    "tapvid": lambda folder, source: TapVidSink(folder / "tapvid.npz"),
    "boxes": lambda folder, source: BoxCsvSink(folder / "boxes.csv"),
    "cutouts": lambda folder, source: CutoutSink(folder / "cutouts"),
    "jsonl": lambda folder, source: JsonLinesSink(folder / "tracks.jsonl"),
    "report": lambda folder, source: ReportSink(folder / "report.html", source.name),
    "overlay": lambda folder, source: VideoSink(
        folder / "overlay.mp4", source.frames_per_second or NOMINAL_FRAMES_PER_SECOND
    ),
}


FIRST = 0


def _read(
    path: Path, folder: Path, name: str, frame_size: Callable[[], tuple[int, int]]
) -> Mapping[int | str, Sequence[TrackedObject]]:
    if path.parent.parent == folder / name and path.suffix == ".png":
        return {path.stem: [_mask_of_folder(path)]}
    frame = FIRST if path.parent == folder else path.stem
    if path.suffix == ".png":
        return {frame: read_mask_objects([path])}
    if path.suffix == ".txt":
        return {frame: read_yolo(path, frame_size())}
    if path.suffix == ".xml":
        return read_cvat(path)
    if path.suffix == ".slp":
        return dict(read_sleap(path))
    if path.suffix == ".h5":
        return dict(read_deeplabcut_h5(path))
    if path.suffix == ".csv":
        return _read_table(path, frame_size)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"expected JSON in {path}, got a file that cannot be read ({type(error).__name__})") from error
    if isinstance(content, dict) and "shapes" in content:
        return {frame: read_labelme(content, path)}
    if path.parent != folder:
        raise InputError(f"expected LabelMe JSON in {path}, got no shapes; put COCO beside it, as {name}.json")
    return read_coco(content, path)


def _read_table(path: Path, frame_size: Callable[[], tuple[int, int]]) -> dict[int | str, list[TrackedObject]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first_line = file.readline(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a CSV of points or boxes in {path}, got a file that is none ({error})") from error
    found: Mapping[int, Sequence[TrackedObject]] | Mapping[int | str, Sequence[TrackedObject]]
    if is_deeplabcut(first_line):
        found = read_deeplabcut(path)
    elif is_boxes(first_line):
        found = read_boxes(path, frame_size())
    else:
        found = read_points_by_frame(path)
    return {frame: list(objects) for frame, objects in found.items()}


def _mask_of_folder(path: Path) -> MaskObject:
    """The folder is the object: a number is its id, another word its name."""
    drawn = read_mask_objects([path])
    if len(drawn) > 1:
        raise InputError(f"expected a black and white mask of one object in {path}, got {len(drawn)} values")
    word = path.parent.name
    number = int(word) if word.isascii() and word.isdigit() else 0
    return replace(drawn[0], id=number, name="" if number else word)


def read_objects(masks: Sequence[Path], keypoints: Path | None) -> list[TrackedObject]:
    """The objects of mask files and, with the ids after theirs, of a file of keypoints."""
    objects: list[TrackedObject] = list(read_mask_objects(masks))
    if keypoints is not None:
        objects += read_keypoints(keypoints, max((given.id for given in objects), default=0) + 1)
    return objects
