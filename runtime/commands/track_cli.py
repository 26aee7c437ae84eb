"""Command line of corrflow-track."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corrflow.command_line import with_options
from corrflow.errors import InputError
from corrflow.output_paths import fitting
from corrflow.runtime.commands.model_options import LabelOptions
from corrflow.runtime.formats.registry import FORMATS, READABLE, check_formats
from corrflow.special_files import take_standard_output

if TYPE_CHECKING:
    from corrflow.runtime.formats.prompts import Prompts
    from corrflow.runtime.live.outputs.destinations import Destinations

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

HELP = f"""Track objects or points through a video, from prompts on its first frame, or on that of --start.

SOURCE is a video file, a folder of images, or a glob pattern of images in quotes.

\b
Examples:
  corrflow-track --demo
  corrflow-label video.mp4
  corrflow-track video.mp4 --init mask.png
  corrflow-track video.mp4 --init mask.png --save out.mp4 --masks masks/
  corrflow-track video.mp4 --init mask.png --start 120
  corrflow-track video.mp4 --init labels.json --format coco --format report --out results/
  corrflow-track frames/ --keypoints points.csv --csv tracks.csv --jsonl tracks.jsonl
  corrflow-track "frames/*.jpg" --init cat.png --init dog.png --model artifacts/first
  corrflow-track --camera 0 --init mask.png --save live.mkv --save-prompt cat.npz
  corrflow-track --camera 0 --init mask.png --show
  corrflow-track --camera 0 --serve
  corrflow-track --camera rtsp://camera/stream --prompt-file cat.npz --jsonl tracks.jsonl

--camera takes a number, /dev/video0, v4l2://, csi://0, rtsp://, http://, udp://, - (standard input; raw images as
"-?raw=bgr24&size=640x480"), screen, a GStreamer pipeline, or a file read at its frame rate. Ctrl-C stops tracking.

In the window of --show, space freezes the view, r records, and q or escape quits.

