"""Registry of file formats: name, reader, writer, suffixes and sniffer of each.

corrflow-track, corrflow-batch, live sessions and the help texts use this table. The modules of a format are loaded at
their first use, so that a help text appears at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from corrflow.errors import InputError

if TYPE_CHECKING:
    from corrflow.runtime.formats.annotations import AnnotationFile, FrameKey, ReadContext
    from corrflow.runtime.formats.base import Sink
    from corrflow.runtime.types import MaskObject, TrackedObject

_Frames = Mapping[Any, Sequence["TrackedObject"]]


class SourceInfo(Protocol):
    """Name and frame rate of a source, for writers."""

    @property
    def name(self) -> str: ...

    @property
    def frames_per_second(self) -> Fraction | None: ...


@dataclass(frozen=True)
class Format:
    """File format.

    name:     value of `--format`
    title:    line for help texts
    result:   name of the results in the folder of a video
    write:    returns a sink for the results at a path
    suffixes: suffixes of readable files; () for a format that is only written
    read:     returns the objects of a file by frame, from its path and `file_content`
    sniff:    returns True for the `file_content` of this format; None where the suffix decides
    """

    name: str
    title: str
    result: str = ""
    write: Callable[[Path, SourceInfo], Sink] | None = None
    suffixes: tuple[str, ...] = ()
    read: Callable[[Path, Any, ReadContext], _Frames] | None = None
    sniff: Callable[[Any], bool] | None = None


def _sink(module: str, name: str, *arguments: str) -> Callable[[Path, SourceInfo], Sink]:
    """Return a writer that loads its class at the first use; the argument "source" becomes the source's name."""

    def write(path: Path, source: SourceInfo) -> Sink:
        values = [source.name if argument == "source" else argument for argument in arguments]
        return getattr(import_module(f"corrflow.runtime.formats.{module}"), name)(path, *values)

    return write


def _overlay(path: Path, source: SourceInfo) -> Sink:
    from corrflow.runtime.formats.overlay_video import VideoSink
    from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND

    return VideoSink(path, source.frames_per_second or NOMINAL_FRAMES_PER_SECOND)


