"""Annotations: labelled objects of one video by frame, from files, with one id for each object.

A reader gets a `ReadContext` and returns a `FileContent`. What it leaves out, it reports to the context.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from corrflow.errors import InputError
from corrflow.file_budget import FileBudget
from corrflow.runtime.formats.compressed_annotation import CompressedAnnotation, PackedFrames
from corrflow.runtime.formats.identities import assign_ids
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, FrameKey, LabelSchema, merged
from corrflow.runtime.types import Annotation, Frame, KeypointsObject, MaskObject, size_text
from corrflow.runtime.video.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

__all__ = [
    "NOT_READ",
    "AnnotationFile",
    "Annotations",
    "CompressedAnnotation",
    "FileContent",
    "FrameKey",
    "Notes",
    "ReadContext",
    "frame_finder",
]

NOT_READ = "not read"
"""Format of a file whose labels were not read."""

MAX_POINTS = 1000
"""Points of one frame."""

MAX_NOTES = 20
"""Different sentences about one file; a file with more has a fault of another kind."""


class FaultyLabel(Exception):
    """Label that is refused under `--strict`."""


class FaultyFile(InputError):
    """File with a label that is refused under `--strict`."""


@dataclass
class Notes:
    """What was not read from a file.

    left_out: faulty labels, by reason: a first example and their number
    ignored:  parts that are not for this video or have no meaning here, by reason
    """

    left_out: dict[str, tuple[str, int]] = field(default_factory=dict)
    ignored: dict[str, tuple[str, int]] = field(default_factory=dict)

    @staticmethod
    def add(notes: dict[str, tuple[str, int]], what: str, why: str) -> None:
        """Count one more label of a reason."""
        first, count = notes.get(why, (what, 0))
        if count or len(notes) < MAX_NOTES:
            notes[why] = first, count + 1

    def sentences(self) -> list[str]:
        """Return one sentence for each reason, faults first."""
        return [
            f"left out {first}: {why}" + (f" (and {count - 1} more)" if count > 1 else "")
            for notes in (self.left_out, self.ignored)
            for why, (first, count) in notes.items()
        ]


@dataclass(frozen=True)
class ReadContext:
    """Context of a file, for its reader.

    video:       name of the video, without folder and suffix
    frame:       frame of a file that describes a single frame
    frame_size:  returns (height, width) of the video's frames; called only for files that do not state it
    frame_names: names of the video's frames where it is a folder of images
    is_shared:   True for a file that is not named after the video: only what it says of this video counts
    is_strict:   True to refuse a file with a faulty label
    min_score:   least score or likelihood of a predicted point or object that is read, 0..1
    source:      file or folder of the video, which tells videos of one name apart
    notes:       what was not read
    budget:      memory and time for the file
    """

    video: str
    frame: FrameKey
    frame_size: Callable[[], tuple[int, int]]
    frame_names: Collection[str] | None = None
    is_shared: bool = False
    is_strict: bool = False
    min_score: float = 0.0
    source: Path | None = None
    notes: Notes = field(default_factory=Notes)
    budget: FileBudget = field(default_factory=FileBudget)

    def leave_out(self, what: str, why: str) -> None:
        """Leave out a faulty label. Raises FaultyLabel under `is_strict`; the registry adds the file's name.

        what: the label with frame and object, such as "frame 7, point 'nose' of 'mouse'"
        why:  the reason; labels of one reason are counted, so it has no numbers of a single label
        """
        if self.is_strict:
            raise FaultyLabel(f"{what}: {why}")
        self.notes.add(self.notes.left_out, what, why)

    def ignore(self, what: str, why: str) -> None:
        """Pass over something that is no fault, such as labels of another video."""
        self.notes.add(self.notes.ignored, what, why)

    def select_videos(self, names: Iterable[str]) -> set[str]:
        """Return those names of videos in a file that stand for this video.

        names: a name, path or folder for every video of the file, as the file writes it; "" for an unnamed one

        Of several videos of that name, the one counts whose folders are most like those of the source. A file of one
        video that is named after this video stands for it, whatever the file says.
        """
        listed = set(names)
        own = {self.video} if self.source is None else {self.video, _name_of(self.source)}
        matching = {name for name in listed if any(stands_for(name, video) for video in own)}
        if not matching and not self.is_shared and len(listed) == 1:
            return listed
        if len(matching) > 1 and self.source is not None:
            alike = {name: _common_folders(name, self.source) for name in matching}
            matching = {name for name in matching if alike[name] == max(alike.values())}
        return matching


def _name_of(source: Path) -> str:
    return source.stem if source.suffix.lower() in VIDEO_SUFFIXES else source.name


def _common_folders(name: str, source: Path) -> int:
    """Return how many folders at the end of two paths of a video have the same names."""
    count = 0
    own, other = PurePosixPath(name.replace("\\", "/").casefold()), PurePosixPath(source.as_posix().casefold())
    if own.suffix in IMAGE_SUFFIXES:
        own = own.parent  # a folder of images
    for one, two in zip(reversed(own.parent.parts), reversed(other.parent.parts), strict=False):
        if one != two:
            break
        count += 1
    return count


@dataclass(frozen=True)
class FileContent:
    """Content of a file for one video.

    frames: objects by frame; id 0, or the id that the file's pixels have
    schema: classes, skeletons and names, for writers
    """

    frames: Mapping[FrameKey, Sequence[Annotation]]
    schema: LabelSchema = EMPTY_SCHEMA


@dataclass(frozen=True)
class AnnotationFile:
    """File of annotations as it was read for one video.

    format: name of the file's format
    """

    path: Path
    format: str
    content: FileContent
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True)
class Annotations:
    """Annotated objects of one video by the index of the frame; an object has the same id on all frames.

    schema:    classes, skeletons and names of all files
    files:     every file with what it gave and what was left out
    is_strict: True to raise InputError for a faulty label
    """

    objects: Mapping[int, Sequence[CompressedAnnotation]]
    schema: LabelSchema = EMPTY_SCHEMA
    files: tuple[AnnotationFile, ...] = ()
    is_strict: bool = False

    @classmethod
    def of(
        cls, files: Iterable[AnnotationFile], frame_names: Sequence[str] | None = None, is_strict: bool = False
    ) -> Annotations:
        """Combine the files of one video, find the frame of each key, and assign an id to every object.

        frame_names: names of the video's frames where it is a folder of images

        Raises InputError under `is_strict` for labels of a frame that is not there, and for more than 255 objects.
        """
        find = frame_finder(frame_names)
        by_frame: dict[int, list[CompressedAnnotation]] = {}
        read: list[AnnotationFile] = []
        schemas: list[LabelSchema] = []
        for file in files:
            for key in file.content.frames:
                packed = packed_annotations(file, key)
                index = find(key)
                if index is not None and packed:
                    by_frame.setdefault(index, []).extend(packed)
                elif packed:
                    _leave_out(file, f"frame {key!r}", _NO_FRAME, is_strict)
            images = {find(key): name for key, name in file.content.schema.image_names.items()}
            names: dict[FrameKey, str] = {index: name for index, name in images.items() if index is not None}
            schemas.append(replace(file.content.schema, image_names=names))
            read.append(file)
        return cls(assign_ids(dict(sorted(by_frame.items()))), merged(schemas), tuple(read), is_strict)

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the annotated frames, ascending."""
        return tuple(self.objects)

    def on(self, frame: Frame) -> list[Annotation]:
        """Return the objects of a frame."""
        return [packed.unpacked() for packed in self.objects.get(frame.index, ())]

    def usable_on(self, frame: Frame) -> list[CompressedAnnotation]:
        """Return the annotations of a frame that fit it; others are left out, with a note of their file.

        Raises InputError for one that does not fit under `is_strict`.
        """
        usable: dict[int, CompressedAnnotation] = {}
        for packed in self.objects.get(frame.index, ()):
            prompt = packed.prompt
            if prompt.id in usable:
                self.leave_out(packed, frame.index, "its identity is on this frame twice")
                continue
            if isinstance(prompt, MaskObject) and packed.shape != frame.image.shape[:2]:
                sizes = f"its mask is {size_text(packed.shape)} and the frame {size_text(frame.image.shape)}"
                self.leave_out(packed, frame.index, f"{sizes}; draw it at the frame's size")
                continue
            if isinstance(prompt, KeypointsObject):
                height, width = frame.image.shape[:2]
                inside = ((prompt.points >= -0.5) & (prompt.points <= (width - 0.5, height - 0.5))).all(1)
                for k in np.flatnonzero(~inside).tolist():
                    point = f"point {prompt.point_names[k]!r} at ({prompt.points[k][0]:g}, {prompt.points[k][1]:g})"
                    self.leave_out(packed, frame.index, f"it is outside of the frame of {width}x{height}", point)
                if not inside.any():
                    continue
                names = tuple(prompt.point_names[k] for k in np.flatnonzero(inside).tolist())
                packed = replace(packed, prompt=replace(prompt, points=prompt.points[inside], point_names=names))
            usable[prompt.id] = packed
        origin = next((packed.origin for packed in usable.values()), "")
        check_number_of_points((packed.prompt for packed in usable.values()), origin)
        return list(usable.values())

    def leave_out(self, packed: CompressedAnnotation, frame: int, why: str, part: str = "") -> None:
        """Note that an annotation, or a part of it, is not used. Raises InputError under `is_strict`."""
        prompt = packed.prompt
        label = repr(prompt.name or prompt.category or f"object {prompt.id}") + (part and f", {part}")
        file = next((one for one in self.files if str(one.path) == packed.origin), None)
        if file is not None:
            _leave_out(file, f"frame {frame}, {label}", why, self.is_strict)
        elif self.is_strict:
            raise InputError(f"expected labels that fit the video, got frame {frame}, {label}: {why}")

    @property
    def notes(self) -> list[str]:
        """One sentence, with the file's name, for each reason to leave out a label."""
        return [f"{file.path}: {sentence}" for file in self.files for sentence in file.notes.sentences()]


