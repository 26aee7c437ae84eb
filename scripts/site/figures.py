"""Draw the figures of the documents into docs/images.

python scripts/site/figures.py demo            from the demo clip
    method.svg:   training copies colours, tracking copies masks
    windows.svg:  the memory of the tracker, with its search windows
python scripts/site/figures.py clips PREVIEW   from the folder preview/ of github.com/intel-iot-devkit/sample-videos
    car.webp, aisle.webp: real clips (CC BY 4.0), prompted with boxes that GrabCut cuts out, as on the page
python scripts/site/figures.py mouse VIDEOS    from data/mirror-mouse-example/videos/ of Lightning Pose,
                                               github.com/paninski-lab/lightning-pose
    mouse.webp:   a real clip (MIT), prompted with points on one frame
python scripts/site/figures.py scores RESULTS  from the folder that this command writes:
                                               corrflow-eval davis DAVIS --split train --model quarter --model fast-int8
                                               --baseline flow --baseline identity --out RESULTS
    price.svg:    J&F against CPU time a frame
    drift.svg:    J from the first to the last frame
"""

from __future__ import annotations

import base64
import html
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

import corrflow
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.live.strokes import drawn_mask, parse_strokes
from corrflow.runtime.settings import STRIDE
from corrflow.runtime.video.demo_clip import DemoSource
from corrflow.runtime.video.open_source import open_frames
from corrflow.runtime.video.overlay import draw_overlay

IMAGES = Path(__file__).parents[2] / "docs" / "images"
FONT = 'font-family="Helvetica, Arial, sans-serif"'
INK, DIM, BLUE, GREEN = "#222c3c", "#667085", "#2f6fe0", "#0f9f74"
QUERY = 24
"""Frame of the clip that the figures track."""
CLIPS = (
    ("car", "person-bicycle-car-detection.gif", 12, 1, {"car": (84, 88, 190, 228)}),
    ("aisle", "store-aisle-detection.gif", 0, 2, {"woman": (344, 80, 424, 262), "man": (262, 56, 326, 226)}),
)
"""Picture, file, prompted frame, step between the frames shown, and boxes (x0, y0, x1, y1) of the objects."""
MOUSE_POINTS = {
    "nose": (376.7, 274.3), "tail": (71.7, 226.0), "front left": (296.7, 257.0), "front right": (301.7, 316.0),
    "hind left": (128.3, 249.3), "hind right": (43.3, 290.3),
}  # fmt: skip
MOUSE_FRAMES = (28, 64)
"""First frame, where the points are, and end: one stride."""
MOUSE_ROWS = slice(171, 394)
"""Rows of the frames that show the mouse from below."""


METHODS = {
    "quarter": ("quarter", BLUE), "fast-int8": ("fast-int8", GREEN), "flow": ("optical flow (DIS)", DIM),
    "identity": ("prompted mask repeated", INK),
}  # fmt: skip
"""Methods of RESULTS, with the name and colour that they are drawn with."""


class Drawing:
    """SVG picture of this size, on white."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">',
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            f' orient="auto"><path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
        ]

    def image(self, image: np.ndarray, x: float, y: float, width: float) -> float:
        """Place an image [H, W, 3] uint8, BGR, and return its height."""
        height = width * image.shape[0] / image.shape[1]
        small = cv2.resize(image, (round(2 * width), round(2 * height)), interpolation=cv2.INTER_AREA)
        data = base64.b64encode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()).decode()
        self.parts.append(
            f'<image x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" href="data:image/jpeg;base64,{data}"/>'
        )
        return height

    def text(self, x: float, y: float, text: str, size: int = 13, colour: str = INK, bold: bool = False) -> None:
        """Write a line that is centred at x."""
        weight = ' font-weight="700"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="middle" {FONT} font-size="{size}"{weight} fill="{colour}">'
            f"{html.escape(text)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str, dashed: bool = False) -> None:
        """Draw the outline of a box."""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="none" stroke="{colour}"'
            f' stroke-width="2"{dashes}/>'
        )

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 2) -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        """Draw a filled circle."""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{colour}"/>')

    def arrow(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Draw an arrow."""
        self.parts.append(
            f'<path d="M{x0:g} {y0:g}L{x1:g} {y1:g}" stroke="{INK}" stroke-width="2" fill="none"'
            ' marker-end="url(#head)"/>'
        )

    def save(self, path: Path) -> None:
        """Write the file."""
        path.write_text("\n".join([*self.parts, "</svg>"]) + "\n", encoding="utf-8")


