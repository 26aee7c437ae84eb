"""Reader of CVAT 1.1 XML: exports of tasks, jobs and projects, "for images" and "for video".

Each shape with an area is a mask; points and skeletons are keypoints. Of tracks, the keyframes are read, and `outside`
says that the object is out of the picture until its next keyframe. Frame numbers of CVAT are those of the video, also
where the task has a part of its frames.

In CVAT, (0, 0) is the corner of the top-left pixel; the reader subtracts half a pixel.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from corrflow.errors import InputError
from corrflow.file_budget import read_text
from corrflow.runtime.formats.annotations import FileContent, ReadContext, stands_for
from corrflow.runtime.formats.compressed_annotation import PACKED, PackedFrames
from corrflow.runtime.formats.image_selection import ListedImage, select_images
from corrflow.runtime.formats.label_schema import Category, FrameKey, LabelSchema
from corrflow.runtime.formats.packed_masks import BitMask, PackedMask, PolygonMask
from corrflow.runtime.formats.polygons import rotated
from corrflow.runtime.formats.rle import decode_cvat_rle
from corrflow.runtime.types import AbsentObject, KeypointsObject, MaskObject, TrackId

_IGNORED = {
    "polyline": "a line has no area",
    "cuboid": "a cuboid is no shape in the image",
    "tag": "a tag is of the whole image",
}
_BYTES_OF_ELEMENT = 200
_BYTES_OF_RUN = 50  # while run lengths are decoded, for each letter
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def read_cvat(path: Path, content: Any, context: ReadContext) -> FileContent:
    """Read the objects by the image's name without its suffix, or by the index of a video's frame.

    Raises InputError for any other file, and for one without a shape.
    """
    try:
        text = read_text(path)
        # An element takes some 600 bytes, and one image or track is in memory at a time.
        context.budget.take(2 * len(text) + _BYTES_OF_ELEMENT * text.count("<"), "elements of XML")
        if re.search(r"<!(DOCTYPE|ENTITY)", text):
            raise ValueError("a document type, which CVAT does not write")
        return _Reader(text, context).content()
    except OSError as error:
        raise InputError(f"expected CVAT XML in {path}, got a file that cannot be read ({error.strerror})") from error
    except EmptyFile:
        raise InputError(f"expected labels in {path}, got none; draw a mask, polygon, box or points") from None
    except (*_DAMAGE, ElementTree.ParseError, LookupError, RecursionError) as error:
        raise InputError(
            f"expected CVAT XML in {path}, got one that cannot be read ({type(error).__name__}: {error}); export "
            "it again"
        ) from error


class EmptyFile(Exception):
    """File without a shape."""


class _Reader:
    """Reader of one file for one video; the XML is read twice, an image or track at a time."""

    def __init__(self, text: str, context: ReadContext) -> None:
        self._text, self._context = text, context
        self._frames = PackedFrames(context.budget)
        self._meta = Element("meta")
        self._kinds: set[str] = set()  # tags of the shapes that were read as masks

    def content(self) -> FileContent:
        """Return the objects of the video, and the file's labels."""
        listed: list[tuple[str, str]] = []  # the name and the task of each image
        tasks: set[str] = set()
        count = 0
        for child in self._children():
            if child.tag == "meta":
                self._meta = child
            elif child.tag == "image":
                listed.append((child.attrib["name"], child.get("task_id", "")))
                count += len(child)
            elif child.tag == "track":
                tasks.add(child.get("task_id", ""))
                count += len(child)
        if not count:
            raise EmptyFile
        owners = self._owners()
        is_project = len(owners) > 1
        images = {
            number: ListedImage(name, owners.get(task, "") if is_project or "/" not in name else "")
            for number, (name, task) in enumerate(listed)
        }
        keys = select_images(images, self._context)
        chosen = self._context.select_videos({owners.get(task, "") for task in {*tasks, *owners}}) if tasks else set()
        number = -1
        for child in self._children():
            if child.tag == "image":
                number += 1
                if number in keys:
                    self._read_image(child, keys[number])
                elif len(child):
                    self._context.ignore(f"image {child.attrib['name']!r}", "labels of another video")
            elif child.tag == "track":
                owner = owners.get(child.get("task_id", ""), "")
                if owner in chosen:
                    self._read_track(child)
                else:
                    self._context.ignore(f"track {child.get('id')!r} of {owner!r}", "labels of another video")
        names: dict[FrameKey, str] = {key: listed[number][0] for number, key in keys.items()}
        schema = LabelSchema(
            tuple(self._categories()),
            image_names=names,
            has_outlines="polygon" in self._kinds,
            has_only_boxes=self._kinds == {"box"},
        )
        return FileContent(self._frames, schema)

    def _children(self) -> Iterator[Element]:
        """Yield the elements under the root, one in memory at a time."""
        depth, root = 0, Element("")
        for event, element in ElementTree.iterparse(io.StringIO(self._text), ("start", "end")):
            if event == "start":
                root = element if not depth else root
                if not depth and root.tag != "annotations":
                    raise ValueError(f"<{root.tag}> in place of <annotations>")
                depth += 1
                continue
            depth -= 1
            if depth == 1:
                yield element
                root.clear()

    def _owners(self) -> dict[str, str]:
        """Return the name of each task's video, by the task's id; a file of one task has no ids, and the key "".

        This is the task's source or name, whichever stands for the context's video.
        """
        tasks = self._meta.findall("project/tasks/task")
        several = {task.findtext("id", ""): [task.findtext(".//source"), task.findtext("name")] for task in tasks}
        single = [self._meta.findtext(".//source"), self._meta.findtext("task/name")]
        owners: dict[str, str] = {}
        for key, found in (several or {"": single}).items():
            names = [name for name in found if name]
            matching = [name for name in names if stands_for(name, self._context.video)]
            owners[key] = (matching or (names if several else []) or [""])[0]
        return owners

    def _read_image(self, image: Element, frame: FrameKey) -> None:
        size = self._context.frame_size()
        stated = image.get("height"), image.get("width")
        if all(stated) and stated != (str(size[0]), str(size[1])):
            if len(image):
                what = f"frame {frame!r} of {stated[1]}x{stated[0]}"
                self._context.leave_out(what, "the image is not of the video's size")
            return
        merged: dict[Any, _Packed] = {}
        for number, entry in enumerate(image):
            identity = _attribute(entry, "track_id")
            if identity is None:
                identity = _number(entry.get("group_id")) or None  # a group 0 is none
            for one, mask in self._objects(entry, entry.get("label", ""), frame, identity, size):
                key = (type(one), one.category, identity if identity is not None else ("shape", number))
                self._context.budget.check_time()
                merged[key] = _united(merged[key], (one, mask)) if key in merged else (one, mask)
        for one, mask in merged.values():
            self._frames.add(frame, one, mask)

    def _read_track(self, track: Element) -> None:
        size, label = self._context.frame_size(), track.get("label", "")
        if (stated := self._stated_size(track)) not in (None, size):
            what = f"track {track.get('id')!r} of {stated[1]}x{stated[0]}" if stated else ""
            self._context.leave_out(what, "the track is not of the video's size")
            return
        every = _with_nested(track)
        shapes = [shape for shape in every if _is_keyframe(shape)]
        if len(shapes) < len(every):
            self._context.ignore(f"track {track.get('id')!r}, frames between keyframes", "CVAT interpolated them")
        identity = next((found for one in shapes if (found := _attribute(one, "track_id")) is not None), None)
        identity = _number(track.get("id")) if identity is None else identity
        if self._is_single(shapes):
            # CVAT exports a shape of one frame as a track that ends on the next.
            del shapes[1:]
            identity = _number(track.get("group_id")) or None
        is_mask = not any(one.tag in ("points", "skeleton") for one in shapes)
        name = "" if label == f"object {identity}" else label
        for shape in shapes:
            frame = _frame(shape)
            if frame < 0:
                self._context.leave_out(f"track {track.get('id')!r}, frame {shape.get('frame')!r}", "it is no frame")
            elif _is_outside(shape):
                self._frames.add(frame, AbsentObject(0, name, identity, name, is_mask))
            else:
                for one, mask in self._objects(shape, label, frame, identity, size):
                    self._frames.add(frame, one, mask)

    def _stated_size(self, track: Element) -> tuple[int, int] | None:
        """Return the (height, width) of a track's video as the file states it; exports of jobs have it elsewhere."""
        tasks = self._meta.findall("project/tasks/task")
        own = [task for task in tasks if task.findtext("id") == track.get("task_id")] if tasks else [self._meta]
        found = own[0].find(".//original_size") if own else None
        height, width = (_number(found.findtext(side)) if found is not None else None for side in ("height", "width"))
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def _is_single(self, shapes: list[Element]) -> bool:
        if len(shapes) != 2 or _is_outside(shapes[0]) or not _is_outside(shapes[1]):
            return False
        step = re.search(r"step\s*=\s*([0-9]+)", self._meta.findtext(".//frame_filter") or "")
        return _frame(shapes[1]) - _frame(shapes[0]) == (int(step[1]) if step else 1)

    def _objects(
        self, shape: Element, label: str, frame: FrameKey, identity: TrackId, size: tuple[int, int]
    ) -> Iterator[_Packed]:
        """Yield the object of a shape, with its packed mask; one that cannot be read is left out."""
        what = f"frame {frame!r}, {shape.tag} {label!r}"
        name = "" if label == f"object {identity}" else label
        if shape.tag in _IGNORED:
            self._context.ignore(what, _IGNORED[shape.tag])
            return
        try:
            if shape.tag in ("points", "skeleton"):
                points = self._keypoints(shape, what)
                if points:
                    places = np.array(list(points.values()), np.float32)
                    yield KeypointsObject(0, places, tuple(points), name, identity, name), None
                else:
                    self._context.leave_out(what, "it has no point in the picture")
                return
            outline = None if shape.tag == "mask" else _outline(shape)
            mask = self._runs(shape, size) if outline is None else PolygonMask.of([outline], size, self._context.budget)
            if mask is not None:
                self._kinds.add("rotated box" if shape.tag == "box" and shape.get("rotation") else shape.tag)
                yield MaskObject(0, PACKED, name, identity, name, () if outline is None else (outline,)), mask
            else:
                self._context.leave_out(what, "it has no pixel in the image")
        except _DAMAGE as error:
            reason = str(error) if type(error) is ValueError else f"it cannot be read ({type(error).__name__})"
            self._context.leave_out(what, reason)

    def _runs(self, shape: Element, size: tuple[int, int]) -> BitMask | None:
        """Return the mask of run lengths, or None for an empty one."""
        count = _BYTES_OF_RUN * len(shape.get("rle", ""))
        self._context.budget.take(count, "run lengths")
        part, top, left = decode_cvat_rle(shape.attrib, size)
        mask = BitMask.of(part, (top, left), size)
        self._context.budget.give_back(count)
        return mask if mask.bits else None

    def _keypoints(self, shape: Element, what: str) -> dict[str, np.ndarray]:
        """Return the points of a shape that are in the picture, by name."""
        if shape.tag == "points":
            return {f"point{index + 1}": point for index, point in enumerate(_points(shape.attrib["points"]))}
        points: dict[str, np.ndarray] = {}
        elements = list(shape.iter("points"))
        keyframes = [one for one in elements if one.get("keyframe", "1") == "1"] or elements
        for element in elements:
            named = f"{what}, point {element.get('label')!r}"
            if element.get("outside") == "1":
                self._context.ignore(named, "the point is outside of the picture there")
            elif element in keyframes:
                points[element.attrib["label"]] = _points(element.attrib["points"])[0]
        return points

    def _categories(self) -> Iterator[Category]:
        """Yield the labels of the file; the elements of a skeleton are labels with a parent."""
        labels = [label for label in self._meta.iter("label") if label.findtext("name")]
        for label in labels:
            if label.findtext("parent"):
                continue
            name = label.findtext("name", "")
            points = [one.findtext("name", "") for one in labels if one.findtext("parent") == name]
            yield Category(name, None, tuple(dict.fromkeys(points)), tuple(_edges(label, points)))


