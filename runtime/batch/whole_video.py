"""Every frame of a video from labels on any one of them: backward to its start, then forward to its end."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

from corrflow.plugins.errors import CorrflowError, InputError
from corrflow.runtime.batch.labels_by_name import Labels
from corrflow.runtime.batch.spool import Spool, get_frame, get_tracks, put_frame, put_tracks
from corrflow.runtime.pipeline import read_ahead
from corrflow.runtime.sources import FrameSource
from corrflow.runtime.tracker import Tracker
from corrflow.runtime.tracks import Frame, Tracks


def track_whole(
    source: FrameSource, tracker: Tracker, labels: Labels, folder: Path
) -> Generator[tuple[Frame, Tracks], None, None]:
    """Frames with their tracks, in order. Frames before the labelled one wait in a file in `folder`, not in memory.

    Raises InputError where no frame is the labelled one or the objects do not fit it, CorrflowError where the disk is
    full, SourceEndedEarly after the last good frame.
    """
    with ExitStack() as stack:
        ahead = stack.enter_context(read_ahead(iter(source)))
        earlier = stack.enter_context(Spool(folder / "frames.spool"))
        backward = stack.enter_context(Spool(folder / "tracks.spool"))
        labelled = None
        try:
            for frame in ahead:
                if labels.are_on(frame):
                    labelled = frame
                    break
                put_frame(earlier, frame)
            if labelled is None:
                raise InputError(
                    f"expected labels on one of the {len(earlier)} frames of {source.name}, got labels for frame "
                    f"{' or '.join(map(str, labels.frames))}; frames count from 0"
                )
            if len(earlier):
                tracker.start(labelled.image, labels.objects)
                for index in reversed(range(len(earlier))):
                    put_tracks(backward, tracker.step(get_frame(earlier, index).image))
        except OSError as error:
            raise CorrflowError(
                f"expected room for the frames before the labels in {folder}, got an error ({error.strerror});"
                " free some space"
            ) from error
        for index in range(len(earlier)):
            yield get_frame(earlier, index), get_tracks(backward, len(earlier) - 1 - index)
        yield labelled, tracker.start(labelled.image, labels.objects)
        for frame in ahead:
            yield frame, tracker.step(frame.image)
