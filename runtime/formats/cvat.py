"""CVAT 1.1 XML: projects of images are read and written, projects of videos are read.

In CVAT, (0, 0) is the corner of the top-left pixel for points and polygons. The reader subtracts half a pixel and the
writer adds half a pixel. Masks have run lengths, see `rle`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from corrflow.atomic_files import AtomicFile, check_writable, write_errors
from corrflow.errors import InputError
from corrflow.runtime.formats.base import LARGEST_SIDE, Sink
from corrflow.runtime.formats.polygons import filled
from corrflow.runtime.formats.rle import cvat_rle, decode_cvat_rle
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject, ObjectResult, TrackedObject

_SHAPES = ("mask", "polygon", "box", "points", "skeleton")


class CvatSink(Sink):
    """Writer of one XML file for all frames, "CVAT for images 1.1"; `group_id` is the object's id."""

    def __init__(self, path: str | Path) -> None:
        """Create the file. Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        check_writable(self._path)
        self._output = AtomicFile(self._path, exclusive=True)
        self._file = open(self._output.part, "w", encoding="utf-8")  # noqa: SIM115, open until close()
        self._frames = 0

    def write(self, result: FrameResult) -> None:
        height, width = result.mask.shape
        image = Element(
            "image", id=str(result.frame.index), name=f"{result.frame.name}.jpg", width=str(width), height=str(height)
        )
        for obj in result.objects:
            common = {"label": _label(obj), "source": "auto", "group_id": str(obj.id)}
            if obj.points is None:
                if obj.box is not None:
                    SubElement(image, "mask", common | cvat_rle(result.mask == obj.id), occluded="0", z_order="0")
                continue
            skeleton = SubElement(image, "skeleton", common, z_order="0")
            for name, (x, y) in zip(obj.point_names, obj.points.astype(np.float64) + 0.5, strict=True):
                SubElement(
                    skeleton, "points", label=name, source="auto", outside="0", occluded="0", points=f"{x:.3f},{y:.3f}"
                )
        with write_errors(self._path):
            if not self._frames:
                head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>\n'
                self._file.write(head + ElementTree.tostring(_meta(result), encoding="unicode") + "\n")
            self._file.write(ElementTree.tostring(image, encoding="unicode") + "\n")
        self._frames += 1

    def close(self) -> None:
        if not self._file.closed:
            with write_errors(self._path):
                with self._file as file:
                    file.write("</annotations>\n")
                self._output.finish(keep=self._frames > 0)


def _label(obj: ObjectResult) -> str:
    return obj.name or f"object {obj.id}"


def _meta(result: FrameResult) -> Element:
    """Return the list of labels, which some readers need; the label of a point has its object's label as parent."""
    meta = Element("meta")
    labels = SubElement(SubElement(meta, "task"), "labels")
    listed: set[tuple[str, str]] = set()
    for obj in result.objects:
        object_label = (_label(obj), "mask" if obj.points is None else "skeleton", "")
        for name, kind, parent in (object_label, *((point, "points", object_label[0]) for point in obj.point_names)):
            if (name, parent) in listed:
                continue
            listed.add((name, parent))
            label = SubElement(labels, "label")
            SubElement(label, "name").text = name
            SubElement(label, "type").text = kind
            SubElement(label, "attributes")
            if parent:
                SubElement(label, "parent").text = parent
    return meta


def read_cvat(path: Path) -> dict[int | str, list[TrackedObject]]:
    """Read the objects by the image's name without its suffix, or by the index of a video's frame.

    Only keyframes of a video's tracks are read, not the frames that CVAT interpolates. Raises InputError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if re.search(r"<!(DOCTYPE|ENTITY)", text):
            raise ValueError("a document type, which CVAT does not write")
        root = ElementTree.fromstring(text)
        if root.tag != "annotations":
            raise ValueError(f"<{root.tag}> in place of <annotations>")
        by_frame: dict[int | str, list[TrackedObject]] = {}
        for image in root.iter("image"):
            shape = int(image.attrib["height"]), int(image.attrib["width"])
            objects = [obj for entry in image for obj in _objects(entry, entry, shape, _number(entry, "group_id"))]
            by_frame[Path(image.attrib["name"]).stem] = objects
        size = root.find("meta/task/original_size")
        size = root.find("meta/job/original_size") if size is None else size
        for track in root.iter("track"):
            if size is None:
                raise ValueError("tracks without the video's original_size")
            shape = int(size.findtext("height", "")), int(size.findtext("width", ""))
            for entry in track:
                if entry.get("keyframe") == "1" and entry.get("outside") != "1":
                    objects = list(_objects(entry, track, shape, _number(track, "id") + 1))
                    by_frame.setdefault(int(entry.attrib["frame"]), []).extend(objects)
        if not any(by_frame.values()):
            raise InputError(f"expected labels in {path}, got none; draw a mask, polygon, box or points")
        return by_frame
    except OSError as error:
        raise InputError(f"expected CVAT XML in {path}, got a file that cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, ElementTree.ParseError, OverflowError) as error:
        raise InputError(
            f"expected CVAT XML in {path}, got one that cannot be read ({type(error).__name__}: {error}); export "
            "it again"
        ) from error


def _objects(entry: Element, labelled: Element, shape: tuple[int, int], identity: int) -> Iterator[TrackedObject]:
    """Yield the object of a shape; labelled: element with the label, which is the shape itself or its track."""
    if entry.tag not in _SHAPES:
        return
    if not all(1 <= side <= LARGEST_SIDE for side in shape):
        raise ValueError(f"an image of {shape[1]}x{shape[0]}")
    identity = identity if 0 < identity < 256 else 0
    name = labelled.attrib["label"]
    name = "" if name == f"object {identity}" else name
    if entry.tag in ("points", "skeleton"):
        points: dict[str, np.ndarray] = {}
        for part in [entry] if entry.tag == "points" else entry.iter("points"):
            if part.get("outside") == "1":
                continue
            label = part.attrib["label"] if entry.tag == "skeleton" else ""
            for point in _points(part.attrib["points"]):
                points[label or f"point{len(points) + 1}"] = point
        if points:
            yield KeypointsObject(identity, np.array(list(points.values()), np.float32), tuple(points), name)
        return
    if entry.tag == "mask":
        mask = decode_cvat_rle(entry.attrib, shape)
    elif entry.tag == "polygon":
        mask = filled([_points(entry.attrib["points"])], shape)
    else:
        x0, y0, x1, y1 = (float(entry.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        # The mask has the pixels with their centre in the box.
        corners = np.array([[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]])
        mask = filled([corners], shape)
    if mask.any():
        yield MaskObject(identity, mask, name)


def _points(text: str) -> np.ndarray:
    """Convert "x,y;x,y" to [P, 2] with (0, 0) at the centre of the top-left pixel."""
    points = np.array([[float(number) for number in pair.split(",")] for pair in text.split(";")]) - 0.5
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"points {text[:40]!r}")
    return points


def _number(entry: Element, name: str) -> int:
    text = entry.get(name, "0")
    return int(text) if text.isascii() and text.isdigit() else 0
