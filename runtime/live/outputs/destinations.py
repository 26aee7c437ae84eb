"""Destinations of results: files, networks and other programs, for recorded videos and live sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from corrflow.atomic_files import write_errors
from corrflow.errors import CorrflowError
from corrflow.output_paths import unique_folder, unique_path
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.registry import FORMATS, SourceInfo, open_sink
from corrflow.runtime.formats.result_places import ResultFolderSink, check_place, is_folder
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.types import FrameResult
from corrflow.runtime.video.source import SoundTrack
from corrflow.special_files import is_special
from corrflow.stopping import seconds_left

if TYPE_CHECKING:
    from corrflow.runtime.formats.label_schema import LabelSchema
    from corrflow.runtime.live.outputs.mqtt import Broker
    from corrflow.runtime.live.outputs.ros2 import Topics

_CLOSE_SECONDS = 30.0  # limit for a network output to send the last frames of a file
_STOP_SECONDS = 0.3  # the same after a signal


@dataclass(frozen=True)
class LiveSource:
    """Name of a live source, for writers; its frame rate varies, and its sound is not recorded."""

    name: str
    frames_per_second: Fraction | None = None
    sample_aspect_ratio: Fraction | None = None
    sound: SoundTrack | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Destinations:
    """Outputs of a run.

    files: path by the name of a format
    udp:   (host, port)
    mqtt:  broker and topic
    rerun: .rrd file, or address of a viewer
    ros:   ROS 2 topics
    default_folder, default_formats: folder that gets a number where it is taken, and the formats in it
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    udp: tuple[str, int] | None = None
    mqtt: Broker | None = None
    rerun: str | None = None
    ros: Topics | None = None
    default_folder: Path | None = None
    default_formats: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return True if there is any output."""
        return bool(self.files or self.default_formats or self.udp or self.mqtt or self.rerun or self.ros)

    def check(self) -> None:
        """Raise InputError for an output that cannot be used, before the source is opened."""
        if self.mqtt is not None:
            from corrflow.runtime.live.outputs.mqtt import check_mqtt

            check_mqtt()
        if self.rerun is not None:
            from corrflow.runtime.live.outputs.rerun import check_rerun

            check_rerun(self.rerun)
        if self.ros is not None:
            from corrflow.runtime.live.outputs.ros2 import check_ros

            check_ros()

    def places(self) -> tuple[list[Path], list[Path]]:
        """Return the output files and the output folders that a user named."""
        files = [path for name, path in self.files.items() if not is_folder(name)]
        if self.rerun is not None and "://" not in self.rerun:
            files.append(Path(self.rerun))
        return files, [path for name, path in self.files.items() if is_folder(name)]

    def check_places(self) -> None:
        """Raise InputError where results would replace what is no result of their format."""
        for name, path in self.files.items():
            check_place(name, path)

    def with_defaults(self, video: str, stack: ExitStack) -> Destinations:
        """Return the destinations with the default folder, or with an overlay video where there is none.

        video: name of the overlay video

        A taken name gets a number. The place is reserved, and removed with the stack if it stays empty.
        Raises CorrflowError.
        """
        files = dict(self.files)
        if self.default_folder is not None:
            with write_errors(self.default_folder):
                folder = unique_folder(self.default_folder)
            stack.callback(_remove_if_empty, folder)
            files |= {name: folder / FORMATS[name].result for name in self.default_formats}
        elif not self:
            with write_errors(video):
                files["overlay"] = unique_path(Path(video))
            stack.callback(_remove_if_empty, files["overlay"])
        return replace(self, files=files, default_folder=None, default_formats=())

    def check_recordings(self) -> None:
        """Raise InputError for a file that a live session cannot write."""
        from corrflow.runtime.live.outputs.recorders import check_recording
        from corrflow.runtime.video.encoding import VIDEO_FORMATS

        for name, path in self.files.items():
            check_recording(path, tuple(VIDEO_FORMATS) if name == "overlay" else ())

    def open_sinks(
        self, source: SourceInfo, schema: LabelSchema | None = None, notes: Callable[[], Sequence[str]] = list
    ) -> list[Sink]:
        """Open every output for a recorded video; frames wait for a slow receiver.

        schema, notes: as for `open_sink`

        Raises InputError for a file that cannot be written; the other outputs are closed again.
        """
        with ExitStack() as stack:
            sinks: list[Sink] = []
            for name, path in self.files.items():
                open_here = partial(open_sink, name, source=source, schema=schema, notes=notes)
                sink = ResultFolderSink(path, open_here) if is_folder(name) else open_here(path)
                sinks.append(stack.enter_context(sink))
            sinks += [_Forward(SinkWorker(name, open, wait=True)) for name, open in self._networks()]
            stack.pop_all()
        return sinks

    def open_workers(self, source: SourceInfo) -> list[SinkWorker]:
        """Open every output for a live session, each in a thread; a slow receiver loses frames."""
        files = [
            (str(path), lambda name=name, path=path: open_recorder(name, path, source))
            for name, path in self.files.items()
        ]
        return [SinkWorker(name, open) for name, open in (*files, *self._networks())]

    def _networks(self) -> list[tuple[str, Callable[[], Sink]]]:
        """Return name and opener of each network output."""
        openers: list[tuple[str, Callable[[], Sink]]] = []
        if (address := self.udp) is not None:
            from corrflow.runtime.live.outputs.udp import UdpSink

            openers.append((f"udp://{address[0]}:{address[1]}", lambda: UdpSink(*address)))
        if (broker := self.mqtt) is not None:
            from corrflow.runtime.live.outputs.mqtt import MqttSink

            openers.append((broker.shown, lambda: MqttSink(broker)))
        if (viewer := self.rerun) is not None:
            from corrflow.runtime.live.outputs.rerun import RerunSink

            openers.append((viewer, lambda: RerunSink(viewer)))
        if (topics := self.ros) is not None:
            from corrflow.runtime.live.outputs.ros2 import RosSink

            openers.append((f"ros:{topics.prefix}", lambda: RosSink(topics)))
        return openers


def open_recorder(name: str, path: Path, source: SourceInfo) -> Sink:
    """Open a format for a live session; a taken name gets a number.

    Videos and JSON lines are written in place, so that a kill loses one second at most. Others appear at the end.
    """
    from corrflow.runtime.live.outputs.recorders import LiveJsonLinesSink, LiveVideoSink

    if name == "overlay":
        return LiveVideoSink(path)
    if name == "jsonl":
        return LiveJsonLinesSink(path)
    number, free = 1, path
    while free.exists() and not is_special(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return open_sink(name, free, source)


def _remove_if_empty(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir():
            path.rmdir()
        elif not path.stat().st_size:
            path.unlink()


class _Forward(Sink):
    """Sink that forwards to a worker; lost frames are an error at the end."""

    def __init__(self, worker: SinkWorker) -> None:
        self._worker = worker

    def write(self, result: FrameResult) -> None:
        self._worker.put(result)

    def close(self) -> None:
        left = seconds_left()
        finished = self._worker.close(_CLOSE_SECONDS if left is None else min(left, _STOP_SECONDS))
        worker = self._worker
        if worker.lost or not finished:
            raise CorrflowError(
                f"{worker.name} lost {worker.lost} of {worker.lost + worker.written} frames"
                f" ({worker.error or 'it was too slow'}); everything else is written"
            )