def check_number_of_points(objects: Iterable[Annotation], origin: str) -> None:
    """Raise InputError for more points than can be tracked at once, as each has soft masks of its own."""
    count = sum(len(one.points) for one in objects if isinstance(one, KeypointsObject))
    if count > MAX_POINTS:
        raise InputError(f"expected at most {MAX_POINTS} points on a frame, got {count} in {origin}; split them")


def packed_annotations(file: AnnotationFile, key: FrameKey) -> list[CompressedAnnotation]:
    """Return the annotations of a frame of a file, of which some are packed already."""
    frames = file.content.frames
    if isinstance(frames, PackedFrames):
        return [replace(one, origin=str(file.path)) for one in frames.packed[key]]
    return [CompressedAnnotation.of(one, str(file.path)) for one in frames[key]]


def stands_for(name: str, video: str) -> bool:
    """Return True if a name, path or folder in a file of labels means a video.

    "clip", "Clip.MP4", "videos/clip.mp4", "labeled-data/clip" and "clip/img0007.png" stand for clip.
    """
    path = PurePosixPath(name.replace("\\", "/").casefold())
    wanted = video.casefold()
    if path.suffix in IMAGE_SUFFIXES and path.name != wanted:
        return path.parent.name == wanted
    return wanted in (path.name, path.stem if path.suffix in VIDEO_SUFFIXES else path.name)