def _read_mask(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.mask_png import read_mask_objects

    return {context.frame: read_mask_objects([path])}


def _read_points(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.points_csv import read_points_by_frame

    return read_points_by_frame(path)


def _read_boxes(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.boxes_csv import read_boxes

    return read_boxes(path, context.frame_size())


def _read_deeplabcut(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.deeplabcut import read_deeplabcut

    return read_deeplabcut(path)


def _read_deeplabcut_h5(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.deeplabcut_h5 import read_deeplabcut_h5

    return read_deeplabcut_h5(path)


def _read_labelme(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.labelme import read_labelme

    return {context.frame: read_labelme(content, path)}


def _read_coco(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.coco import read_coco

    if context.frame != 0:
        raise InputError(
            f"expected LabelMe JSON in {path}, got no shapes; put COCO beside the folder, as {context.video}.json"
        )
    return read_coco(content, path)


def _read_cvat(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.cvat import read_cvat

    return read_cvat(path)


def _read_sleap(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.sleap import read_sleap

    return read_sleap(path)


def _read_yolo(path: Path, content: Any, context: ReadContext) -> _Frames:
    from corrflow.runtime.formats.yolo import read_yolo

    return {context.frame: read_yolo(path, context.frame_size())}


def _is_boxes(content: Any) -> bool:
    from corrflow.runtime.formats.boxes_csv import is_boxes

    return is_boxes(content)


def _is_deeplabcut(content: Any) -> bool:
    from corrflow.runtime.formats.deeplabcut import is_deeplabcut

    return is_deeplabcut(content)


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and "shapes" in content


FORMATS = {
    entry.name: entry
    for entry in (
        Format(
            "davis", "palette PNG of object ids for each frame", "masks", _sink("mask_png", "MaskFolderSink"),
            (".png",), _read_mask,
        ),
        Format("binary", "black and white PNG for each object and frame", "objects",
               _sink("image_folders", "BinaryMaskSink")),
        Format("deeplabcut", "DeepLabCut's CSV", "deeplabcut.csv", _sink("deeplabcut", "DeepLabCutSink"),
               (".csv",), _read_deeplabcut, _is_deeplabcut),
        Format("boxes", "CSV of boxes", "boxes.csv", _sink("boxes_csv", "BoxCsvSink"), (".csv",), _read_boxes,
               _is_boxes),
        Format("csv", "CSV of points", "points.csv", _sink("points_csv", "KeypointCsvSink"), (".csv",), _read_points),
        Format("labelme", "LabelMe JSON for each frame", "labelme", _sink("labelme", "LabelMeSink"),
               (".json",), _read_labelme, _is_labelme),
        Format("coco", "COCO JSON with masks and keypoints", "coco.json", _sink("coco", "CocoSink"), (".json",),
               _read_coco),
        Format("youtube-vos", "YouTube-VOS folders and meta.json", "youtube-vos",
               _sink("youtube_vos", "YouTubeVosSink", "source")),
        Format("cvat", "CVAT 1.1 XML", "cvat.xml", _sink("cvat", "CvatSink"), (".xml",), _read_cvat),
        Format("yolo-seg", "YOLO text with polygons", "yolo-seg", _sink("yolo", "YoloSink", "segment"), (".txt",),
               _read_yolo),
        Format("yolo-pose", "YOLO text with keypoints", "yolo-pose", _sink("yolo", "YoloSink", "pose")),
        Format("deeplabcut-h5", "DeepLabCut's HDF5 table", "deeplabcut.h5",
               _sink("deeplabcut_h5", "DeepLabCutH5Sink"), (".h5",), _read_deeplabcut_h5),
        Format("sleap", "SLEAP project", "tracks.slp", _sink("sleap", "SleapSink", "source"), (".slp",), _read_sleap),
        Format("tapvid", "TAP-Vid arrays of points", "tapvid.npz", _sink("tapvid", "TapVidSink")),
        Format("cutouts", "PNG cut-out for each object and frame", "cutouts", _sink("image_folders", "CutoutSink")),
        Format("jsonl", "JSON lines, one for each frame", "tracks.jsonl", _sink("jsonl", "JsonLinesSink")),
        Format("overlay", "video with the results drawn in", "overlay.mp4", _overlay),
        Format("report", "HTML page with the weakest frames", "report.html",
               _sink("html_report", "ReportSink", "source")),
    )
}  # fmt: skip
READABLE = tuple(dict.fromkeys(suffix for entry in FORMATS.values() for suffix in entry.suffixes))
"""Suffixes of the files that can be read."""


def check_formats(names: Sequence[str]) -> None:
    """Raise InputError for the first unknown format."""
    for name in names:
        if name not in FORMATS:
            raise InputError(f"expected --format among {', '.join(FORMATS)}, got {name!r}; choose one of those")


def open_sink(name: str, path: Path, source: SourceInfo) -> Sink:
    """Return a sink for results at a path. Raises InputError where the path cannot be written to."""
    write = FORMATS[name].write
    assert write is not None, "every format is written"
    return write(path, source)


def file_content(path: Path) -> Any:
    """Return the parsed JSON of a file, the first line of a CSV, or None: what its format is recognised by."""
    suffix = path.suffix.lower()
    return _json(path) if suffix == ".json" else _first_line(path) if suffix == ".csv" else None


def read_annotations(path: Path, context: ReadContext) -> AnnotationFile:
    """Read a file of any known format.

    Raises InputError for an unknown suffix, and for a file that cannot be read.
    """
    from corrflow.runtime.formats.annotations import AnnotationFile

    content = file_content(path)
    for entry in FORMATS.values():
        if path.suffix.lower() in entry.suffixes and (entry.sniff is None or entry.sniff(content)):
            assert entry.read is not None, "a format with suffixes is read"
            return AnnotationFile(path, entry.name, entry.read(path, content, context))
    raise InputError(
        f"expected annotations in a file that ends in {', '.join(READABLE)}, got {str(path)!r}; convert it"
    )


def read_object_mask(path: Path, frame: FrameKey) -> AnnotationFile:
    """Read the mask of one object; its folder has the object's id or name. Raises InputError."""
    from corrflow.runtime.formats.annotations import AnnotationFile
    from corrflow.runtime.formats.mask_png import read_mask_objects

    objects: list[MaskObject] = read_mask_objects([path])
    if len(objects) > 1:
        raise InputError(f"expected a black and white mask of one object in {path}, got {len(objects)} values")
    label = path.parent.name
    number = int(label) if label.isascii() and label.isdigit() else 0
    return AnnotationFile(path, "binary", {frame: [replace(objects[0], id=number, name="" if number else label)]})


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.readline(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a CSV of points or boxes in {path}, got a file that is none ({error})") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"expected JSON in {path}, got a file that cannot be read ({type(error).__name__})") from error
