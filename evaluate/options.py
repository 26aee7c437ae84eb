"""Options of the commands of corrflow-eval: one dataclass for each command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with ImageSets, JPEGImages and Annotations.")]
Model = Annotated[str, typer.Option(help="Model: a bundled name or a path.")]
ShortSide = Annotated[
    int | None, typer.Option(min=0, help="Short side of the working frame; 0 keeps the size. (default: the model's)")
]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes; from 2 on with one thread each.")]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of all commands that compare methods."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model: a bundled name, a path, or random-init:PRESET[:SEED]; repeat to compare. (default: quarter)"
        ),
    ] = None
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="default, plain, paper, mast, crw, vfs or hvc; repeat to compare. (default: default)"),
    ] = None
    baseline: Annotated[list[str] | None, typer.Option(help="identity, lab or flow; repeat for several.")] = None
    encoder: Annotated[
        list[Path] | None, typer.Option(help="ONNX encoder from an image to a feature map; repeat for several.")
    ] = None
    encoder_layout: Annotated[str, typer.Option(help="Axes of the encoder's input: nchw, nhwc or auto.")] = "auto"
    encoder_colours: Annotated[str, typer.Option(help="Channels of the encoder's input: rgb or bgr.")] = "rgb"
    encoder_mean: Annotated[str, typer.Option(help="Mean of pixels 0..1, by channel.")] = "0.485,0.456,0.406"
    encoder_std: Annotated[str, typer.Option(help="Standard deviation, by channel.")] = "0.229,0.224,0.225"
    short_side: ShortSide = None
    workers: Workers = 1


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Sequences of a data set in the layout of DAVIS."""

    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "val"
    sequence: Annotated[list[str] | None, typer.Option(help="Only this sequence; repeat for several.")] = None
    year: Annotated[str | None, typer.Option(help="Folder of the list, if several folders have the split.")] = None
    resolution: Annotated[str, typer.Option(help="Folder of the frames and masks.")] = "480p"


@dataclass(frozen=True, kw_only=True)
class MaskReportOptions:
    """Files and statistics of a report on masks."""

    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, report.json, CSV files and masks; a repeated run continues."),
    ] = None
    attributes: Annotated[
        Path | None, typer.Option(help="Attributes of sequences: JSON {name: [attribute]}, or DAVIS's db_info.yaml.")
    ] = None
    official_decay: Annotated[
        bool, typer.Option("--official-decay", help="Compute decay as the official code, wrong past 256 frames.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class MaskOptions(MethodOptions, MaskReportOptions):
    """Options of the commands that predict masks."""

    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore the cached results in --out.")] = False


@dataclass(frozen=True, kw_only=True)
class DavisOptions(MaskOptions, SplitOptions):
    """Options of corrflow-eval davis."""

    root: Root


@dataclass(frozen=True, kw_only=True)
class YouTubeVosOptions(MaskOptions):
    """Options of corrflow-eval youtube-vos."""

    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with JPEGImages and Annotations.")]
    sequence: Annotated[list[str] | None, typer.Option(help="Only this sequence; repeat for several.")] = None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(MaskReportOptions, SplitOptions):
    """Options of corrflow-eval score."""

    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of <sequence>/<frame>.png.")]
    gt: Annotated[Path, typer.Option(metavar="ROOT", help="Data set with the true masks.")]
    layout: Annotated[str, typer.Option(help="davis or youtube-vos.")] = "davis"
    workers: Workers = 1


@dataclass(frozen=True, kw_only=True)
class PointOptions(MethodOptions):
    """Options of all commands that track points."""

    out: Annotated[Path | None, typer.Option(help="JSON file for the scores of every video.")] = None


@dataclass(frozen=True, kw_only=True)
class JhmdbOptions(PointOptions):
    """Options of corrflow-eval jhmdb."""

    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of JHMDB, or of one clip.")]
    split: Annotated[int | None, typer.Option(min=1, max=3, help="Only the test clips of this split.")] = None
    drop_lost: Annotated[
        bool,
        typer.Option("--drop-lost", help="Leave lost joints out, as common public code does; else they are wrong."),
    ] = False


@dataclass(frozen=True, kw_only=True)
class BadjaOptions(PointOptions):
    """Options of corrflow-eval badja."""

    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="JSON file, or folder of JSON files.")]
    root: Annotated[Path, typer.Option(help="Folder that the paths in the files are relative to.")]


@dataclass(frozen=True, kw_only=True)
class TapVidOptions(PointOptions):
    """Options of corrflow-eval tapvid."""

    file: Annotated[Path, typer.Argument(metavar="PICKLE", help="Published pickle; nothing in the file is executed.")]
    queries: Annotated[str, typer.Option(help="Query mode: first or strided.")] = "first"
    native: Annotated[bool, typer.Option("--native", help="Track at the videos' own size, not at 256x256.")] = False


@dataclass(frozen=True, kw_only=True)
class SearchOptions(SplitOptions):
    """Options of corrflow-eval search."""

    root: Root
    split: Annotated[str, typer.Option(help="List of sequences; never the split that results are reported on.")] = (
        "train"
    )
    model: Annotated[str, typer.Option(help="Model to choose settings for: a bundled name or a path.")] = "quarter"
    protocol: Annotated[str, typer.Option(help="Protocol whose settings the search starts from.")] = "default"
    short_side: Annotated[str, typer.Option(help="Short sides, separated by commas.")] = ""
    radius: Annotated[str, typer.Option(help="Window radii in cells.")] = "6,8,12"
    memory_frames: Annotated[str, typer.Option(help="Numbers of recent reference frames.")] = "3,5,10"
    top_k: Annotated[str, typer.Option(help="Numbers of retained scores; 0 retains all.")] = "5,10,20"
    temperature: Annotated[str, typer.Option(help="Temperatures.")] = "0.05,0.07,0.1"
    grid: Annotated[bool, typer.Option("--grid", help="Try every combination of the values.")] = False
    max_seconds: Annotated[float, typer.Option(min=0, help="Maximum of seconds per frame; 0 for no maximum.")] = 0.0
    workers: Workers = 1
    out: Annotated[
        Path | None, typer.Option(help="Folder for settings.json and all results; a repeated run continues.")
    ] = None
    write: Annotated[Path | None, typer.Option(help="New folder for a model with the chosen settings.")] = None


@dataclass(frozen=True, kw_only=True)
class OcclusionOptions(SplitOptions):
    """Options of corrflow-eval occlusion; None for options of the other kind of occlusion."""

    root: Root
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "train"
    full: Annotated[bool, typer.Option("--full", help="Cover the whole object for some frames.")] = False
    partial: Annotated[bool, typer.Option("--partial", help="Move a vertical bar across the object.")] = False
    begin: Annotated[int | None, typer.Option(help="--full: first hidden frame. (default: 8)")] = None
    hidden: Annotated[int | None, typer.Option(help="--full: number of hidden frames. (default: 8)")] = None
    width: Annotated[
        float | None, typer.Option(help="--partial: width of the bar, relative to sqrt(object area). (default: 0.4)")
    ] = None
    frames: Annotated[int | None, typer.Option(help="--partial: frames of the crossing. (default: 48)")] = None
    model: Model = "quarter"
    short_side: ShortSide = None
    redetect: Annotated[
        bool,
        typer.Option("--redetect/--no-redetect", help="Hide lost objects, re-detect them, drop spurious components."),
    ] = True
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for all cores.")] = 0
