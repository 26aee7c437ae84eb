"""Registry of file formats: name, reader, writer, suffixes and sniffer of each.

corrflow-track, corrflow-batch, live sessions and the help texts use this table. The modules of a format are loaded at
their first use, so that a help text appears at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from corrflow.errors import InputError
from corrflow.file_budget import FileBudget, open_regular, read_json

if TYPE_CHECKING:
    from corrflow.runtime.formats.annotations import AnnotationFile, FileContent, ReadContext
    from corrflow.runtime.formats.base import Sink
    from corrflow.runtime.formats.label_schema import LabelSchema
    from corrflow.runtime.video.source import SoundTrack


_Write = Callable[[Path, "SourceInfo", "LabelSchema", Callable[[], Sequence[str]]], "Sink"]


class SourceInfo(Protocol):
    """Properties of a source for writers, see `FrameSource`."""

    @property
    def name(self) -> str: ...

    @property
    def frames_per_second(self) -> Fraction | None: ...

    @property
    def sample_aspect_ratio(self) -> Fraction | None: ...

    @property
    def sound(self) -> SoundTrack | None: ...

    @property
    def notes(self) -> list[str]: ...


@dataclass(frozen=True)
class Format:
    """File format.

    name:     value of `--format`
    title:    line for help texts
    result:   name of the results in the folder of a video
    write:    returns a sink for the results at a path
    suffixes: suffixes of readable files; () for a format that is only written
    read:     returns the content of a file for one video, from its path and `file_content`; raises InputError
    sniff:    returns True for the `file_content` of this format; None where the suffix decides
    images:   folder in the results where the tool looks for images, with {video}; "" for a format without images
    """

    name: str
    title: str
    result: str = ""
    write: _Write | None = None
    suffixes: tuple[str, ...] = ()
    read: Callable[[Path, Any, ReadContext], FileContent] | None = None
    sniff: Callable[[Any], bool] | None = None
    images: str = ""


def _sink(module: str, name: str, *arguments: str) -> _Write:
    """Return a writer that loads its class at the first use.

    The argument "source" becomes the source's name, and "paths" its files. The argument "schema" becomes the schema of
    the labels, and "notes" a function that returns what was left out.
    """

    def write(path: Path, source: SourceInfo, schema: LabelSchema, notes: Callable[[], Sequence[str]]) -> Sink:
        paths = tuple(str(Path(one).absolute()) for one in getattr(source, "paths", ()))
        known = {"source": source.name, "paths": paths or (source.name,), "schema": schema, "notes": notes}
        values = [known.get(argument, argument) for argument in arguments]
        return getattr(import_module(f"corrflow.runtime.formats.{module}"), name)(path, *values)

    return write


def _overlay(path: Path, source: SourceInfo, *_: Any) -> Sink:
    from corrflow.runtime.formats.overlay_video import VideoSink
    from corrflow.runtime.settings import NOMINAL_FRAMES_PER_SECOND

    rate = source.frames_per_second or NOMINAL_FRAMES_PER_SECOND
    return VideoSink(path, rate, source.sample_aspect_ratio, source.sound, source.notes)


def _reader(module: str, name: str) -> Callable[[Path, Any, ReadContext], FileContent]:
    """Return a reader that loads its function at the first use."""

    def read(path: Path, content: Any, context: ReadContext) -> FileContent:
        return getattr(import_module(f"corrflow.runtime.formats.{module}"), name)(path, content, context)

    return read


def _is_boxes(content: Any) -> bool:
    from corrflow.runtime.formats.boxes_csv import is_boxes

    return is_boxes(content)


def _is_deeplabcut(content: Any) -> bool:
    from corrflow.runtime.formats.deeplabcut import is_deeplabcut

    return is_deeplabcut(content)


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and "shapes" in content


MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

FORMATS = {
    entry.name: entry
    for entry in (
        Format(
            "davis", "palette PNG of object ids for each frame", "masks", _sink("mask_png", "MaskFolderSink"),
            MASK_SUFFIXES, _reader("mask_png", "read_mask"),
        ),
        Format("binary", "black and white PNG for each object and frame", "objects",
               _sink("image_folders", "BinaryMaskSink")),
        Format("deeplabcut", "DeepLabCut's CSV", "deeplabcut.csv", _sink("deeplabcut", "DeepLabCutSink", "schema"),
               (".csv",), _reader("deeplabcut", "read_deeplabcut"), _is_deeplabcut),
        Format("boxes", "CSV of boxes", "boxes.csv", _sink("boxes_csv", "BoxCsvSink"), (".csv",),
               _reader("boxes_csv", "read_boxes"), _is_boxes),
        Format("csv", "CSV of points", "points.csv", _sink("points_csv", "KeypointCsvSink"), (".csv",),
               _reader("points_csv", "read_points")),
        Format("labelme", "LabelMe JSON for each frame", "labelme", _sink("labelme", "LabelMeSink", "schema"),
               (".json",), _reader("labelme", "read_labelme"), _is_labelme, "labelme"),
        Format("coco", "COCO JSON with masks and keypoints", "coco.json", _sink("coco", "CocoSink", "schema"),
               (".json",), _reader("coco_reader", "read_coco"), images="images"),
        Format("youtube-vos", "YouTube-VOS folders and meta.json", "youtube-vos",
               _sink("youtube_vos", "YouTubeVosSink", "source"), images="youtube-vos/JPEGImages/{video}"),
        Format("cvat", "CVAT 1.1 XML", "cvat.xml", _sink("cvat", "CvatSink", "schema"), (".xml",),
               _reader("cvat_reader", "read_cvat"), images="images"),
        Format("yolo-seg", "YOLO text with polygons", "yolo-seg", _sink("yolo", "YoloSink", "segment", "schema"),
               (".txt",), _reader("yolo", "read_yolo"), images="yolo-seg/images"),
        Format("yolo-pose", "YOLO text with keypoints", "yolo-pose", _sink("yolo", "YoloSink", "pose", "schema"),
               images="yolo-pose/images"),
        Format("deeplabcut-h5", "DeepLabCut's HDF5 table", "deeplabcut.h5",
               _sink("deeplabcut_h5", "DeepLabCutH5Sink", "schema"), (".h5",),
               _reader("deeplabcut_h5", "read_deeplabcut_h5")),
        Format("sleap", "SLEAP project", "tracks.slp", _sink("sleap", "SleapSink", "paths", "schema"), (".slp",),
               _reader("sleap_reader", "read_sleap")),
        Format("tapvid", "TAP-Vid arrays of points", "tapvid.npz", _sink("tapvid", "TapVidSink")),
        Format("cutouts", "PNG cut-out for each object and frame", "cutouts", _sink("image_folders", "CutoutSink")),
        Format("jsonl", "JSON lines, one for each frame", "tracks.jsonl", _sink("jsonl", "JsonLinesSink")),
        Format("overlay", "video with the results drawn in", "overlay.mp4", _overlay),
        Format("report", "HTML page with the weakest frames", "report.html",
               _sink("html_report", "ReportSink", "source", "notes")),
    )
}  # fmt: skip
READABLE = tuple(dict.fromkeys(suffix for entry in FORMATS.values() for suffix in entry.suffixes))
"""Suffixes of the files that can be read."""


def check_formats(names: Sequence[str]) -> None:
    """Raise InputError for the first unknown format."""
    for name in names:
        if name not in FORMATS:
            raise InputError(f"expected --format among {', '.join(FORMATS)}, got {name!r}; choose one of those")


def open_sink(
    name: str,
    path: Path,
    source: SourceInfo,
    schema: LabelSchema | None = None,
    notes: Callable[[], Sequence[str]] = list,
) -> Sink:
    """Return a sink for results at a path. Raises InputError where the path cannot be written to.

    schema: classes, skeletons and names of the labels that the results come from
    notes:  returns, at the end, sentences about what was left out
    """
    from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA

    write = FORMATS[name].write
    assert write is not None, "every format is written"
    return write(path, source, schema or EMPTY_SCHEMA, notes)


def file_content(path: Path, budget: FileBudget | None = None) -> Any:
    """Return the parsed JSON of a file, the first line of a CSV, or None: what its format is recognised by."""
    suffix = path.suffix.lower()
    return _json(path, budget) if suffix == ".json" else _first_line(path) if suffix == ".csv" else None


def read_annotations(path: Path, context: ReadContext) -> AnnotationFile:
    """Read a file of any known format.

    Raises InputError for an unknown suffix, and for a file that cannot be read.
    """
    from corrflow.runtime.formats.annotations import AnnotationFile, FaultyFile, FaultyLabel, Notes

    try:
        budget = FileBudget.of(path)
    except OSError as error:
        raise InputError(
            f"expected annotations in {path}, got a file that cannot be read ({error.strerror})"
        ) from error
    content = file_content(path, budget)
    for entry in FORMATS.values():
        if path.suffix.lower() in entry.suffixes and (entry.sniff is None or entry.sniff(content)):
            assert entry.read is not None, "a format with suffixes is read"
            own = replace(context, notes=Notes(), budget=budget)
            try:
                return AnnotationFile(path, entry.name, entry.read(path, content, own), own.notes)
            except FaultyLabel as fault:
                raise FaultyFile(
                    f"expected no faulty label under --strict, got {fault} in {path}; correct or remove it"
                ) from None
    raise InputError(
        f"expected annotations in a file that ends in {', '.join(READABLE)}, got {str(path)!r}; convert it"
    )


def read_object_mask(path: Path, context: ReadContext) -> AnnotationFile:
    """Read the mask of one object; its folder has the object's id or name. Raises InputError."""
    from corrflow.runtime.formats.annotations import AnnotationFile, Notes
    from corrflow.runtime.formats.mask_png import read_object_mask

    own = replace(context, notes=Notes())
    return AnnotationFile(path, "binary", read_object_mask(path, own), own.notes)


def _first_line(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.readline(1 << 20).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a CSV of points or boxes in {path}, got a file that is none ({error})") from error


def _json(path: Path, budget: FileBudget | None) -> Any:
    try:
        return read_json(path, budget)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"expected JSON in {path}, got a file that cannot be read ({type(error).__name__})") from error
