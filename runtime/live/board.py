"""Drawing in the window of --show: what the mouse and the keys mean. Events go in, commands for the session come out.

There is no window and no tracker here, and nothing waits: whoever carries a command out brings the answer back.

    running  -- space, or the mouse pressed -->  freezing  -- answer -->  frozen  -- enter -->  giving  -- answer --+
       ^                                            |                       |                                       |
       +------------------ escape, or space --------+-----------------------+---------------------------------------+
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import hypot
from typing import Any, Literal

import numpy as np

from corrflow.runtime.live.object_editor import Frozen
from corrflow.runtime.live.strokes import LONGEST_NAME, MOST_POINTS

Tool = Literal["box", "lasso", "paint", "points"]
Kind = Literal["freeze", "release", "mask", "give", "remove", "rename", "reference", "quit"]

TOOLS: dict[str, Tool] = {"b": "box", "l": "lasso", "p": "paint", "k": "points"}
HINTS: dict[Tool, str] = {
    "box": "Draw a box around something.",
    "lasso": "Draw around something.",
    "paint": "Paint over something; the right button erases.",
    "points": "Click the points to follow; the right button takes one back.",
}
_NARROWEST, _WIDEST, _WIDER = 2.0, 400.0, 1.25  # of the brush, in pixels, and the factor of a step
_SMALLEST_BOX = 6.0  # pixels from corner to corner; less was a click


@dataclass(frozen=True)
class Command:
    """What is to be done, with the values that `SessionApi` takes for it; told back with its answer."""

    kind: Kind
    values: dict[str, Any] = field(default_factory=dict)


class Board:
    """What is being drawn. Every event returns the commands that follow from it; places are pixels of the frame.

    tool:    what the left button does
    drawn:   finished strokes, as `parse_strokes` reads them; never together with clicks
    clicks:  points [x, y]
    stroke:  the one under the hand
    mask:    [H, W] bool, what the strokes mean; None before that is known
    chosen:  id of the object that is corrected, named or removed; None for a new one
    typing:  the name as far as it is typed; None while keys are keys
    objects: names by id; states: "joins" for those that are not tracked yet, "lost" for those that are not seen
    message: for the user; wrong where it says what failed
    """

    def __init__(self) -> None:
        self.state: Literal["running", "freezing", "frozen", "giving"] = "running"
        self.tool: Tool = "box"
        self.still: Frozen | None = None
        self.drawn: list[dict[str, Any]] = []
        self.clicks: list[list[float]] = []
        self.stroke: dict[str, Any] | None = None
        self.mask: np.ndarray | None = None
        self.chosen: int | None = None
        self.name = ""
        self.typing: str | None = None
        self.brush = 20.0
        self.help = False
        self.objects: dict[int, str] = {}
        self.states: dict[int, str] = {}
        self._size = (0, 0)
        self._asked: Command | None = None  # the mask whose answer still counts
        self.say(HINTS[self.tool])

    def say(self, message: str, wrong: bool = False) -> None:
        self.message, self.wrong = message, wrong

    def see(self, size: tuple[int, int], objects: Mapping[int, str], states: Mapping[int, str]) -> list[Command]:
        """Note the newest frame's (height, width), the names of all objects by id, and what is to be said of some."""
        if self._size == (0, 0):
            self.brush = max(_NARROWEST, min(size) / 24)
        self._size, self.objects, self.states = size, dict(objects), dict(states)
        if self.chosen is not None and self.chosen not in self.objects and self.state != "giving":
            return self._choose(None)  # somebody else removed it
        return []

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture that is drawn on; zeros before the first."""
        if self.still is None:
            return self._size
        return self.still.image.shape[0], self.still.image.shape[1]

    @property
    def strokes(self) -> list[dict[str, Any]]:
        """What is drawn; a correction begins with what is seen of the object, unless it is drawn anew."""
        anew = any(stroke["kind"] in ("box", "lasso") for stroke in self.drawn)
        if anew or self.still is None or self.chosen is None or not (self.still.tracks.mask == self.chosen).any():
            return list(self.drawn)
        return [{"kind": "object", "object": self.chosen}, *self.drawn]

    # The mouse

    def press(self, x: float, y: float, right: bool = False) -> list[Command]:
        height, width = self.size
        inside = -0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5
        if not inside or self.stroke or self.typing is not None or self.state == "giving":
            return []
        if right and self.tool == "points":
            if self.clicks:
                self.clicks.remove(min(self.clicks, key=lambda click: hypot(click[0] - x, click[1] - y)))
            return []
        kind = "erase" if right else self.tool
        self.stroke = {"kind": kind, "points": [[x, y]], "width": round(self.brush, 1)}
        return self._freeze() if self.state == "running" else []

    def move(self, x: float, y: float) -> list[Command]:
        if self.stroke is None:
            return []
        points = self.stroke["points"]
        if self.stroke["kind"] == "box":
            points[1:] = [[x, y]]
        elif self.stroke["kind"] == "points":
            height, width = self.size
            points[0] = [min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)]
        elif len(points) < MOST_POINTS and [x, y] != points[-1]:
            points.append([x, y])
        return []

    def release(self, x: float, y: float) -> list[Command]:
        self.move(x, y)
        done, self.stroke = self.stroke, None
        if done is None:
            return []
        if done["kind"] == "points":
            self.drawn = []
            self.clicks.append(done["points"][0])
        else:
            if done["kind"] == "box" and hypot(*np.subtract(*done["points"])) < _SMALLEST_BOX:
                self.say("That box was too small; draw from one corner to the other.", wrong=True)
                return []
            self.clicks = []
            self.drawn.append(done)
        self.say("Enter tracks it, u takes the last back, escape cancels.")
        return self._preview()

    def wheel(self, up: bool) -> list[Command]:
        self.brush = min(max(self.brush * (_WIDER if up else 1 / _WIDER), _NARROWEST), _WIDEST)
        return []

    # The keys

    def key(self, key: str) -> list[Command]:
        """A key by the name that `key_name` gives it."""
        if self.typing is not None:
            return self._type(key)
        key = key.lower()
        if key == "q":
            return [Command("quit")]
        if key == "h":
            self.help = not self.help
        elif key == "escape" and self.help:
            self.help = False
        elif self.state == "giving":
            pass
        elif key == " ":
            return self._freeze() if self.state == "running" else self._thaw()
        elif key == "escape":
            return self._cancel()
        elif key in TOOLS:
            self.tool, self.stroke = TOOLS[key], None
            self.say(HINTS[self.tool])
        elif key in ("+", "=", "]", "-", "["):
            return self.wheel(key in "+=]")
        elif key in ("u", "backspace"):
            (self.clicks or self.drawn or [None]).pop()
            return self._preview()
        elif key == "tab":
            choices = [None, *sorted(self.objects)]
            return self._choose(choices[(choices.index(self.chosen) + 1) % len(choices)])
        elif key in tuple("0123456789"):
            if key != "0" and int(key) not in self.objects:
                self.say(f"There is no object {key}.", wrong=True)
                return []
            return self._choose(int(key) or None)
        elif key in ("x", "delete"):
            return self._remove()
        elif key == "n":
            if self.state != "running" or self._one_is_chosen():
                self.typing = self.name
                self.say("Type the name; enter ends it, escape leaves it.")
        elif key == "r":
            return [Command("reference")]
        elif key == "enter":
            return self._give()
        return []

    def _type(self, key: str) -> list[Command]:
        text = self.typing or ""
        if key == "escape":
            self.typing = None
            self.say("")
        elif key == "backspace":
            self.typing = text[:-1]
        elif key == "enter":
            self.typing, self.name = None, text.strip() or self.name
            self.say("")
            if self.chosen is not None and text.strip():
                return [Command("rename", {"object": self.chosen, "name": self.name})]
        elif len(key) == 1 and len(text) < LONGEST_NAME:
            self.typing = text + key
        return []

    def _cancel(self) -> list[Command]:
        if self.stroke is not None and self.state == "frozen":
            self.stroke = None
            return []
        return self._thaw() if self.state != "running" else self._choose(None)

    def _one_is_chosen(self) -> bool:
        """Whether an object is chosen; where there is one alone and nothing is being drawn, it is."""
        if self.chosen is None and len(self.objects) == 1 and self.state == "running":
            self._choose(next(iter(self.objects)))
        if self.chosen is None:
            self.say("Choose an object first, by its number or with tab.", wrong=True)
        return self.chosen is not None

    def _choose(self, number: int | None) -> list[Command]:
        self.chosen, self.name = number, self.objects.get(number or 0, "")
        self.say(
            "A new object." if number is None else f"Object {number}: draw to correct it, n names it, x removes it."
        )
        return self._preview()

    def _remove(self) -> list[Command]:
        if not self._one_is_chosen():
            return []
        number, self.chosen, self.name = self.chosen, None, ""
        return [Command("remove", {"object": number}), *(self._thaw() if self.state != "running" else [])]

    # Freezing, tracking, and what comes back

    def _freeze(self) -> list[Command]:
        self.state = "freezing"
        return [Command("freeze")]

    def _thaw(self) -> list[Command]:
        """Let the picture go on, and forget what is drawn."""
        release = [] if self.still is None else [Command("release", {"frozen": self.still.number})]
        self.state, self.still, self.stroke, self.mask, self._asked = "running", None, None, None, None
        self.drawn, self.clicks, self.chosen, self.name = [], [], None, ""
        self.say(HINTS[self.tool])
        return release

    def _preview(self) -> list[Command]:
        """Ask what the strokes mean, once there is a frozen frame to draw them on."""
        self._asked = None
        if self.still is None or self.clicks or not self.strokes:
            self.mask = None
            return []
        self._asked = Command("mask", {"frozen": self.still.number, "strokes": self.strokes})
        return [self._asked]

    def _give(self) -> list[Command]:
        if self.still is None or self.stroke is not None:
            return []
        drawing: dict[str, Any] = {"points": list(self.clicks)} if self.clicks else {"strokes": self.strokes}
        if not self.clicks and not self.drawn:
            self.say("Draw on the picture first.", wrong=True)
            return []
        self.state = "giving"
        return [Command("give", {"frozen": self.still.number, "object": self.chosen, "name": self.name, **drawing})]

    def answered(self, command: Command, answer: Any) -> list[Command]:
        """What a command brought: the `Frozen` for freeze, the mask [H, W] bool, the object's id for give, or
        what `SessionApi.save_prompt` returns."""
        if command.kind == "freeze":
            if self.state != "freezing" or self.still is not None:
                return [Command("release", {"frozen": answer.number})]  # cancelled meanwhile
            self.state, self.still = "frozen", answer
            return self._preview()
        if command.kind == "mask" and command is self._asked:
            self.mask = answer
        elif command.kind == "give":
            self._thaw()  # and nothing to release: the tracker let the frame go
            self.say(f"Object {answer} joins once it has caught up with the stream.")
        elif command.kind == "remove":
            self.say(f"Object {command.values['object']} is removed.")
        elif command.kind == "reference":
            left = f"; not seen, so left out: {', '.join(answer['hidden'])}" if answer["hidden"] else ""
            self.say(f"Kept {answer['objects']} in {answer['path']}{left}.")
        return []

    def failed(self, command: Command, sentence: str) -> list[Command]:
        """A command that was refused, and why."""
        if command.kind == "freeze" and self.state == "freezing":
            self._thaw()
        elif command.kind == "give":
            self.state = "frozen"
        elif command.kind == "mask" and command is not self._asked:
            return []
        elif command.kind == "mask":
            self.mask = None
        self.say(sentence, wrong=True)
        return []
