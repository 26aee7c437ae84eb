"""corrflow-track: the shell around `run.track_source`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from corrflow.errors import InputError, errors_reported
from corrflow.runtime.live.keys import keys_text

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help=f"""Track objects or points through a video, from what they look like on its first frame.

    SOURCE is a video file, a folder of pictures, or a glob pattern of pictures in quotes.

    \b
    Examples:
      corrflow-track --demo
      corrflow-track video.mp4 --init mask.png
      corrflow-track video.mp4 --init mask.png --save out.mp4 --masks masks/
      corrflow-track frames/ --keypoints points.csv --csv tracks.csv --jsonl tracks.jsonl
      corrflow-track "frames/*.jpg" --init cat.png --init dog.png --model artifacts/first
      corrflow-track --camera 0 --init mask.png --save live.mkv --save-prompt cat.npz
      corrflow-track --camera 0 --show
      corrflow-track --camera 0 --serve
      corrflow-track --camera rtsp://camera/stream --prompt-file cat.npz --jsonl tracks.jsonl

    --camera takes a number, /dev/video0, v4l2://, csi://0, rtsp://, http://, udp://, - (standard input; raw pictures
    as "-?raw=bgr24&size=640x480"), screen, a GStreamer pipeline, or a file played at its own pace. Ctrl-C ends it.

    \b
    In the window of --show:
{keys_text()}
    """
)
def track(
    source: Annotated[str | None, typer.Argument(help="Video file, folder of pictures, or glob pattern.")] = None,
    init: Annotated[
        list[Path] | None, typer.Option(help="Mask of the first frame, PNG; several files for several objects.")
    ] = None,
    keypoints: Annotated[Path | None, typer.Option(help="Points of the first frame, CSV with name,x,y.")] = None,
    save: Annotated[Path | None, typer.Option(help="Video with the tracks drawn in (.mp4 or .mkv).")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder for one palette PNG a frame, as DAVIS has them.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Keypoints of every frame as CSV.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Everything as JSON, one line a frame; live, masks too.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model: a bundled name, a folder or a zip. [quarter]")] = None,
    short_side: Annotated[
        int | None, typer.Option(help="Short side frames are shrunk to; 0: never [the model's].")
    ] = None,
    memory_frames: Annotated[int | None, typer.Option(help="Last frames kept as references [the model's].")] = None,
    redetect: Annotated[
        bool,
        typer.Option("--redetect/--no-redetect", help="Drop strays; take hidden objects for lost and find them again."),
    ] = True,
    backend: Annotated[
        str, typer.Option(help="auto, tensorrt, onnxruntime-cuda, onnxruntime or onnx-function.")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all.")] = 0,
    camera: Annotated[str | None, typer.Option(help="Live source; frames that come too fast are dropped.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="With --camera: what to track, as --save-prompt kept it.")
    ] = None,
    save_prompt: Annotated[
        Path | None, typer.Option(help="With --camera: keep the first frame and its objects.")
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:PORT]",
            help="With --camera: a web page to watch and to draw objects on [127.0.0.1:8080]; others need a token.",
        ),
    ] = None,
    token: Annotated[
        str, typer.Option(envvar="CORRFLOW_TOKEN", help="With --serve: what to ask for [a new one].")
    ] = "",
    udp: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --camera: each frame's line of JSON as a datagram.")
    ] = None,
    mqtt: Annotated[
        str | None, typer.Option(metavar="mqtt://HOST/TOPIC", help="With --camera: the same to an MQTT broker.")
    ] = None,
    rerun: Annotated[
        str | None,
        typer.Option(metavar="FILE.rrd", help="With --camera: a file for Rerun, or its viewer's address."),
    ] = None,
    ros: Annotated[
        str | None,
        typer.Option(metavar="/TOPIC", help="With --camera: masks and the lines of JSON to ROS 2, under this name."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="With --camera: a window to watch and to draw objects in.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="With --camera: seconds without a frame before it is opened anew.")
    ] = 5.0,
    demo: Annotated[bool, typer.Option("--demo", help="Render a clip, track it, and say how well that went.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what --demo writes.")] = Path("corrflow-demo"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say which back end was picked and why.")] = False,
) -> None:
    with errors_reported():
        live_only = {
            "--prompt-file": prompt_file,
            "--save-prompt": save_prompt,
            "--show": show,
            "--serve": serve,
            "--udp": udp,
            "--mqtt": mqtt,
            "--rerun": rerun,
            "--ros": ros,
        }
        if camera is None and (given := [name for name, value in live_only.items() if value]):
            raise InputError(f"expected {given[0]} with --camera, got it without; add --camera SOURCE")
        if camera is not None and (source or demo or masks or csv):
            raise InputError(
                "expected --camera with --save, --jsonl or --show, got SOURCE, --demo, --masks or --csv as well; leave"
                " that out"
            )
        given_once = bool(prompt_file) + bool(init or keypoints)
        if camera is not None and given_once != 1 and not ((serve or show) and not given_once):
            raise InputError(
                "expected either --init or --keypoints for the first frame of --camera, or --prompt-file, got"
                f" {'both' if prompt_file else 'neither'}; say what to track, or draw it with --show or --serve"
            )
        if demo and (source or init or keypoints):
            raise InputError("expected --demo alone, got a source or objects as well; leave out one of them")
        if not demo and source is None and camera is None:
            raise InputError("expected a SOURCE to track, got none; name a video, or try corrflow-track --demo")
        if not demo and camera is None and not init and not keypoints:
            raise InputError(
                "expected --init MASK.png or --keypoints POINTS.csv, got neither; say what to track on the first frame"
            )
        from corrflow.runtime.commands import track as command

        options = command.Model(model, backend, threads, short_side, memory_frames, verbose, redetect)
        if camera is not None:
            from corrflow.runtime.live.command import LiveOutputs, run_camera
            from corrflow.runtime.live.outputs.mqtt import parse_mqtt
            from corrflow.runtime.live.outputs.ros2 import parse_ros
            from corrflow.runtime.live.outputs.udp import parse_udp
            from corrflow.runtime.live.web.auth import parse_access

            access = parse_access(serve, token) if serve else None
            outputs = LiveOutputs(
                save,
                jsonl,
                show,
                save_prompt,
                access,
                parse_udp(udp) if udp else None,
                parse_mqtt(mqtt) if mqtt else None,
                rerun,
                parse_ros(ros) if ros else None,
            )
            run_camera(camera, init or [], keypoints, prompt_file, outputs, options, timeout)
        elif demo:
            command.run_demo(options, out)
        else:
            assert source is not None
            command.run_track(source, init or [], keypoints, command.Outputs(save, masks, csv, jsonl), options)


def with_default_address(arguments: Sequence[str]) -> list[str]:
    """The arguments with an address after a bare --serve, which Typer has no way to leave out."""
    given = list(arguments)
    for index in reversed(range(len(given))):
        if given[index] == "--serve" and (index + 1 == len(given) or given[index + 1].startswith("-")):
            given.insert(index + 1, "127.0.0.1:8080")
    return given


def main() -> None:
    """Entry point of the console command."""
    app(with_default_address(sys.argv[1:]))


if __name__ == "__main__":
    main()