def frame_finder(frame_names: Sequence[str] | None) -> Callable[[FrameKey], int | None]:
    """Return a function that gives the index of a key's frame, or None where there is none.

    A number is an index, and a name is that of an image. For other names the number at their end counts: it is compared
    with the numbers of the images, or is the index in a video.
    """
    if frame_names is None:
        return lambda key: key if isinstance(key, int) else number_at_end(key)
    by_name = {name: index for index, name in enumerate(frame_names)}
    by_folded = {name.casefold(): index for index, name in reversed(list(enumerate(frame_names)))}
    by_number: dict[int, list[int]] = {}
    for index, name in enumerate(frame_names):
        if (number := number_at_end(name)) is not None:
            by_number.setdefault(number, []).append(index)

    def find(key: FrameKey) -> int | None:
        if isinstance(key, int):
            return key if key < len(frame_names) else None
        if (index := by_name.get(key, by_folded.get(key.casefold()))) is not None:
            return index
        numbered = by_number.get(-1 if (number := number_at_end(key)) is None else number, [])
        return numbered[0] if len(numbered) == 1 else None

    return find


def number_at_end(name: str) -> int | None:
    """Return the number at the end of a name: 12 of "img0012", "frame_000012" and "00012"; None without one."""
    digits = re.search(r"[0-9]+$", name)
    return int(digits.group()) if digits and len(digits.group()) < 10 else None


_NO_FRAME = "the video has no such frame; frames count from 0, or have the names of the images"


def _leave_out(file: AnnotationFile, what: str, why: str, is_strict: bool) -> None:
    if is_strict:
        raise InputError(f"expected no faulty label under --strict, got {what} in {file.path}: {why}; correct it")
    file.notes.add(file.notes.left_out, what, why)
