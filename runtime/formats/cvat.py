"""CVAT 1.1 XML: of pictures, in and out, with masks as run lengths; of videos, in.

A run-length mask is that of its box, row after row, beginning with pixels outside. Pixels are CVAT's own, whose (0, 0)
is the corner of the top-left pixel for points and polygons: half a pixel is taken off here and added there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from corrflow.atomic_files import finish, part_of, prepare_place, write_failed
from corrflow.errors import InputError
from corrflow.runtime.formats.base import LARGEST_SIDE, Sink
from corrflow.runtime.formats.polygons import filled
from corrflow.runtime.formats.rle import _of_run_lengths, _run_lengths
from corrflow.runtime.types import FrameResult, KeypointsObject, MaskObject, ObjectResult, TrackedObject

_DRAWN = ("mask", "polygon", "box", "points", "skeleton")


class CvatSink(Sink):
    """One XML file of all frames, "CVAT for images 1.1", written as they come; `group_id` is the object's id."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where the path cannot be written to."""
        self._path = Path(path)
        prepare_place(self._path)
        self._file = part_of(self._path).open("w", encoding="utf-8")
        self._frames = 0

    def write(self, result: FrameResult) -> None:
        height, width = result.mask.shape
        picture = Element(
            "image", id=str(result.frame.index), name=f"{result.frame.name}.jpg", width=str(width), height=str(height)
        )
        for track in result.objects:
            common = {"label": _label(track), "source": "auto", "group_id": str(track.id)}
            if track.points is None:
                if track.box is not None:
                    SubElement(
                        picture, "mask", common | _run_lengths(result.mask == track.id), occluded="0", z_order="0"
                    )
                continue
            skeleton = SubElement(picture, "skeleton", common, z_order="0")
            for name, (x, y) in zip(track.point_names, track.points.astype(np.float64) + 0.5, strict=True):
                SubElement(
                    skeleton, "points", label=name, source="auto", outside="0", occluded="0", points=f"{x:.3f},{y:.3f}"
                )
        try:
            if not self._frames:
                head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>\n'
                self._file.write(head + ElementTree.tostring(_meta(result), encoding="unicode") + "\n")
            self._file.write(ElementTree.tostring(picture, encoding="unicode") + "\n")
        except OSError as error:
            raise write_failed(self._path, error) from None
        self._frames += 1

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            with self._file as file:
                file.write("</annotations>\n")
            finish(self._path, keep=self._frames > 0)
        except OSError as error:
            raise write_failed(self._path, error) from None


def _label(track: ObjectResult) -> str:
    return track.name or f"object {track.id}"


def _meta(result: FrameResult) -> Element:
    """The labels, which some readers ask for; a point's is below that of its object."""
    meta = Element("meta")
    labels = SubElement(SubElement(meta, "task"), "labels")
    known: set[tuple[str, str]] = set()
    for track in result.objects:
        own = (_label(track), "mask" if track.points is None else "skeleton", "")
        for name, kind, parent in (own, *((point, "points", own[0]) for point in track.point_names)):
            if (name, parent) in known:
                continue
            known.add((name, parent))
            label = SubElement(labels, "label")
            SubElement(label, "name").text = name
            SubElement(label, "type").text = kind
            SubElement(label, "attributes")
            if parent:
                SubElement(label, "parent").text = parent
    return meta


def read_cvat(path: Path) -> dict[int | str, list[TrackedObject]]:
    """The objects by the picture's name without suffix, or by the index of a video's frame.

    Of a video's tracks the keyframes count, not what CVAT interpolated between. Raises InputError for what is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if re.search(r"<!(DOCTYPE|ENTITY)", text):
            raise ValueError("a document type, which CVAT does not write")
        root = ElementTree.fromstring(text)
        if root.tag != "annotations":
            raise ValueError(f"<{root.tag}> in place of <annotations>")
        found: dict[int | str, list[TrackedObject]] = {}
        for picture in root.iter("image"):
            shape = _side(picture, "height"), _side(picture, "width")
            objects = [
                given for entry in picture for given in _objects(entry, entry, shape, _number(entry, "group_id"))
            ]
            found[Path(picture.attrib["name"]).stem] = objects
        size = root.find("meta/task/original_size")
        size = root.find("meta/job/original_size") if size is None else size
        for track in root.iter("track"):
            if size is None:
                raise ValueError("tracks without the video's original_size")
            shape = int(size.findtext("height", "")), int(size.findtext("width", ""))
            for entry in track:
                if entry.get("keyframe") == "1" and entry.get("outside") != "1":
                    objects = list(_objects(entry, track, shape, _number(track, "id") + 1))
                    found.setdefault(int(entry.attrib["frame"]), []).extend(objects)
        if not any(found.values()):
            raise InputError(f"expected labels in {path}, got none; draw a mask, polygon, box or points")
        return found
    except OSError as error:
        raise InputError(f"expected CVAT XML in {path}, got a file that cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, ElementTree.ParseError, OverflowError) as error:
        raise InputError(
            f"expected CVAT XML in {path}, got one that cannot be read ({type(error).__name__}: {error}); export "
            "it again"
        ) from error


def _objects(entry: Element, named: Element, shape: tuple[int, int], identity: int) -> Iterator[TrackedObject]:
    """named: the element that carries the label, the entry itself or its track."""
    if entry.tag not in _DRAWN:
        return
    if not all(1 <= side <= LARGEST_SIDE for side in shape):
        raise ValueError(f"a picture of {shape[1]}x{shape[0]}")
    identity = identity if 0 < identity < 256 else 0
    name = named.attrib["label"]
    name = "" if name == f"object {identity}" else name
    if entry.tag in ("points", "skeleton"):
        places: dict[str, np.ndarray] = {}
        for part in [entry] if entry.tag == "points" else entry.iter("points"):
            if part.get("outside") == "1":
                continue
            own = _places(part.attrib["points"])
            label = part.attrib["label"] if entry.tag == "skeleton" else ""
            for place in own:
                places[label or f"point{len(places) + 1}"] = place
        if places:
            yield KeypointsObject(identity, np.array(list(places.values()), np.float32), tuple(places), name)
        return
    if entry.tag == "mask":
        mask = _of_run_lengths(entry, shape)
    elif entry.tag == "polygon":
        mask = filled([_places(entry.attrib["points"])], shape)
    else:
        x0, y0, x1, y1 = (float(entry.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        # Pixels whose centres are in the box.
        corners = np.array([[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]])
        mask = filled([corners], shape)
    if mask.any():
        yield MaskObject(identity, mask, name)


def _places(text: str) -> np.ndarray:
    """[P, 2] of "x,y;x,y", in our pixels."""
    places = np.array([[float(number) for number in pair.split(",")] for pair in text.split(";")]) - 0.5
    if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
        raise ValueError(f"points {text[:40]!r}")
    return places


def _side(picture: Element, name: str) -> int:
    return int(picture.attrib[name])


def _number(entry: Element, name: str) -> int:
    text = entry.get(name, "0")
    return int(text) if text.isascii() and text.isdigit() else 0
