"""Bit depth: images with more than 8 bits are mapped to 8 bits in the same way on all frames of a source."""

from __future__ import annotations

import cv2
import numpy as np

_DEPTHS = (8, 10, 12, 14, 16)  # of cameras


class DepthMapper:
    """Mapping of deep images to 8 bits, by the bits that are really used.

    A camera of 12 bits writes numbers up to 4095 into files of 16 bits, whose upper 8 bits alone would be black.
    """

    def __init__(self, name: str, notes: list[str]) -> None:
        """Start without a range; name: source in the notes, to which the range is added once."""
        self._name, self._notes = name, notes
        self._bits = 0
        self._range: tuple[float, float] | None = None
        self._is_clipped = False

    def observe(self, image: np.ndarray) -> None:
        """Widen the range by an image, before the first one is mapped."""
        if image.dtype == np.uint16:
            self._bits = max(self._bits, _depth(image))
        elif image.dtype != np.uint8:
            low, high = _extremes(image)
            self._range = (low, high) if self._range is None else (min(low, self._range[0]), max(high, self._range[1]))

    def to_8_bits(self, image: np.ndarray, place: str) -> np.ndarray:
        """Map an image of any number type to uint8. Shape and uint8 are kept.

        place: position of the image, for a note if its values exceed the range so far
        """
        if image.dtype == np.uint8:
            return image
        return self._map_integers(image, place) if image.dtype == np.uint16 else self._map_numbers(image, place)

    def _map_integers(self, image: np.ndarray, place: str) -> np.ndarray:
        needed = _depth(image)
        if not self._notes_have_range:
            self._bits = max(self._bits, needed)
            self._notes_have_range = True
            self._notes.append(
                f"{self._name}: of the 16 bits of its images {self._bits} are used; "
                f"they are tracked with 8 bits, {2**self._bits - 1} as white"
            )
        elif needed > self._bits:
            self._notes.append(
                f"{self._name}: from {place} on {needed} bits are used; frames are darker from there, "
                f"with {2**needed - 1} as white"
            )
            self._bits = needed
        return cv2.convertScaleAbs(image, alpha=255 / (2**self._bits - 1))

    def _map_numbers(self, image: np.ndarray, place: str) -> np.ndarray:
        if not self._notes_have_range:
            self.observe(image)
            assert self._range is not None
            low, high = self._range
            if image.dtype.kind == "f" and low >= 0 and high <= 1:
                self._range = (0.0, 1.0)
            self._notes_have_range = True
            self._notes.append(
                f"{self._name}: its images hold {image.dtype} numbers; they are tracked with 8 bits, "
                f"{self._range[0]:g} as black and {self._range[1]:g} as white"
            )
        assert self._range is not None
        low, high = self._range
        least, most = _extremes(image)
        if (least < low or most > high) and not self._is_clipped:
            self._is_clipped = True
            self._notes.append(f"{self._name}: from {place} on numbers are outside that range and are clipped")
        scaled = (np.nan_to_num(image.astype(np.float32), nan=low) - low) * (255 / ((high - low) or 1.0))
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

    _notes_have_range = False


def _depth(image: np.ndarray) -> int:
    """Return the smallest bit depth of a camera that holds the image's values."""
    highest = int(image.max())
    return next(bits for bits in _DEPTHS if highest < 2**bits)


def _extremes(image: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest finite value; (0, 0) without one."""
    finite = image[np.isfinite(image)] if image.dtype.kind == "f" else image
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