def tracked_demo() -> list[corrflow.FrameResult]:
    """Track the demo clip with the default model."""
    source = DemoSource()
    mask = source.true_mask(0)
    return list(corrflow.track([frame.image for frame in source], masks={"cup": mask}))


def centre(result: corrflow.FrameResult) -> tuple[float, float]:
    """Return the centre of the object's box, (x, y) in pixels."""
    x0, y0, x1, y1 = result.objects[0].box or (0, 0, 0, 0)
    return (x0 + x1) / 2, (y0 + y1) / 2


def draw_method(results: Sequence[corrflow.FrameResult], path: Path) -> None:
    """Draw training and tracking, one above the other."""
    drawing = Drawing(900, 520, "Training copies colours along matches, tracking copies masks along the same matches")
    reference, query = results[QUERY - 6], results[QUERY]
    grey = cv2.cvtColor(cv2.cvtColor(query.frame.image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    rows = (
        ("Training: copy colours", reference.frame.image, grey, "reference frame, in colour", "query frame, in grey",
         ("loss: copied colour", "against true colour"), BLUE),
        ("Tracking: copy masks", draw_overlay(reference), draw_overlay(query), "reference frame with its mask",
         "query frame: the copied mask", ("nothing is trained,", "the encoder is the same"), GREEN),
    )  # fmt: skip
    scale = 300 / query.frame.image.shape[1]
    for row, (title, left, right, left_text, right_text, remark, colour) in enumerate(rows):
        top = 40 + 255 * row
        drawing.text(450, top - 12, title, 16, colour, bold=True)
        height = drawing.image(left, 30, top, 300)
        drawing.image(right, 570, top, 300)
        (x0, y0), (x1, y1) = ((scale * x, top + scale * y) for x, y in (centre(reference), centre(query)))
        side = 56
        drawing.box(30 + x1 - side / 2, y1 - side / 2, side, side, colour)
        drawing.box(570 + x1 - 5, y1 - 5, 10, 10, colour)
        drawing.box(30 + x0 - 5, y0 - 5, 10, 10, INK)
        drawing.arrow(30 + x1 + side / 2, y1, 570 + x1 - 10, y1)
        drawing.text(450, top + 24, "encoder: features of both frames", 12, DIM)
        drawing.text(450, top + height - 30, remark[0], 12, DIM)
        drawing.text(450, top + height - 14, remark[1], 12, DIM)
        drawing.text(180, top + height + 18, left_text)
        drawing.text(720, top + height + 18, right_text)
    drawing.text(
        450, 510, "Box on the left: the search window of the cell on the right. The best matches are copied.", 12, DIM
    )
    drawing.save(path)


def draw_windows(results: Sequence[corrflow.FrameResult], path: Path) -> None:
    """Draw the reference frames of one frame with the search windows of one cell, to scale."""
    settings = load_artifact(resolve_model(None)).settings
    count = len(settings.recent_offsets)
    radii = (*settings.radius, settings.radius[-1])[:2]
    dilations = (*settings.dilation, settings.dilation[-1])[:2]
    drawing = Drawing(
        1000, 330, "The memory: the prompted frame and the last frames, with the search windows of one cell"
    )
    query = results[QUERY]
    shape = query.frame.image.shape
    x, y = centre(query)
    width = 210
    unit = width / shape[1]
    shrink = settings.short_side / min(shape[:2])
    pixel = unit / min(shrink, 1)  # frames are never enlarged

    def windows(left: float, top: float, places: list[tuple[float, float, bool]], which: int, colour: str) -> None:
        side = (2 * radii[which] * dilations[which] + 1) * STRIDE * pixel
        for px, py, dashed in places:
            drawing.box(left + unit * px - side / 2, top + unit * py - side / 2, side, side, colour, dashed)

    drawing.text(125, 30, "prompted frame", 15, INK, bold=True)
    drawing.text(125, 48, "stays in the memory", 12, DIM)
    height = drawing.image(draw_overlay(results[0]), 20, 60, width)
    windows(20, 60, [(*centre(results[0]), False), (x, y, True)], 0, BLUE)
    drawing.text(125, 60 + height + 20, f"window of {2 * radii[0] + 1}x{2 * radii[0] + 1} cells, moved with", 12, BLUE)
    drawing.text(125, 60 + height + 36, "the object, and unmoved (dashed)", 12, BLUE)
    drawing.text(420, 30, f"last {count} frames", 15, INK, bold=True)
    drawing.text(420, 48, "a ring, the oldest is dropped", 12, DIM)
    for number, offset in reversed(list(enumerate(settings.recent_offsets))):
        left, top = 300 + 12 * (count - 1 - number), 60 + 12 * (count - 1 - number)
        drawing.image(draw_overlay(results[QUERY - offset]), left, top, width)
        if number == 0:
            windows(left, top, [(*centre(results[QUERY - offset]), False)], 1, GREEN)
    bottom = 60 + 12 * (count - 1) + height
    cells = 2 * radii[1] + 1
    drawing.text(430, bottom + 20, f"window of {cells}x{cells} cells, every second cell,", 12, GREEN)
    drawing.text(430, bottom + 36, "moved with the object", 12, GREEN)
    drawing.text(865, 30, "present frame", 15, INK, bold=True)
    drawing.text(865, 48, "one cell of 4x4 pixels, enlarged", 12, DIM)
    drawing.image(query.frame.image, 760, 60, width)
    drawing.box(760 + unit * x - 4, 60 + unit * y - 4, 8, 8, INK)
    drawing.text(865, 60 + height + 20, f"label: softmax over the best {settings.top_k}", 12, INK)
    drawing.text(865, 60 + height + 36, "matches in all windows", 12, INK)
    drawing.arrow(570, 60 + height / 2, 750, 60 + height / 2)
    drawing.text(660, 60 + height / 2 - 10, "compare, copy", 12, DIM)
    drawing.text(500, 318, "Windows are drawn to scale, for the default model and the demo clip.", 12, DIM)
    drawing.save(path)


class Chart:
    """Chart of percentages: a drawing with axes, x from 0 to `most`, y from 0 to 100."""

    LEFT, RIGHT, TOP, BOTTOM = 70, 680, 50, 330

    def __init__(self, title: str, x_label: str, most: float, step: float) -> None:
        self.drawing, self.most = Drawing(720, 410, title), most
        self.drawing.text(360, 28, title, 16, INK, bold=True)
        self.drawing.text((self.LEFT + self.RIGHT) / 2, 376, x_label, 13, DIM)
        for value in range(0, 101, 20):
            _, y = self.place(0, value)
            self.drawing.line([(self.LEFT, y), (self.RIGHT, y)], "#e4e7ec", 1)
            self.drawing.text(self.LEFT - 18, y + 4, str(value), 12, DIM)
        for number in range(int(most / step) + 1):
            self.drawing.text(self.place(number * step, 0)[0], self.BOTTOM + 20, f"{number * step:g}", 12, DIM)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a value lies in the drawing."""
        return self.LEFT + x / self.most * (self.RIGHT - self.LEFT), self.BOTTOM - y / 100 * (self.BOTTOM - self.TOP)


def read_scores(results: Path, label: str) -> list[dict[str, Any]]:
    """Return the scores of a method, one for each sequence."""
    files = sorted((results / "scores" / label).glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8"))["score"] for file in files]


def draw_prices(results: Path, path: Path) -> None:
    """Draw the mean J&F of each method against its CPU time a frame; nothing is computed where a mask is repeated."""
    points = {}
    for label in METHODS:
        scores = read_scores(results, label)
        seconds = sum(one["cpu_seconds"] or 0 for one in scores) / max(1, sum(one["tracked"] for one in scores))
        objects = [each for one in scores for each in one["objects"].values()]
        points[label] = 1000 * seconds, 50 * np.mean([np.mean(each["J"]) + np.mean(each["F"]) for each in objects])
    highest = max(price for price, _ in points.values())
    step = 100 if highest > 300 else 50
    chart = Chart("Accuracy against price", "CPU ms a frame", step * (int(highest / step) + 1), step)
    chart.drawing.text(92, 44, "J&F, %", 12, DIM)
    for label, (price, score) in points.items():
        name, colour = METHODS[label]
        x, y = chart.place(price, score)
        chart.drawing.dot(x, y, colour)
        middle = min(max(x, chart.LEFT + 5 * len(name)), chart.RIGHT - 5 * len(name))
        chart.drawing.text(middle, y + 24, f"{name}: {score:.1f}", 13, colour, bold=True)
    chart.drawing.save(path)


def draw_drift(results: Path, path: Path, points: int = 101) -> None:
    """Draw the mean J of all objects of each method at `points` places between the first and the last frame."""
    chart = Chart("Drift", "% of the video", 100, 20)
    chart.drawing.text(84, 44, "J, %", 12, DIM)
    places = np.linspace(0, 1, points)
    for number, (label, (name, colour)) in enumerate(METHODS.items()):
        curves = [
            np.interp(places, np.linspace(0, 1, len(one["J"])), one["J"])
            for scores in read_scores(results, label)
            for one in scores["objects"].values()
        ]
        mean = 100 * np.mean(curves, 0)
        chart.drawing.line([chart.place(100 * x, y) for x, y in zip(places, mean, strict=True)], colour, 2.5)
        chart.drawing.text(160 + 135 * number, 394, name, 12, colour, bold=True)
    chart.drawing.save(path)


def save_moving(
    results: Sequence[corrflow.FrameResult], path: Path, width: int, milliseconds: int = 80, rows: slice = slice(None)
) -> None:
    """Write these rows of the results' overlays as an animated WebP of this width."""
    images = []
    for result in results:
        image = draw_overlay(result)[rows]
        size = (width, round(width * image.shape[0] / image.shape[1]))
        images.append(
            Image.fromarray(cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB))
        )
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0, quality=60, method=6)


