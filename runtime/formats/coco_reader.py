"""Reader of COCO JSON: masks, boxes and keypoints of images, also as YouTube-VIS, CVAT and others write it.

Each annotation is a mask, or a box, which is read as the mask of its pixels. Its keypoints are an object of their own
with the same identity. Annotation tools set "iscrowd" for every mask with run lengths, such as one drawn with a brush.
These are objects. Only COCO's own crowds, whose ids begin at 900 billion, are not.

Coordinates are pixels, with (0, 0) at the corner of the top-left pixel for contours and boxes, and at its centre for
keypoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.errors import InputError
from corrflow.runtime.formats.annotations import FaultyLabel, FileContent, ReadContext
from corrflow.runtime.formats.compressed_annotation import PACKED, PackedFrames
from corrflow.runtime.formats.image_selection import ListedImage, select_images, stem_of
from corrflow.runtime.formats.label_schema import Category, FrameKey, LabelSchema
from corrflow.runtime.formats.packed_masks import PackedMask, PolygonMask, RunMask
from corrflow.runtime.formats.polygons import rotated
from corrflow.runtime.formats.rle import coco_runs
from corrflow.runtime.types import AbsentObject, Annotation, KeypointsObject, MaskObject, TrackId

FIRST_CROWD = 900_000_000_000
"""Smallest id of COCO's own annotations of crowds."""

