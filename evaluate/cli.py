"""corrflow-eval: score trackers and masks on data sets in their published layouts."""

from __future__ import annotations

import typer

from corrflow.command_line import Version, with_options
from corrflow.evaluate.options import (
    BadjaOptions,
    DavisOptions,
    JhmdbOptions,
    OcclusionOptions,
    ScoreOptions,
    SearchOptions,
    TapVidOptions,
    YouTubeVosOptions,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take as long as the rest of --help
)


# Commands import their modules when they run: NumPy and OpenCV would slow --help down.
@app.callback(
    help="""Score trackers on data sets in their published layouts.

    \b
    Examples:
      corrflow-eval davis DAVIS --split val --out results
      corrflow-eval davis DAVIS --split val --protocol crw --baseline identity --baseline flow --workers 2
      corrflow-eval score MASKS --gt DAVIS --split val
      corrflow-eval search DAVIS --split train --short-side 240,480 --radius 6,8,12 --out search
    """
)
def corrflow_eval(version: Version = False) -> None: ...


@app.command()
@with_options
def davis(options: DavisOptions) -> None:
    """Track and score the masks of DAVIS.

    The objects of the first frame are tracked. The table shows J, F, J&F (percent) and seconds per frame.
    J and F equal the values of the official DAVIS-2017 code. Means are over objects.

    Examples:

        corrflow-eval davis DAVIS --split val --year 2016 --out results

        corrflow-eval davis DAVIS --model models/a --model random-init:quarter --baseline identity --workers 4

        corrflow-eval davis DAVIS --protocol paper --protocol crw --sequence bear --short-side 240

        corrflow-eval davis DAVIS --model models/a --encoder resnet.onnx --baseline lab --out results
    """
    from corrflow.evaluate.commands import run_davis

    run_davis(options)


@app.command()
@with_options
def youtube_vos(options: YouTubeVosOptions) -> None:
    """Track and score the masks of YouTube-VOS.

    Each object is tracked from the frame that first shows it, and scored on all later annotated frames.

    Examples:

        corrflow-eval youtube-vos train --workers 2 --out results

        corrflow-eval youtube-vos train --sequence 003234408d --protocol vfs
    """
    from corrflow.evaluate.commands import run_youtube_vos

    run_youtube_vos(options)


@app.command()
@with_options
def score(options: ScoreOptions) -> None:
    """Score a folder of predicted masks.

    Every scored frame needs a mask of the truth's size with the truth's object ids.

    Examples:

        corrflow-eval score my_masks --gt DAVIS --split val --out results

        corrflow-eval score results/masks/quarter --gt DAVIS --sequence bear
    """
    from corrflow.evaluate.commands import run_score

    run_score(options)


@app.command()
@with_options
def jhmdb(options: JhmdbOptions) -> None:
    """Track and score the joints of JHMDB.

    The joints of the first frame are tracked. The table shows PCKinstance and PCKmax (percent).

    Examples:

        corrflow-eval jhmdb JHMDB --split 1 --workers 2

        corrflow-eval jhmdb JHMDB --split 1 --baseline identity --baseline flow --model quarter --drop-lost
    """
    from corrflow.evaluate.point_commands import run_jhmdb

    run_jhmdb(options)


@app.command()
@with_options
def badja(options: BadjaOptions) -> None:
    """Track and score the joints of BADJA.

    The table shows the percentage of joints within 0.2 * sqrt(area of the true mask) pixels of the truth.

    Examples:

        corrflow-eval badja BADJA/joint_annotations --root BADJA

        corrflow-eval badja bear.json --root BADJA --baseline identity --model quarter
    """
    from corrflow.evaluate.point_commands import run_badja

    run_badja(options)


@app.command()
@with_options
def tapvid(options: TapVidOptions) -> None:
    """Track and score the points of TAP-Vid.

    The table shows average Jaccard, the fraction of points within 1 to 16 pixels, and occlusion accuracy (percent).

    Examples:

        corrflow-eval tapvid tapvid_davis.pkl --queries first --workers 2

        corrflow-eval tapvid tapvid_rgb_stacking.pkl --queries strided --baseline flow
    """
    from corrflow.evaluate.point_commands import run_tapvid

    run_tapvid(options)


@app.command()
@with_options
def search(options: SearchOptions) -> None:
    """Choose tracking settings by measured J&F and time.

    The chosen settings go into settings.json, and with --write into a new model.
    Lists of values are separated by commas; an empty list keeps the model's value. --write needs corrflow[export].

    Examples:

        corrflow-eval search DAVIS --split train --short-side 240,480 --out search --write models/tuned

        corrflow-eval search DAVIS --sequence bear --radius 8,12 --memory-frames 5 --grid --max-seconds 0.5
    """
    from corrflow.evaluate.search import run_search

    run_search(options)


@app.command()
@with_options
def occlusion(options: OcclusionOptions) -> None:
    """Track objects behind synthetic occluders.

    With --full an occluder covers the object: the command counts re-detections within ten frames, false masks of
    hidden objects and false losses of visible objects. With --partial a bar crosses the object: the command measures
    J of the visible part.

    Examples:

        corrflow-eval occlusion DAVIS --full --short-side 240

        corrflow-eval occlusion DAVIS --partial --short-side 240 --no-redetect
    """
    from corrflow.evaluate.commands import run_occlusion

    run_occlusion(options)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
