"""Times of a written video, without the jumps of a clock that was set while the source was recorded."""

from __future__ import annotations

_LONGEST_GAP = 600.0  # seconds between two frames that are kept; MP4 stores 6 hours at most
_LONGEST_STEP = 1.0


class GaplessClock:
    """Clock that starts at 0, keeps the times between frames, and closes jumps to the last step between two frames.

    shift:     seconds that are added to the source's times
    jumps:     (time in the written video, seconds) of each jump
    last_time: time of the last frame in the source; None before
    step:      seconds between two frames
    """

    def __init__(self, step: float) -> None:
        """Start the clock; step: nominal seconds between two frames."""
        self.step = min(step, _LONGEST_STEP)
        self.shift = 0.0
        self.jumps: list[tuple[float, float]] = []
        self.last_time: float | None = None

    def next(self, time: float) -> float:
        """Return the time of the next frame in the written video, and update `shift`."""
        if self.last_time is not None:
            delta = time - self.last_time
            if delta > _LONGEST_GAP or delta < 0:
                self.jumps.append((self.last_time + self.shift, delta))
                self.shift += self.step - delta
            elif delta > 0:
                self.step = delta
        else:
            self.shift = -time
        self.last_time = time
        return time + self.shift

    def sentence(self, name: str) -> str:
        """Return the report of the jumps, or "" without any."""
        if not self.jumps:
            return ""
        time, seconds = self.jumps[0]
        more = f" and at {len(self.jumps) - 1} more places" if len(self.jumps) > 1 else ""
        return f"{name}: the source's clock jumps by {seconds:.0f} s at {time:.2f} s{more}; the video has no gap there"
