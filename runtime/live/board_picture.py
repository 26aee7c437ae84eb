"""What the window of --show looks like: the picture, what is being drawn on it, and lines of text beneath."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

# Pillow carries a smooth font; OpenCV's own strokes are ragged.
from PIL import Image, ImageDraw, ImageFont

from corrflow.runtime.live.board import Board
from corrflow.runtime.live.keys import KEYS
from corrflow.runtime.types import Tracks
from corrflow.runtime.video.overlay import draw_overlay

FONT_SIZE, LINE = 14, 20
LINES = 4
"""Lines of text beneath the picture: two for messages, one for the objects, one for how things stand."""
_LEAST_SIDE, _LARGEST = 480, (1280, 800)  # pixels that the picture is shown at
_INK = (60, 210, 255)  # BGR
_RUBBER = (90, 106, 255)
_MASK_OPACITY = 0.5


def display_scale(size: tuple[int, int]) -> float:
    """How much larger a picture of (height, width) is shown than it is: small ones so that text fits, large ones so
    that the screen holds them."""
    height, width = size
    if min(height, width) < _LEAST_SIDE:
        return -(-_LEAST_SIDE // min(height, width))
    return min(1.0, _LARGEST[0] / width, _LARGEST[1] / height)


def board_picture(board: Board, image: np.ndarray, tracks: Tracks, status: str) -> np.ndarray:
    """The window's picture [h, w, 3] uint8, BGR: the frame at `display_scale`, and the text beneath.

    image, tracks: the newest frame [H, W, 3] uint8, BGR; shown unless another one is frozen
    status: how the run is doing, for the last line
    """
    if board.still is not None:
        image, tracks = board.still.image, board.still.tracks
    picture = draw_overlay(image, tracks)
    scale = display_scale((image.shape[0], image.shape[1]))
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    if scale != 1:
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    if board.mask is not None:
        _draw_mask(picture, board.mask)
    _draw_strokes(picture, board, scale)
    if board.help:
        _draw_help(picture)
    return np.vstack([picture, _text(size[0], board.message, board.wrong, _objects(board), _standing(board), status)])


def waiting_picture(text: str, status: str) -> np.ndarray:
    """What is shown before the first frame: [h, w, 3] uint8, BGR."""
    return np.vstack([np.full((360, 640, 3), 32, np.uint8), _text(640, text, False, "", "", status)])


def _draw_mask(picture: np.ndarray, mask: np.ndarray) -> None:
    shape = picture.shape[1], picture.shape[0]
    shown = cv2.resize(mask.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST)
    tinted = cv2.addWeighted(picture, 1 - _MASK_OPACITY, np.full_like(picture, _INK), _MASK_OPACITY, 0)
    cv2.copyTo(tinted, shown, picture)
    contours = cv2.findContours(shown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    cv2.drawContours(picture, contours, -1, (255, 255, 255), 1)


def _draw_strokes(picture: np.ndarray, board: Board, scale: float) -> None:
    def shown(points: object) -> np.ndarray:
        # Far outside, OpenCV's integers overflow.
        return np.round((np.array(points) + 0.5) * scale - 0.5).clip(-10000, 10000).astype(np.int32)

    clicks, stroke = list(board.clicks), board.stroke
    if stroke is not None and stroke["kind"] == "points":
        clicks += stroke["points"]
    elif stroke is not None:
        way = shown(stroke["points"])
        colour = _RUBBER if stroke["kind"] == "erase" else _INK
        if stroke["kind"] in ("paint", "erase"):
            painted = picture.copy()
            cv2.polylines(painted, [way], False, colour, max(1, round(stroke["width"] * scale)))
            cv2.circle(painted, way[-1].tolist(), max(1, round(stroke["width"] * scale / 2)), colour, cv2.FILLED)
            cv2.addWeighted(picture, 0.4, painted, 0.6, 0, picture)
        elif stroke["kind"] == "box":
            cv2.rectangle(picture, way[0].tolist(), way[-1].tolist(), colour, 2)
        else:
            cv2.polylines(picture, [way], False, colour, 2, cv2.LINE_AA)
    for number, click in enumerate(clicks):
        centre = shown(click).tolist()
        cv2.circle(picture, centre, 6, (24, 24, 24), cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, centre, 5, _INK, cv2.FILLED, cv2.LINE_AA)
        cv2.putText(picture, str(number + 1), (centre[0] + 8, centre[1] - 4), cv2.FONT_HERSHEY_PLAIN, 1, _INK, 1)


def _draw_help(picture: np.ndarray) -> None:
    plate = _help_plate()
    height, width = (min(sides) for sides in zip(plate.shape[:2], picture.shape[:2], strict=True))
    region = picture[:height, :width]
    region[:] = cv2.addWeighted(region, 0.15, plate[:height, :width], 0.85, 0)


def _objects(board: Board) -> str:
    """The objects that can be chosen, by their numbers."""

    def told(number: int, name: str) -> str:
        state = f" ({board.states[number]})" if number in board.states else ""
        return f"{number} {name}{state}" if name else f"{number}{state}"

    return _plain("   ".join(told(number, name) for number, name in sorted(board.objects.items())))


def _standing(board: Board) -> str:
    """What is drawn with and for which object."""
    named = board.name if board.typing is None else f"{board.typing}_"
    which = "new object" if board.chosen is None else f"object {board.chosen}"
    tool = f"{board.tool}, {board.brush:.0f} wide" if board.tool == "paint" else board.tool
    state = {"running": "", "freezing": "freezing; ", "frozen": "frozen; ", "giving": "tracking it; "}[board.state]
    return f"{state}{tool}; {which}{f', name: {named}' if named or board.typing is not None else ''}; h: keys"


@lru_cache(maxsize=16)
def _text(width: int, message: str, wrong: bool, objects: str, standing: str, status: str) -> np.ndarray:
    """The lines beneath the picture: [LINES * LINE + 4, width, 3] uint8, BGR."""
    strip = Image.new("RGB", (width, LINES * LINE + 4), (24, 24, 24))
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(FONT_SIZE)
    colour = (255, 120, 110) if wrong else (255, 220, 90)
    for row, line in enumerate(_wrapped(message, width - 12, font)[: LINES - 2]):
        pen.text((6, row * LINE + 2), line, fill=colour, font=font)
    pen.text((6, (LINES - 2) * LINE + 2), objects, fill=(150, 190, 235), font=font)
    row = (LINES - 1) * LINE + 2
    pen.text((width - 6 - font.getlength(status), row), status, fill=(150, 150, 150), font=font)
    if standing:
        end = 6 + round(font.getlength(standing))
        pen.rectangle((0, row, end + 6, row + LINE), fill=(24, 24, 24))
        pen.text((6, row), standing, fill=(235, 235, 235), font=font)
    return np.asarray(strip, np.uint8)[..., ::-1]


def _wrapped(text: str, width: int, font) -> list[str]:
    """Lines of at most `width` pixels, broken between words; a word that is longer stands alone."""
    lines: list[str] = []
    for word in _plain(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@lru_cache(maxsize=1)
def _help_plate() -> np.ndarray:
    """The keys on a dark ground: [h, w, 3] uint8, BGR."""
    font = ImageFont.load_default(FONT_SIZE)
    left = 24 + round(max(font.getlength(keys) for keys, _ in KEYS))
    width = left + 12 + round(max(font.getlength(text) for _, text in KEYS))
    plate = Image.new("RGB", (width, len(KEYS) * LINE + 12), (16, 16, 16))
    pen = ImageDraw.Draw(plate)
    for row, (keys, text) in enumerate(KEYS):
        pen.text((12, row * LINE + 6), keys, fill=(255, 220, 90), font=font)
        pen.text((left, row * LINE + 6), text, fill=(235, 235, 235), font=font)
    return np.asarray(plate, np.uint8)[..., ::-1]


def _plain(text: str) -> str:
    """As much of a text as the font has: ASCII."""
    return text.encode("ascii", "replace").decode()
