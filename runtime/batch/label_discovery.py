"""Discovery of the labels of a video. FRAME is the index in a video, or an image's name.

In files named after the video, such as clip.json, clip.mp4.json or clip.mp4.labels.slp:
NAME.png:               masks of the first frame; also other images
NAME.csv:               points (name,x,y) or boxes (x0,y0,x1,y1), of the first frame or by a column `frame`; DeepLabCut
NAME.json:              COCO masks, boxes and keypoints; or LabelMe of the first frame
NAME.xml:               CVAT 1.1, of images or of a video
NAME.slp, NAME.h5:      SLEAP, DeepLabCut's table
NAME_12.txt:            YOLO of the 12th frame of a video, as Ultralytics calls its predictions
In the folder NAME:
FRAME.png, .json, .txt: masks, LabelMe, YOLO
OBJECT/FRAME.png:       black and white mask of one object; the folder is its id or its name
CollectedData_*, and others: tables and files of DeepLabCut, CVAT, COCO and SLEAP
In files of several videos, beside these: COCO, CVAT, SLEAP and DeepLabCut, of which only the parts of the video count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import (
    NOT_READ,
    AnnotationFile,
    Annotations,
    FaultyFile,
    FileContent,
    Notes,
    ReadContext,
)
from corrflow.runtime.formats.registry import MASK_SUFFIXES, read_annotations, read_object_mask
from corrflow.runtime.formats.yolo_classes import names_file
from corrflow.runtime.types import KeypointsObject
from corrflow.runtime.video.image_sequence import natural_order
from corrflow.runtime.video.suffixes import VIDEO_SUFFIXES

TABLE_SUFFIXES = (".csv", ".json", ".xml", ".slp", ".h5")
"""Suffixes of files that may have labels of many frames."""

# clip.mp4.json, clip.labels.slp, clip.mp4.labels.v001.slp, clipDLC_resnet50_x.h5
_ADDITIONS = re.compile(rf"({'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))})?(\.labels)?(\.v[0-9]+)?|dlc[_-].*")

_MACHINE_LABELS = re.compile(r"machinelabels(-iter|\.)")  # of DeepLabCut

# Names that tools give their exports.
_NAMES_OF_TOOLS = re.compile(r"(annotations?|instances|person_keypoints|labels|default|coco|cvat|export)([ _.-].*)?")

_NO_LABELS = frozenset({"data.yaml", "classes.txt", "labels.txt", "obj.names", "readme.txt", "predefined_classes.txt"})


@dataclass(frozen=True)
class LabelSource:
    """Where the labels of one video may be.

    place:       folder of labels, or one file of labels
    video:       name of the video
    source:      file or folder of the video
    others:      names of all videos of the batch; a file that is named after one of them is not read for another
    frame_names: names of the images of a folder
    folder:      folder with the labels of this video alone; None for the folder of its name in `place`
    """

    place: Path
    video: str
    source: Path
    others: Collection[str] = ()
    frame_names: Sequence[str] | None = None
    folder: Path | None = None
    is_strict: bool = False
    min_score: float = 0.0

    @property
    def inner(self) -> Path:
        """Folder with the labels of this video alone, which may be missing."""
        return self.folder or self.place / self.video

    def own_files(self) -> list[Path]:
        """Return the files that are named after the video, in a fixed order. Raises OSError."""
        if self.place.is_file():
            return []
        suffixes = (*MASK_SUFFIXES, *TABLE_SUFFIXES)
        named = [path for path in self._files_of_place(suffixes) if self._is_named_after(path, self.video)]
        files = sorted(named, key=lambda path: (suffixes.index(path.suffix.lower()), natural_order(path)))
        files += [path for path in self._files_of_place((".txt",)) if self._is_frame_of(path)]
        inner = self.inner
        if inner.is_dir():
            found = [path for pattern in ("*", "*/*") for path in inner.glob(pattern) if _is_label_file(path, inner)]
            files += sorted(found, key=natural_order)
        return files

    def shared_files(self) -> list[Path]:
        """Return the files that may have labels of several videos. Raises OSError."""
        if self.place.is_file():
            return [self.place]
        return [
            path
            for path in self._files_of_place(TABLE_SUFFIXES)
            if not self._is_named_after(path, self.video)
            and not any(self._is_named_after(path, other) for other in self.others)
        ]

    def files(self) -> list[Path]:
        """Return all files that decide the labels of the video. Raises OSError."""
        own = self.own_files()
        names = next((names_file(path) for path in own if path.suffix == ".txt"), None)  # of YOLO's classes
        files = [*own, *self.shared_files(), *([] if names is None or names in own else [names])]
        return [path for path in files if not _MACHINE_LABELS.match(path.name.casefold())]

    def _files_of_place(self, suffixes: Sequence[str]) -> list[Path]:
        paths = [path for path in self.place.iterdir() if path.suffix.lower() in suffixes and path.is_file()]
        return sorted((path for path in paths if not path.name.startswith(".")), key=natural_order)

    def _is_frame_of(self, path: Path) -> bool:
        """Return True for VIDEO_12.txt, as Ultralytics calls what it predicts on a frame of a video."""
        stem, name = path.stem.casefold(), f"{self.video.casefold()}_"
        return self.frame_names is None and stem.startswith(name) and stem[len(name) :].isdecimal()

    @staticmethod
    def _is_named_after(path: Path, video: str) -> bool:
        stem, name = path.stem.casefold(), video.casefold()
        return stem.startswith(name) and _ADDITIONS.fullmatch(stem[len(name) :]) is not None


def find_annotations(labels: LabelSource, frame_size: Callable[[], tuple[int, int]]) -> Annotations:
    """Read every file of a video's labels.

    frame_size: returns (height, width) of the video's frames; called only for files that do not state it

    Raises InputError for files that cannot be read, and without any object.
    """
    try:
        own, shared = labels.own_files(), labels.shared_files()
    except OSError as error:
        raise InputError(f"expected to read {error.filename!r}, got an error ({error.strerror})") from error
    context = ReadContext(
        labels.video,
        0,
        frame_size,
        labels.frame_names,
        is_strict=labels.is_strict,
        min_score=labels.min_score,
        source=labels.source,
    )
    files: list[AnnotationFile] = []
    images: dict[tuple[Path, str], int] = {}
    extracted = {path.parent for path in own if path.name.startswith("CollectedData_")}
    for path in own:
        if path.name.lower() in _NO_LABELS:
            continue
        if reason := _image_of_video(path, labels, extracted):
            images[path.parent, reason] = images.get((path.parent, reason), 0) + 1
        elif reason := _table_beside(path, own, context):
            files.append(_not_read(path, "the table", reason))
        else:
            files.append(_read_own(path, labels, context))
    files += [_not_read(folder, f"{count} images", reason) for (folder, reason), count in images.items()]
    # A single video and the only file belong together, unless its name may be that of another video.
    only = len(shared) == 1 and not own and _NAMES_OF_TOOLS.fullmatch(shared[0].stem.casefold())
    alone = len(labels.others) <= 1 and (labels.place.is_file() or bool(only))
    for path in shared:
        if (read := _read_shared(path, replace(context, is_shared=not alone))) is not None:
            files.append(read)
    annotations = Annotations.of(files, labels.frame_names, labels.is_strict)
    if not annotations.objects:
        reasons = "; ".join(annotations.notes[:3])
        name, place = labels.video, str(labels.place)
        if reasons:
            raise InputError(f"expected labels for {name!r} in {place!r}, got none that can be used ({reasons})")
        raise InputError(
            f"expected labels for {name!r} in {place!r}, got none; add {name}.png, .csv, .json, .xml, .slp or .h5, or "
            f"{name}/FRAME.png, .json or .txt"
        )
    return annotations


def _is_label_file(path: Path, inner: Path) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.parent == inner:
        return suffix in (*MASK_SUFFIXES, *TABLE_SUFFIXES, ".txt") or path.name in _NO_LABELS
    return suffix in MASK_SUFFIXES


def _read_own(path: Path, labels: LabelSource, context: ReadContext) -> AnnotationFile:
    """Read a file that is named after the video, or lies in its folder. Raises InputError."""
    inner = labels.inner
    if path.parent.parent == inner:
        return read_object_mask(path, replace(context, frame=path.stem))
    is_table = path.suffix.lower() not in (*MASK_SUFFIXES, ".txt", ".json") or path.name.startswith("CollectedData")
    is_frame = path.suffix.lower() == ".txt" or (path.parent == inner and not is_table)
    return read_annotations(path, replace(context, frame=path.stem if is_frame else 0))


def _read_shared(path: Path, context: ReadContext) -> AnnotationFile | None:
    """Read what a file of several videos says of one; None where that is nothing."""
    try:
        file = read_annotations(path, context)
    except InputError as error:
        if not context.is_shared or isinstance(error, FaultyFile):
            raise
        return _not_read(path, "the file, which is named after no video", str(error))
    return file if any(file.content.frames.values()) else None


def _not_read(path: Path, what: str, why: str) -> AnnotationFile:
    notes = Notes()
    notes.add(notes.ignored, what, why)
    return AnnotationFile(path, NOT_READ, FileContent({}), notes)


def unused_labels(place: Path, videos: Collection[str], read: Collection[str]) -> list[str]:
    """Return the names of files and folders in a folder of labels that no video has used.

    videos: names of all videos
    read:   paths of the files from which labels were read
    """
    if place.is_file():
        return [] if str(place) in read else [place.name]
    names = {video.casefold() for video in videos}
    unused = []
    for path in sorted(place.iterdir(), key=natural_order):
        if path.name.startswith(".") or path.name.lower() in _NO_LABELS:
            continue
        is_used = any(one == str(path) or one.startswith(f"{path}{os.sep}") for one in read)
        is_label = path.is_dir() or path.suffix.lower() in (*MASK_SUFFIXES, *TABLE_SUFFIXES)
        if is_label and not is_used and path.name.casefold() not in names:
            unused.append(path.name)
    return unused


def _table_beside(path: Path, own: Collection[Path], context: ReadContext) -> str:
    """Return why one of DeepLabCut's tables is not read, which keeps each as .h5 and as .csv; "" for other files."""
    if _MACHINE_LABELS.match(path.name.casefold()):
        return "they are predictions for a user to correct; DeepLabCut saves corrected ones as CollectedData"
    table, text = path.with_suffix(".h5"), path.with_suffix(".csv")
    if not (path.name.startswith("CollectedData_") and table in own and text in own):
        return ""
    labels = _points(table, context)
    if path == table:
        return "" if labels is not None else f"it cannot be read; {text.name} beside it is read"
    if labels is None:
        return ""
    if labels == _points(text, context):
        return f"{table.name} beside it has the same labels"
    return f"DeepLabCut reads {table.name} beside it, which has other labels; save them again in DeepLabCut"


def _points(path: Path, context: ReadContext) -> set[tuple[object, ...]] | None:
    """Return the points of a table, rounded, or None for a file that cannot be read."""
    try:
        frames = read_annotations(path, context).content.frames
    except InputError:
        return None
    return {
        (key, obj.track_id, name, round(float(x), 1), round(float(y), 1))
        for key, objects in frames.items()
        for obj in objects
        if isinstance(obj, KeypointsObject)
        for name, (x, y) in zip(obj.point_names, obj.points, strict=True)
    }


def _image_of_video(path: Path, labels: LabelSource, extracted: Collection[Path]) -> str:
    """Return why an image in the folder of labels is an image of the video and not a mask; "" for other files.

    extracted: folders with a table of DeepLabCut
    """
    if path.suffix.lower() not in MASK_SUFFIXES or labels.inner not in path.parents:
        return ""
    if labels.source.is_dir() and path.parent.resolve() == labels.source.resolve():
        return "images of the video are not masks"
    if path.with_suffix(".json").is_file():
        return "their labels are in the JSON beside them"
    if path.parent in extracted:
        return "they are images that DeepLabCut extracted; their labels are in CollectedData"
    return ""
