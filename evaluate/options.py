"""Options of the commands of corrflow-eval: one dataclass for each command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[Path, typer.Argument(metavar="ROOT", help="Folder with ImageSets, JPEGImages and Annotations.")]
RootOrSets = Annotated[
    Path,
    typer.Argument(
        metavar="ROOT", help="Folder with ImageSets, JPEGImages and Annotations, or YAML file of several data sets."
    ),
]
Model = Annotated[str, typer.Option(help="Model: a bundled name or a path.")]
ShortSide = Annotated[
    int | None, typer.Option(min=0, help="Short side of the working frame; 0 keeps the size. (default: the model's)")
]
PointBaselines = Annotated[
    list[str] | None,
    typer.Option(help="lk, flow, identity, lab or none; repeat for several. (default: lk, flow and identity)"),
]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes, of one thread each.")]


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
        typer.Option(
            help="default, plain, paper, mast, crw, vfs or hvc, or published for the last five; repeat to compare."
            " (default: default)"
        ),
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
    stride: Annotated[int, typer.Option(min=1, help="Take frames 0, N, 2N and so on.", metavar="N")] = 1
    backward: Annotated[
        bool, typer.Option("--backward", help="Take the frames in reverse order, with the last mask as the prompt.")
    ] = False


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

    root: RootOrSets
    badja: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also track the joints of BADJA: folder of JSON files, whose paths are relative to its parent.",
        ),
    ] = None


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
class KeypointOptions(MethodOptions):
    """Options of corrflow-eval points."""

    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Video file, folder of images or glob pattern.")]
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS", help="Label file of any readable format, or .npz of xy and nodes, or TAP-Vid's."
        ),
    ]
    labelled: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of labelled frames that the tracker gets, evenly spread.")
    ] = 1
    baseline: PointBaselines = None
    body_length: Annotated[
        float | None,
        typer.Option(min=1e-3, metavar="PIXELS", help="Unit of errors. (default: median side of an object's box)"),
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, report.json and points.csv.", metavar="FOLDER")
    ] = None


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
class WarpOptions(PointOptions, SplitOptions):
    """Options of corrflow-eval warps."""

    root: Root
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "train"
    baseline: PointBaselines = None
    real: Annotated[
        bool, typer.Option("--real", help="Real frames with points of consistent flow, not synthetic motion.")
    ] = False
    frames: Annotated[int, typer.Option(min=2, max=1000, help="Frames of the synthetic motion.")] = 24
    motion: Annotated[
        float, typer.Option(min=0, max=200, help="Mean motion at the last frame, in pixels at 480 rows.")
    ] = 40.0
    points: Annotated[int, typer.Option(min=1, max=1000, help="Points of each sequence, half on the object.")] = 64
    seed: Annotated[int, typer.Option(min=0, help="Seed of the motion and the points.")] = 0


@dataclass(frozen=True, kw_only=True)
class SearchSpaceOptions:
    """Values that a search tries, and how it chooses among them."""

    short_side: Annotated[str, typer.Option(help="Short sides, separated by commas.")] = ""
    radius: Annotated[str, typer.Option(help="Window radii in cells.")] = ""
    memory_frames: Annotated[str, typer.Option(help="Numbers of recent reference frames.")] = ""
    top_k: Annotated[str, typer.Option(help="Numbers of retained scores; 0 retains all.")] = ""
    temperature: Annotated[str, typer.Option(help="Temperatures.")] = ""
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Values of any other setting, such as move_windows=true,false, redetect=true,false or"
            " occlusion.redetect_area=0.2,0.3; repeat for several.",
        ),
    ] = None
    grid: Annotated[bool, typer.Option("--grid", help="Try every combination of the values.")] = False
    max_seconds: Annotated[float, typer.Option(min=0, help="Maximum of CPU seconds per frame; 0 for no maximum.")] = 0.0
    objective: Annotated[
        str, typer.Option(help="J&F to maximise: mean, worst-third (of the sequences), or both (their mean).")
    ] = "mean"
    workers: Workers = 1


@dataclass(frozen=True, kw_only=True)
class SearchOptions(SearchSpaceOptions, SplitOptions):
    """Options of corrflow-eval search."""

    root: RootOrSets
    split: Annotated[str, typer.Option(help="List of sequences; never the split that results are reported on.")] = (
        "train"
    )
    model: Annotated[str, typer.Option(help="Model to choose settings for: a bundled name or a path.")] = "quarter"
    protocol: Annotated[str, typer.Option(help="Protocol whose settings the search starts from.")] = "default"
    radius: Annotated[str, typer.Option(help="Window radii in cells.")] = "6,8,12"
    memory_frames: Annotated[str, typer.Option(help="Numbers of recent reference frames.")] = "3,5,10"
    top_k: Annotated[str, typer.Option(help="Numbers of retained scores; 0 retains all.")] = "5,10,20"
    temperature: Annotated[str, typer.Option(help="Temperatures.")] = "0.05,0.07,0.1"
    out: Annotated[
        Path | None, typer.Option(help="Folder for settings.json and all results; a repeated run continues.")
    ] = None
    write: Annotated[Path | None, typer.Option(help="New folder for a model with the chosen settings.")] = None


@dataclass(frozen=True, kw_only=True)
class CrossValidateOptions(SearchSpaceOptions, SplitOptions):
    """Options of corrflow-eval cross-validate."""

    root: RootOrSets
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "train"
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model: a bundled name or a path; repeat to choose among several. (default: quarter)"),
    ] = None
    protocol: Annotated[str, typer.Option(help="Protocol whose settings the search starts from.")] = "default"
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model to compare with. (default: the first --model as it is)")
    ] = None
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5
    seed: Annotated[int, typer.Option(help="Seed of the folds and of the bootstrap.")] = 0
    resamples: Annotated[int, typer.Option(min=100, max=100_000, help="Resamples of the bootstrap.")] = 5000
    attributes: Annotated[
        Path | None, typer.Option(help="Kinds of sequences: JSON of corrflow-eval kinds, or DAVIS's db_info.yaml.")
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report and all results; a repeated run continues.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class FrontOptions(SplitOptions):
    """Options of corrflow-eval front."""

    root: RootOrSets
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model beside the bundled ones, by path or random-init:PRESET; repeat for several."),
    ] = None
    out: Annotated[
        Path, typer.Option(help="Folder for front.svg, front.json and all results; a repeated run continues.")
    ]
    workers: Workers = 1


@dataclass(frozen=True, kw_only=True)
class KindsOptions(SplitOptions):
    """Options of corrflow-eval kinds."""

    root: Root
    split: Annotated[str, typer.Option(help="List of sequences: ImageSets/<year>/<split>.txt.")] = "train"
    out: Annotated[Path | None, typer.Option(help="JSON file for --attributes.")] = None


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
