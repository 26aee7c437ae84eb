"""The keys of the window of --show, and what its events call them; light, because --help lists them too."""

from __future__ import annotations

KEYS = (
    ("space", "freeze the picture, or let it go on; pressing the mouse freezes it too"),
    ("b l p k", "draw a box, a lasso, with a brush, or click points; the right button erases"),
    ("+ -", "a wider or a narrower brush, as the wheel does"),
    ("u", "take back the last stroke or click"),
    ("enter", "track what is drawn"),
    ("escape", "cancel"),
    ("1-9 tab 0", "choose an object to correct, or 0 for a new one"),
    ("n", "type the object's name; enter ends it"),
    ("x delete", "remove the chosen object"),
    ("r", "save a reference (picture and masks) for --prompt-file"),
    ("h", "show these keys"),
    ("q", "quit"),
)

_NAMES = {
    8: "backspace",
    9: "tab",
    10: "enter",
    13: "enter",
    27: "escape",
    127: "backspace",  # macOS
    0xFF08: "backspace",  # from here on X11's numbers, which GTK gives
    0xFF09: "tab",
    0xFF0D: "enter",
    0xFF8D: "enter",  # of the number pad
    0xFF1B: "escape",
    0xFFFF: "delete",
    0x2E0000: "delete",  # Windows
    63272: "delete",  # macOS
    **{0xFFB0 + digit: str(digit) for digit in range(10)},  # of the number pad
    0xFFAB: "+",
    0xFFAD: "-",
}


def key_name(code: int) -> str:
    """What `cv2.waitKeyEx` returned, as a letter or a name such as "enter"; "" for no key and for any other."""
    if code < 0:  # none; or a letter that is not ASCII, which OpenCV's windows do not tell apart
        return ""
    if code not in _NAMES:
        code &= 0xFFFF  # what is above says which modifiers are pressed
    return _NAMES.get(code) or (chr(code) if 32 <= code < 127 else "")


def keys_text() -> str:
    """The keys, one a line, indented for --help."""
    return "\n".join(f"      {keys:<10} {text}" for keys, text in KEYS)