def _edges(label: Element, points: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the edges of a skeleton, which CVAT has in a drawing."""
    drawing = "".join(ElementTree.tostring(one, encoding="unicode") for one in label.findall("svg"))
    drawing = drawing.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    nodes: dict[str, str] = {}
    for circle in re.findall(r"<circle[^>]*>", drawing):
        node, name = (re.search(rf'{key}="([^"]*)"', circle) for key in ("data-node-id", "data-label-name"))
        if node and name:
            nodes[node[1]] = name[1]
    for line in re.findall(r"<line[^>]*>", drawing):
        ends = [re.search(rf'{key}="([^"]*)"', line) for key in ("data-node-from", "data-node-to")]
        names = [nodes.get(end[1], "") for end in ends if end]
        if len(names) == 2 and all(name in points for name in names):
            yield points.index(names[0]), points.index(names[1])


def _with_nested(track: Element) -> list[Element]:
    """Return the shapes of a track; the points of tracks within it become a skeleton on each of their frames."""
    shapes = [shape for shape in track if shape.tag not in ("track", "attribute")]
    skeletons: dict[str, Element] = {}
    for inner in track.findall("track"):
        for point in inner.findall("points"):
            frame = point.get("frame", "")
            if frame not in skeletons:
                skeletons[frame] = Element("skeleton", frame=frame)
            SubElement(skeletons[frame], "points", {**point.attrib, "label": inner.get("label", "")})
    return sorted([*shapes, *skeletons.values()], key=_frame)


def _is_keyframe(shape: Element) -> bool:
    """Return True for a shape that a person placed; a skeleton is one where any of its points is."""
    stated = [one.get("keyframe") for one in (shape, *shape.findall("points"))]
    return "1" in stated or not any(stated)


def _frame(shape: Element) -> int:
    """Return the frame of a track's shape; -1 for one without."""
    frame = _number(shape.get("frame"))
    return frame if isinstance(frame, int) else -1


def _is_outside(shape: Element) -> bool:
    elements = shape.findall("points") if shape.tag == "skeleton" else []
    return shape.get("outside") == "1" or (bool(elements) and all(one.get("outside") == "1" for one in elements))


_Packed = tuple[MaskObject | KeypointsObject, PackedMask | None]


def _united(packed: _Packed, more: _Packed) -> _Packed:
    """Return two shapes of one group as one object."""
    (one, mask), (other, added) = packed, more
    if isinstance(one, MaskObject) or isinstance(other, MaskObject):
        assert isinstance(one, MaskObject) and isinstance(other, MaskObject) and mask and added, "the key has the type"
        polygons = (*one.polygons, *other.polygons) if one.polygons and other.polygons else ()
        union = PolygonMask(mask.shape, polygons) if polygons else BitMask.of(mask.unpacked() | added.unpacked())
        return MaskObject(0, PACKED, one.name, one.track_id, one.category, polygons), union
    points: dict[str, np.ndarray] = dict(zip(one.point_names, one.points, strict=True))
    for name, place in zip(other.point_names, other.points, strict=True):
        points[f"point{len(points) + 1}" if name in points else name] = place
    places = np.array(list(points.values()), np.float32)
    return KeypointsObject(0, places, tuple(points), one.name, one.track_id, one.category), None


def _outline(shape: Element) -> np.ndarray:
    """Return the outline [P, 2] of a box, an ellipse or a polygon; a rotation is in degrees, clockwise."""
    turn = float(shape.get("rotation") or 0)
    if shape.tag == "polygon":
        outline = _points(shape.attrib["points"])
        if len(outline) < 3:
            raise ValueError("it has less than three corners")
        return outline
    if shape.tag == "ellipse":
        cx, cy, rx, ry = _floats(shape.attrib, "cx", "cy", "rx", "ry")
        angle = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        return rotated(np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], 1) - 0.5, turn)
    if shape.tag != "box":
        raise ValueError("it is no known shape")
    x0, y0, x1, y1 = _floats(shape.attrib, "xtl", "ytl", "xbr", "ybr")
    if not (x0 < x1 and y0 < y1):
        raise ValueError("the box is empty")
    return rotated(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - 0.5, turn)


def _floats(attributes: Mapping[str, str], *names: str) -> list[float]:
    return [float(attributes[name]) for name in names]


def _points(text: str) -> np.ndarray:
    """Convert "x,y;x,y" to [P, 2] with (0, 0) at the centre of the top-left pixel."""
    points = np.array([[float(number) for number in pair.split(",")] for pair in text.split(";")]) - 0.5
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("its points are no pairs of numbers")
    return points


def _attribute(shape: Element, name: str) -> TrackId:
    """Return an attribute that the user gave to a shape, a number where it is one; None without it."""
    for one in shape.findall("attribute"):
        if one.get("name") == name:
            return _number(one.text)
    return None


def _number(text: str | None) -> TrackId:
    """Return a text as a whole number where it is one, else as it is; None for an empty one."""
    text = (text or "").strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text or None