_IDENTITIES = ("track_id", "instance_id", "object_id", "tracking_id", "group_id")
_BYTES_OF_RUN = 100  # while run lengths are decoded, for each number or letter
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def read_coco(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Convert the COCO JSON of a file to objects, by `frame_index`, or else by the image's name without its suffix.

    content: parsed JSON
    path:    file name for error messages

    Raises InputError for any other JSON, and for JSON without annotations.
    """
    try:
        if isinstance(content, list):
            raise ValueError("a list of results, which does not name its images")
        annotations = list(content["annotations"])
        if not annotations:
            raise InputError(f"expected annotations in {path}, got none; label at least one image")
        return _Reader(content, annotations, context).content()
    except (InputError, FaultyLabel):
        raise
    except (*_DAMAGE, RecursionError) as error:
        raise InputError(
            f"expected COCO JSON with images and annotations in {path}, got one that cannot be read "
            f"({type(error).__name__}: {error}); export it again"
        ) from error


class _Reader:
    """Reader of one file for one video."""

    def __init__(self, content: dict[str, Any], annotations: list[Any], context: ReadContext) -> None:
        self._annotations, self._context = annotations, context
        self._categories = {entry["id"]: entry for entry in content.get("categories") or []}
        self._videos = {entry["id"]: entry for entry in content.get("videos") or []}
        self._images = {entry["id"]: entry for entry in content.get("images") or []}
        self._frames = PackedFrames(context.budget)
        self._names: dict[FrameKey, str] = {}
        self._kinds: set[str] = set()  # of the masks that were read

    def content(self) -> FileContent:
        """Return the objects of the video, and the file's categories."""
        if self._videos and any(isinstance(one, dict) and "segmentations" in one for one in self._annotations):
            self._read_tracks()
        else:
            self._read_images()
        categories = tuple(_category(entry) for entry in self._categories.values())
        has_outlines, only_boxes = "polygons" in self._kinds, self._kinds == {"box"}
        return FileContent(
            self._frames,
            LabelSchema(categories, image_names=self._names, has_outlines=has_outlines, has_only_boxes=only_boxes),
        )

    def _read_images(self) -> None:
        keys = select_images({key: self._listed(entry) for key, entry in self._images.items()}, self._context)
        self._names = {frame: str(self._images[key].get("file_name", "")) for key, frame in keys.items()}
        self._names = {frame: name for frame, name in self._names.items() if name}
        sizes: dict[FrameKey, tuple[int, int] | None] = {}
        for entry in self._annotations:
            key = entry.get("image_id") if isinstance(entry, dict) else None
            if not isinstance(key, (int, str)) or key not in self._images:
                self._context.leave_out(f"annotation {str(entry)[:60]}", "the file does not list its image")
                continue
            if key not in keys:
                self._context.ignore(f"image {_path(self._images[key])!r}", "labels of another video")
                continue
            frame = keys[key]
            if frame not in sizes:
                sizes[frame] = self._size(self._images[key], f"frame {frame!r}")
            if (size := sizes[frame]) is not None:
                self._read(entry, frame, size)

    def _listed(self, image: dict[str, Any]) -> ListedImage:
        video = self._videos.get(image.get("video_id"), {})
        index = image.get("frame_index")
        is_index = isinstance(index, int) and not isinstance(index, bool) and index >= 0
        return ListedImage(_path(image), _video_name(video), index if is_index else None)

    def _read_tracks(self) -> None:
        """Read annotations of whole videos, each with a list of masks, as in YouTube-VIS."""
        names = {key: _video_name(video) for key, video in self._videos.items()}
        chosen = self._context.select_videos(set(names.values()))
        for entry in self._annotations:
            key = entry.get("video_id") if isinstance(entry, dict) else None
            if not isinstance(key, (int, str)) or key not in names:
                self._context.leave_out(f"annotation {str(entry)[:60]}", "the file does not list its video")
                continue
            if names[key] not in chosen:
                self._context.ignore(f"video {names[key]!r}", "labels of another video")
                continue
            video, absent = self._videos[key], False
            size = self._size(video, f"video {names[key]!r}")
            files = [str(name) for name in video.get("file_names") or []]
            parts, boxes = entry.get("segmentations") or [], entry.get("bboxes") or []
            if size is None:
                continue
            for index in range(max(len(parts), len(boxes))):
                frame = stem_of(files[index]) if index < len(files) else index
                if index < len(files):
                    self._names[frame] = files[index]
                one = {
                    **{name: entry.get(name) for name in ("category_id", "attributes", "score", "iscrowd")},
                    "track_id": entry.get("track_id", entry.get("id")),
                    "segmentation": parts[index] if index < len(parts) else None,
                    "bbox": boxes[index] if index < len(boxes) else None,
                }
                if one["segmentation"] or one["bbox"]:
                    self._read(one, frame, size)
                elif not absent:
                    name = self._label(one)
                    self._frames.add(frame, AbsentObject(0, name, _identity(one), name))
                absent = not (one["segmentation"] or one["bbox"])

    def _size(self, image: dict[str, Any], what: str) -> tuple[int, int] | None:
        """Return (height, width) of an image, or None for one that is not of the video's size."""
        height, width = image.get("height"), image.get("width")
        size = self._context.frame_size()
        if not height or not width or (height, width) == size:
            return size
        self._context.leave_out(f"{what} of {width!r}x{height!r}", "the image is not of the video's size")
        return None

    def _read(self, entry: dict[str, Any], frame: FrameKey, size: tuple[int, int]) -> None:
        """Read one annotation of a frame."""
        label = f"frame {frame!r}, object {self._label(entry) or entry.get('id')!r}"
        score, attributes = entry.get("score"), entry.get("attributes") or {}
        try:
            if entry.get("iscrowd") and isinstance(entry.get("id"), int) and entry["id"] >= FIRST_CROWD:
                self._context.ignore(label, "a crowd is no object")
            elif isinstance(attributes, dict) and attributes.get("keyframe") is False:
                self._context.ignore(label, "interpolated between the keyframes of its track")
            elif isinstance(score, (int, float)) and score < self._context.min_score:
                self._context.ignore(label, "its score is below the least score")
            else:
                for one, mask in self._objects(entry, label, size):
                    self._frames.add(frame, one, mask)
        except _DAMAGE as error:
            reason = str(error) if type(error) is ValueError else f"it cannot be read ({type(error).__name__})"
            self._context.leave_out(label, reason)

    def _label(self, entry: dict[str, Any]) -> str:
        name = str(self._categories.get(entry.get("category_id"), {}).get("name", ""))
        return "" if name == f"object {_identity(entry)}" else name  # CocoSink's name of an object without a name

    def _objects(
        self, entry: dict[str, Any], label: str, size: tuple[int, int]
    ) -> Iterator[tuple[Annotation, PackedMask | None]]:
        """Yield the mask, packed, and the keypoints of an annotation. Raises ValueError and others for damage."""
        name, track_id = self._label(entry), _identity(entry)
        points = self._points(entry, label)
        segmentation, contours, kind = entry.get("segmentation"), [], ""
        mask: PackedMask | None = None
        if isinstance(segmentation, dict) and segmentation:
            mask, kind = self._runs(segmentation, size), "pixels"
        elif segmentation:
            contours, kind = _outlines(segmentation), "polygons"
        elif (box := entry.get("bbox")) and not self._is_box_of_points(entry, box, points):
            contours, kind = [_box(box, entry.get("attributes") or {})], "box"
        if contours:
            mask = PolygonMask.of(contours, size, self._context.budget)
        if mask is not None:
            self._kinds.add(kind)
            yield MaskObject(0, PACKED, name, track_id, name, tuple(contours)), mask
        elif kind:
            self._context.leave_out(label, "it has no pixel in the image")
        elif not points and not entry.get("keypoints"):
            self._context.leave_out(label, "it has neither mask, box nor keypoints")
        if points:
            places = np.array(list(points.values()), np.float32)
            yield KeypointsObject(0, places, tuple(points), name, track_id, name), None

    def _runs(self, encoded: dict[str, Any], size: tuple[int, int]) -> RunMask | None:
        """Return the mask of run lengths, or None for an empty one."""
        count = _BYTES_OF_RUN * len(encoded["counts"])
        self._context.budget.take(count, "run lengths")
        mask = RunMask.of(coco_runs(encoded, size), size)
        self._context.budget.give_back(count)
        return mask if mask.place[2] else None

    def _points(self, entry: dict[str, Any], label: str) -> dict[str, list[float]]:
        """Return the labelled keypoints of an annotation by name."""
        if not entry.get("keypoints"):
            return {}
        rows = np.array(entry["keypoints"], np.float64).reshape(-1, 3)
        names = [str(one) for one in self._categories.get(entry.get("category_id"), {}).get("keypoints") or []]
        names = names or [f"point{index + 1}" for index in range(len(rows))]
        points: dict[str, list[float]] = {}
        for index, (x, y, visibility) in enumerate(rows.tolist()):
            if not visibility > 0:
                continue
            if index >= len(names):
                self._context.leave_out(f"{label}, point {index + 1}", "its category has fewer keypoints")
            elif not (math.isfinite(x) and math.isfinite(y)):
                self._context.leave_out(f"{label}, point {names[index]!r}", "its coordinates are no numbers")
            elif visibility < 1 and visibility < self._context.min_score:
                self._context.ignore(f"{label}, point {names[index]!r}", "its score is below the least score")
            else:
                points[names[index]] = [x, y]
        return points

    @staticmethod
    def _is_box_of_points(entry: dict[str, Any], box: Any, points: dict[str, list[float]]) -> bool:
        """Return True for a box that only says where the keypoints are, or were before they went out of sight."""
        if not points:
            return bool(entry.get("iscrowd") and entry.get("keypoints"))
        places, (x, y, width, height) = np.array(list(points.values())), map(float, box)
        corners = np.array([places.min(0), places.max(0)]) - [[x, y], [x + width, y + height]]
        return bool((np.abs(corners) < 1.01).all())  # a box has a side of 1 at least, and numbers are rounded


def _path(image: dict[str, Any]) -> str:
    extra = image.get("extra")
    original = extra.get("name") if isinstance(extra, dict) else None  # Roboflow's name of the image before its own
    return str(original or image.get("file_name") or image.get("name") or image["id"])


def _video_name(video: dict[str, Any]) -> str:
    """Return the name of a video in a file, or the folder of its images."""
    for name in ("name", "file_name"):
        if video.get(name):
            return str(video[name])
    files = video.get("file_names") or [""]
    return str(files[0]).replace("\\", "/").rpartition("/")[0]


def _category(entry: dict[str, Any]) -> Category:
    """Return a category; the skeleton of COCO counts its keypoints from 1."""
    names = tuple(str(one) for one in entry.get("keypoints") or [])
    edges = [tuple(int(end) - 1 for end in edge) for edge in entry.get("skeleton") or []]
    valid = tuple((edge[0], edge[1]) for edge in edges if len(edge) == 2 and all(0 <= end < len(names) for end in edge))
    number = entry["id"] if isinstance(entry["id"], int) else None
    return Category(str(entry.get("name", "")), number, names, valid, str(entry.get("supercategory") or ""))


def _identity(entry: dict[str, Any]) -> TrackId:
    """Return the identity of an annotation's object in the file; a group 0 is none, and neither is -1."""
    attributes = entry.get("attributes")
    for place in (entry, attributes if isinstance(attributes, dict) else {}):
        for name in _IDENTITIES:
            value = place.get(name)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, (int, str)) or value in ("", -1):
                continue
            if name != "group_id" or value not in (0, "0"):
                return value
    return None


def _outlines(segmentation: Any) -> list[np.ndarray]:
    """Return the polygons [P, 2] of an annotation, with (0, 0) at the centre of the top-left pixel."""
    parts = [segmentation] if isinstance(segmentation[0], (int, float)) else segmentation
    if any(isinstance(part, dict) for part in parts):
        raise ValueError("it has several masks of run lengths")
    contours = [np.array(part, np.float64).reshape(-1, 2) - 0.5 for part in parts if len(part)]
    if not contours or any(len(outline) < 3 for outline in contours):
        raise ValueError("it has a polygon of less than three corners")
    return contours


def _box(box: Any, attributes: dict[str, Any]) -> np.ndarray:
    """Return the corners [4, 2] of a box x, y, width, height; CVAT states its rotation, in degrees, beside it."""
    x, y, width, height = map(float, box)
    if not (width > 0 and height > 0):
        raise ValueError("its box is empty")
    corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]) - 0.5
    return rotated(corners, float(attributes.get("rotation") or 0))