def track_clip(path: Path, start: int, boxes: dict[str, tuple[int, int, int, int]]) -> list[corrflow.FrameResult]:
    """Track the objects in boxes (x0, y0, x1, y1) of frame `start` to the end of a clip."""
    with open_frames(path) as frames:
        image = next(frame.image for frame in frames if frame.index == start)
    masks = {}
    for name, box in boxes.items():
        strokes = parse_strokes([{"kind": "box", "points": [list(box[:2]), list(box[2:])]}])
        masks[name] = drawn_mask(image, np.zeros(image.shape[:2], np.uint8), strokes)
    return list(corrflow.track(path, masks=masks, start=start))


def track_mouse(path: Path) -> list[corrflow.FrameResult]:
    """Track the points of the mouse through one stride."""
    start, end = MOUSE_FRAMES
    with open_frames(path) as frames:
        images = [frame.image for frame in islice(frames, start, end)]
    return list(corrflow.track(images, keypoints=MOUSE_POINTS))


def main(part: str, *folder: str) -> None:
    """Write the figures of one part."""
    if part == "demo":
        results = tracked_demo()
        draw_method(results, IMAGES / "method.svg")
        draw_windows(results, IMAGES / "windows.svg")
    for name, file, start, step, boxes in CLIPS if part == "clips" else ():
        results = track_clip(Path(*folder) / file, start, boxes)
        save_moving(results[::step], IMAGES / f"{name}.webp", 400, 80 * step)
    if part == "scores":
        draw_prices(Path(*folder), IMAGES / "price.svg")
        draw_drift(Path(*folder), IMAGES / "drift.svg")
    if part == "mouse":
        save_moving(track_mouse(Path(*folder) / "test_vid.mp4"), IMAGES / "mouse.webp", 400, rows=MOUSE_ROWS)


if __name__ == "__main__":
    main(*sys.argv[1:])
