"""Writer of CVAT 1.1 XML.

A folder of images becomes "CVAT for images". Each image has its own name, and its objects are masks with run lengths.
They are polygons or boxes where the labels were those. `group_id` is the identity of an object.

Any other source becomes "CVAT for video", which CVAT loads into a task of the video, with a track for each object.
Every frame is a keyframe, because CVAT would interpolate any other. Where an object goes out of the picture, its track
has a keyframe that is `outside`. CVAT has no tracks of masks. They are polygons, bridged where an object has several
components, or boxes where all labels were boxes. Labels of the user have the source "manual", all others "auto".

In CVAT, (0, 0) is the corner of the top-left pixel; the writer adds half a pixel.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.label_schema import EMPTY_SCHEMA, LabelSchema
from corrflow.runtime.formats.polygons import bridged, simplified_polygons
from corrflow.runtime.formats.rle import cvat_rle
from corrflow.runtime.types import MIN_POINT_CONFIDENCE, FrameResult, ObjectResult

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class CvatSink(Sink):
    """Writer of one XML file for all frames; images, or each track's frames, are in temporary files until the end."""

    def __init__(self, path: str | Path, schema: LabelSchema = EMPTY_SCHEMA) -> None:
        """Create the file. Raises InputError where the path cannot be written to."""
        self._path, self._schema = Path(path), schema
        check_writable(self._path)
        self._output = AtomicFile(self._path)
        self._bodies: dict[int, _Body] = {}  # by the object's id; 0 for images
        # The points of each label; dictionaries keep their order.
        self._labels = {_valid(one.name): dict[str, None].fromkeys(one.point_names) for one in schema.categories}
        self._size = (0, 0)
        self._last = -1
        self._is_images = self._is_closed = False

    def write(self, result: FrameResult) -> None:
        if self._last < 0:
            self._is_images, self._size = bool(result.frame.file_name), (result.mask.shape[0], result.mask.shape[1])
        self._last = result.frame.index
        for obj in result.objects:
            points = self._labels.setdefault(_label(obj), {})
            points.update(dict.fromkeys(obj.point_names if _is_points(obj) else ()))
        with write_errors(self._path):
            if self._is_images:
                self._body(0, "").write(self._image(result))
            else:
                for obj in result.objects:
                    self._add_to_track(result, obj)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with write_errors(self._path), ExitStack() as stack:
            for body in self._bodies.values():
                stack.callback(body.file.close)
            if self._last < 0:
                return
            with self._output as part, open(part, "w", encoding="utf-8") as file:
                file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
                file.write(ElementTree.tostring(self._meta(), encoding="unicode") + "\n")
                for body in self._bodies.values():
                    file.write(body.head)
                    body.file.seek(0)
                    shutil.copyfileobj(body.file, file)
                    file.write("</track>\n" if body.head else "")
                file.write("</annotations>\n")

    def _body(self, number: int, head: str) -> _Body:
        if number not in self._bodies:
            # Written at each line: an error appears at the frame that causes it, and not at the end.
            file = tempfile.TemporaryFile("w+", 1, "utf-8", dir=self._path.parent)  # noqa: SIM115, open until close()
            self._bodies[number] = _Body(head, file)
        return self._bodies[number]

    def _image(self, result: FrameResult) -> Element:
        height, width = result.mask.shape
        name = _valid(self._schema.image_name(result.frame))
        image = Element("image", id=str(result.frame.index), name=name, width=str(width), height=str(height))
        for obj in result.objects:
            common = {"label": _label(obj), "source": _source(obj), "group_id": str(_group(obj)), "z_order": "0"}
            for shape in self._shapes(result, obj):
                shape.attrib.update(common)
                _add_identity(shape, obj)
                image.append(shape)
        return image

    def _shapes(self, result: FrameResult, obj: ObjectResult) -> Iterator[Element]:
        """Yield the shapes of an object in an image."""
        if obj.points is not None:
            yield from _placed_points(obj, is_track=False)
        elif obj.visible:
            contours = list(obj.polygons)
            if self._schema.has_only_boxes:
                yield _box(obj)
                return
            if not contours and self._schema.has_outlines and not obj.is_annotation:
                contours = simplified_polygons(result.mask == obj.id, along_edges=True)
            for outline in contours:
                yield Element("polygon", points=_text(outline), occluded="0")
            if not contours:
                yield Element("mask", cvat_rle(result.mask == obj.id), occluded="0")

    def _add_to_track(self, result: FrameResult, obj: ObjectResult) -> None:
        """Write an object of a frame to its track; one that stays out of the picture needs no keyframe."""
        if not obj.visible and (obj.id not in self._bodies or self._bodies[obj.id].is_outside):
            return
        attributes = {"id": str(_group(obj, least=0)), "label": _label(obj), "source": "auto"}
        opened = ElementTree.tostring(Element("track", attributes), encoding="unicode")
        body = self._body(obj.id, opened.replace(" />", ">") + "\n")
        if obj.points is not None:
            shapes = list(_placed_points(obj, is_track=True))
        elif obj.visible and self._schema.has_only_boxes:
            shapes = [_box(obj)]
        elif obj.visible:
            contours = obj.polygons or simplified_polygons(result.mask == obj.id, along_edges=True)
            shapes = [Element("polygon", points=_text(bridged(contours)), outside="0", occluded="0")]
        else:
            assert body.last is not None, "a track begins where its object is visible"
            shapes = [body.last]
        for shape in shapes:
            frame = {"frame": str(result.frame.index), "keyframe": "1", "z_order": "0", "source": _source(obj)}
            shape.attrib.update(frame | ({} if obj.visible else {"outside": "1"}))
            for element in shape.findall("points"):  # CVAT has the frame in the skeleton, Datumaro looks for it here
                element.set("frame", frame["frame"])
            if obj.visible:
                _add_identity(shape, obj)
            body.write(shape)
            body.last = shape
        body.is_outside = not obj.visible

    def _meta(self) -> Element:
        """Return the list of labels, which some readers need; the label of a point has its object's label as parent."""
        meta = Element("meta")
        task = SubElement(meta, "task")
        SubElement(task, "size").text = str(self._last + 1)
        SubElement(task, "mode").text = "annotation" if self._is_images else "interpolation"
        labels = SubElement(task, "labels")
        for label_name, points in self._labels.items():
            parts = [(_valid(point), "points", label_name) for point in points]
            for name, type_name, parent in [(label_name, "skeleton" if points else "any", ""), *parts]:
                label = SubElement(labels, "label")
                SubElement(label, "name").text = name
                SubElement(label, "type").text = type_name
                SubElement(label, "attributes")
                if parent:
                    SubElement(label, "parent").text = parent
        if not self._is_images:
            size = SubElement(task, "original_size")
            SubElement(size, "width").text, SubElement(size, "height").text = str(self._size[1]), str(self._size[0])
        return meta