All outputs work for files and cameras. Formats: {", ".join(FORMATS)}.
"""


@dataclass(frozen=True, kw_only=True)
class TrackOptions(LabelOptions):
    """Options of corrflow-track."""

    source: Annotated[str | None, typer.Argument(help="Video file, folder of images, or glob pattern.")] = None
    init: Annotated[
        list[Path] | None,
        typer.Option(
            help=f"Objects of the first frame: one or several mask PNGs, or a file among {', '.join(READABLE)}."
        ),
    ] = None
    keypoints: Annotated[Path | None, typer.Option(help="Points of the first frame, CSV with name,x,y.")] = None
    start: Annotated[
        int | None,
        typer.Option(min=0, help="Frame of these objects, counted from 0; tracking starts there. [0]"),
    ] = None
    save: Annotated[Path | None, typer.Option(help="Video with the results drawn in (.mp4 or .mkv).")] = None
    masks: Annotated[Path | None, typer.Option(help="Folder of palette PNGs, one per frame, as in DAVIS.")] = None
    csv: Annotated[Path | None, typer.Option(help="Points of every frame as CSV.")] = None
    jsonl: Annotated[
        Path | None,
        typer.Option(help="JSON lines, one per frame, with masks for a live source; - for standard output."),
    ] = None
    coco: Annotated[Path | None, typer.Option(help="COCO JSON with masks and keypoints.")] = None
    format: Annotated[
        list[str] | None, typer.Option(help="Any format of corrflow-batch, written to --out; repeat for several.")
    ] = None
    out: Annotated[Path | None, typer.Option(help="Folder for --format [VIDEO_results] or --demo [corrflow-demo].")] = (
        None
    )
    udp: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Send each frame's JSON line, with masks, as a datagram.")
    ] = None
    mqtt: Annotated[
        str | None, typer.Option(metavar="mqtt://HOST/TOPIC", help="Send the same line to an MQTT broker.")
    ] = None
    rerun: Annotated[
        str | None, typer.Option(metavar="FILE.rrd", help="Write a file for Rerun, or send to its viewer's address.")
    ] = None
    ros: Annotated[
        str | None, typer.Option(metavar="/TOPIC", help="Publish masks and JSON lines to ROS 2, under this name.")
    ] = None
    camera: Annotated[
        str | None, typer.Option(help="Live source; only the newest frame is tracked, others are dropped.")
    ] = None
    prompt_file: Annotated[Path | None, typer.Option(help="With --camera: objects saved by --save-prompt.")] = None
    save_prompt: Annotated[Path | None, typer.Option(help="With --camera: save the first frame and its objects.")] = (
        None
    )
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:PORT]",
            help="With --camera: web page to watch and to draw objects [127.0.0.1:8080]; other machines need a token.",
        ),
    ] = None
    token: Annotated[str, typer.Option(envvar="CORRFLOW_TOKEN", help="With --serve: access token [a new one].")] = ""
    show: Annotated[
        bool, typer.Option("--show", help="With --camera: window to watch; draw objects on the page of --serve.")
    ] = False
    timeout: Annotated[
        float, typer.Option(help="With --camera: seconds without a frame before the source is reopened.")
    ] = 5.0
    demo: Annotated[bool, typer.Option("--demo", help="Render a clip, track it, and print its score.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the chosen backend and the reasons.")] = False

    def check(self) -> None:
        """Raise InputError for options that exclude each other."""
        self.check_labels()
        live_only = ("prompt_file", "save_prompt", "show", "serve")
        if self.camera is None and (used := [name for name in live_only if getattr(self, name)]):
            option = f"--{used[0].replace('_', '-')}"
            raise InputError(f"expected {option} with --camera, got it without; add --camera SOURCE")
        if self.start is not None and (self.camera is not None or self.demo):
            raise InputError("--start cannot be combined with --camera or --demo; leave it out")
        if self.camera is not None and (self.source or self.demo):
            raise InputError("--camera cannot be combined with SOURCE or --demo; leave one of them out")
        prompted = bool(self.prompt_file) + bool(self.init or self.keypoints)
        if self.camera is not None and prompted != 1 and not (self.serve and not prompted):
            raise InputError(
                "expected either --init or --keypoints for the first frame of --camera, or --prompt-file, got"
                f" {'both' if self.prompt_file else 'neither'}; prompt it, or add --serve to draw the objects"
            )
        if self.demo and (self.source or self.init or self.keypoints):
            raise InputError("expected --demo alone, got a source or objects as well; leave out one of them")
        if not self.demo and self.source is None and self.camera is None:
            raise InputError("expected a SOURCE to track, got none; name a video, or try corrflow-track --demo")
        if not self.demo and self.camera is None and not self.init and not self.keypoints:
            raise InputError(
                "expected --init MASK.png or --keypoints POINTS.csv, got neither; draw objects with corrflow-label"
            )
        if (
            self.csv is not None
            and self.init
            and not self.keypoints
            and all(path.suffix == ".png" for path in self.init)
        ):
            raise InputError("expected --keypoints with --csv, which holds points only; leave out --csv or give points")
        check_formats(self.format or [])

    def files(self) -> dict[str, Path]:
        """Return the named output files by their format."""
        shortcuts = {
            "overlay": self.save, "davis": self.masks, "csv": self.csv, "jsonl": self.jsonl, "coco": self.coco,
        }  # fmt: skip
        return {name: path for name, path in shortcuts.items() if path is not None}

    def destinations(self, name: str) -> Destinations:
        """Return the outputs; name: name of the source."""
        from corrflow.runtime.live.outputs.destinations import Destinations
        from corrflow.runtime.live.outputs.mqtt import parse_mqtt
        from corrflow.runtime.live.outputs.ros2 import parse_ros
        from corrflow.runtime.live.outputs.udp import parse_udp

        files = self.files()
        formats = [name for name in self.format or [] if name not in files]
        if self.out is not None:
            files |= {name: self.out / FORMATS[name].result for name in formats}
            formats = []
        return Destinations(
            files,
            parse_udp(self.udp) if self.udp else None,
            parse_mqtt(self.mqtt) if self.mqtt else None,
            self.rerun,
            parse_ros(self.ros) if self.ros else None,
            Path(fitting(name, "_results")) if formats else None,
            tuple(formats),
        )


@app.command(help=HELP)
@with_options
def track(options: TrackOptions) -> None:
    """Track a file, a live source or the demo clip."""
    options.check()
    take_standard_output(options.files().values())
    if options.verbose:
        import logging

        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("corrflow").setLevel(logging.INFO)
    tracker = options.tracker_options()
    if options.demo:
        from corrflow.runtime.commands.track import run_demo

        run_demo(tracker, options.out or Path("corrflow-demo"))
    elif options.camera is not None:
        from corrflow.runtime.live.command import LiveOptions, run_camera
        from corrflow.runtime.live.web.auth import parse_access

        access = parse_access(options.serve, options.token) if options.serve else None
        live = LiveOptions(options.show, options.save_prompt, access, options.timeout)
        prompt_files = options.init or [], options.keypoints, options.prompt_file
        run_camera(options.camera, *prompt_files, options.destinations, live, tracker)
    else:
        assert options.source is not None
        from corrflow.runtime.commands.track import run_track
        from corrflow.runtime.formats.prompts import prompts_from_files

        files = [*(options.init or []), *([options.keypoints] if options.keypoints else [])]

        def prompts(name: str) -> Prompts:
            return prompts_from_files(options.init or [], options.keypoints, name, options.strict, options.min_score)

        run_track(options.source, prompts, options.destinations, tracker, files, options.strict, options.start)


def with_default_address(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with an address after a bare --serve, because Typer has no optional values."""
    completed = list(arguments)
    for index in reversed(range(len(completed))):
        if completed[index] == "--serve" and (index + 1 == len(completed) or completed[index + 1].startswith("-")):
            completed.insert(index + 1, "127.0.0.1:8080")
    return completed


def main() -> None:
    """Run the console command."""
    app(with_default_address(sys.argv[1:]))


if __name__ == "__main__":
    main()