class _Body:
    """Part of the file: all images, or one track.

    head: opening of the track; "" for images
    last: the track's last shape
    """

    def __init__(self, head: str, file: IO[str]) -> None:
        self.head, self.file = head, file
        self.last: Element | None = None
        self.is_outside = True

    def write(self, element: Element) -> None:
        """Write an element in a line."""
        self.file.write(ElementTree.tostring(element, encoding="unicode") + "\n")


def _label(obj: ObjectResult) -> str:
    return _valid(obj.category or obj.name or f"object {obj.id if obj.track_id is None else obj.track_id}")


def _valid(text: str) -> str:
    """Return a text without characters that XML cannot have."""
    return _NOT_XML.sub("?", text)


def _box(obj: ObjectResult) -> Element:
    """Return the box of a visible mask, or the user's own."""
    assert obj.box is not None, "a visible mask has a box"
    corners = np.array(obj.box, np.float64).reshape(2, 2)
    if obj.polygons:
        own = np.concatenate(obj.polygons) + 0.5
        corners = np.array([own.min(0), own.max(0)])
    sides = zip(("xtl", "ytl", "xbr", "ybr"), corners.ravel().tolist(), strict=True)
    return Element("box", {name: f"{side:.3f}" for name, side in sides}, outside="0", occluded="0")


def _is_points(obj: ObjectResult) -> bool:
    """Return True for points with names of their own, which are a skeleton; CVAT's points have none."""
    return any(name != f"point{index + 1}" for index, name in enumerate(obj.point_names))


def _source(obj: ObjectResult) -> str:
    return "manual" if obj.is_annotation else "auto"


def _group(obj: ObjectResult, least: int = 1) -> int:
    """Return the number of an object: its identity where that is a number CVAT can have, else its id."""
    return obj.track_id if isinstance(obj.track_id, int) and obj.track_id >= least else obj.id


def _add_identity(shape: Element, obj: ObjectResult) -> None:
    """Add an identity that is no group and no number of a track as an attribute."""
    if obj.track_id is not None and obj.track_id != _group(obj):
        SubElement(shape, "attribute", name="track_id").text = _valid(str(obj.track_id))


def _placed_points(obj: ObjectResult, is_track: bool) -> Iterator[Element]:
    """Yield the shape of an object's points: a skeleton, whose points may be outside, or the visible points."""
    assert obj.points is not None
    points = np.nan_to_num(obj.points.astype(np.float64))
    confidence = np.ones(len(points)) if obj.point_confidence is None else obj.point_confidence
    seen = [
        name in obj.annotated_points or bool(probability > MIN_POINT_CONFIDENCE)
        for name, probability in zip(obj.point_names, confidence, strict=True)
    ]
    if not _is_points(obj):
        places = points[seen] if any(seen) else points
        if any(seen) or is_track:
            yield Element("points", points=_text(places), outside=str(int(not any(seen))), occluded="0")
        return
    skeleton = Element("skeleton")
    for name, is_seen, place in zip(obj.point_names, seen, points, strict=True):
        attributes = {
            "label": _valid(name),
            "outside": str(int(not is_seen)),
            "occluded": "0",
            "points": _text(place[None]),
        }
        source = "manual" if name in obj.annotated_points else "auto"
        SubElement(skeleton, "points", attributes | ({"keyframe": "1"} if is_track else {}), source=source)
    yield skeleton


def _text(points: np.ndarray | Sequence[np.ndarray]) -> str:
    return ";".join(f"{x:.3f},{y:.3f}".replace("-0.000", "0.000") for x, y in np.asarray(points) + 0.5)
